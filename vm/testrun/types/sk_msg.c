// SPDX-License-Identifier: GPL-2.0
/* sk_msg: a message on its way out of a TCP socket that is in a sockmap. */
#include <linux/bpf.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/skmsg.h>
#include <linux/slab.h>
#include <net/sock.h>
#include <net/tcp_states.h>

#include "../bpfunit_testrun.h"
#include "../compat.h"
#include "../loop.h"
#include "../request.h"
#include "../sock.h"
#include "types.h"

struct run {
	struct bpf_prog *prog;
	struct sock *sk;
	struct bpfunit_sk_msg in;
	struct payload payload;
	struct sk_msg msg;
	struct loop loop;
	u32 retval;
	struct bpfunit_sk_msg_result result;
	void *out; /* the result, and behind it what the caller has room for of the message */
	u32 room;
	int err; /* of making it */
};

/* Refuse lengths that the message cannot have. */
static int check_fragments(const struct run *run)
{
	const __u32 *lengths = run->in.fragments;
	u64 sum = 0;
	int i, count = 0;

	for (i = 0; i < BPFUNIT_SK_MSG_FRAGMENTS && lengths[i]; i++, count++)
		sum += lengths[i];
	if (memchr_inv(&lengths[count], 0, sizeof(run->in.fragments) - count * sizeof(*lengths)))
		return -EINVAL;
	/* an empty message never comes to the program */
	return !run->payload.size || (count && sum != run->payload.size) ? -EINVAL : 0;
}

/* Copy the payload into the message, element by element. */
static void fill(struct sk_msg *msg, const char *bytes)
{
	u32 i = msg->sg.start;

	while (i != msg->sg.end) {
		struct scatterlist *element = sk_msg_elem(msg, i);

		memcpy(sg_virt(element), bytes, element->length);
		bytes += element->length;
		sk_msg_iter_var_next(i);
	}
}

/* Make the message, charged to its socket as in sendmsg(2). */
static int prepare(void *data)
{
	struct run *run = data;
	const __u32 *lengths = run->in.fragments;
	struct sk_msg *msg = &run->msg;
	int i, err = 0;

	sk_msg_init(msg);
	if (!lengths[0])
		err = sk_msg_alloc(run->sk, msg, run->payload.size, 0);
	for (i = 0; !err && i < BPFUNIT_SK_MSG_FRAGMENTS && lengths[i]; i++)
		err = sk_msg_alloc(run->sk, msg, msg->sg.size + lengths[i], msg->sg.end);
	if (err) {
		sk_msg_free(run->sk, msg);
		return err == -ENOSPC ? -E2BIG : err;
	}
	fill(msg, run->payload.bytes);
	if (run->in.head.flags & BPFUNIT_SK_MSG_SHARED)
		sk_msg_sg_copy_set(msg, msg->sg.start);
	return 0;
}

/* What sk_psock_msg_verdict() makes of it; the target is ours only as long as RCU is. */
static void judge(struct run *run)
{
	const struct sk_msg *msg = &run->msg;
	struct bpfunit_sk_msg_result *result = &run->result;

	memset(result, 0, sizeof(*result));
	result->apply_bytes = msg->apply_bytes;
	result->cork_bytes = msg->cork_bytes;
	result->size = msg->sg.size;
	if (run->retval != SK_PASS) {
		result->verdict = BPFUNIT_SK_MSG_DROP;
		result->err = -EACCES;
	} else if (!msg->sk_redir) {
		result->verdict = BPFUNIT_SK_MSG_PASS;
	} else {
		result->verdict = BPFUNIT_SK_MSG_REDIRECT;
		result->ingress = sk_msg_to_ingress(msg);
		result->target_cookie = atomic64_read(&msg->sk_redir->sk_cookie);
		result->target_inode = sock_i_ino(msg->sk_redir);
	}
}

static void run_slice(struct loop *loop, void *data)
{
	struct run *run = data;

	sk_msg_compute_data_pointers(&run->msg);
	run->msg.sk = run->sk;
	run->retval = loop_once(loop, run->prog, &run->msg);
	if (loop_is_done(loop))
		judge(run);
}

/* The result and the bytes of the message, as many as the caller has room for. */
static int collect(struct run *run)
{
	struct sk_msg *msg = &run->msg;
	u32 room = min_t(u32, run->room, sizeof(run->result) + msg->sg.size);
	u32 at = sizeof(run->result), i = msg->sg.start;

	run->out = kvmalloc(max_t(u32, room, at), GFP_KERNEL_ACCOUNT);
	if (!run->out)
		return -ENOMEM;
	memcpy(run->out, &run->result, at);
	while (i != msg->sg.end && at < room) {
		struct scatterlist *element = sk_msg_elem(msg, i);
		u32 length = min(element->length, room - at);

		memcpy(run->out + at, sg_virt(element), length);
		at += length;
		sk_msg_iter_var_next(i);
	}
	return 0;
}

static void finish(struct loop *loop, void *data)
{
	struct run *run = data;

	if (loop_is_done(loop))
		run->err = collect(run);
	sk_msg_free(run->sk, &run->msg);
}

/*
 * Whether a socket in a sockmap sends in this state: it comes into the map established,
 * and asks the program when it is shut down, too, before it fails.
 */
static int check_state(const struct sock *sk)
{
	int err = sock_check_tcp(sk);

	return err ?: 1 << sk->sk_state & TCPF_CONNECTED ? 0 : -ENOTCONN;
}

static int pause_run(void *data)
{
	struct run *run = data;

	sock_yield(run->sk);
	return check_state(run->sk);
}

static const struct loop_ops loop_ops = {
	.prepare = prepare,
	.slice = run_slice,
	.finish = finish,
	.pause = pause_run,
};

static int run_locked(struct sock *sk, void *data)
{
	struct run *run = data;

	run->sk = sk;
	return check_state(sk) ?: loop_run(&run->loop, &loop_ops, run);
}

static int run_request(struct run *run, const struct test_request *request)
{
	int err;

	if (run->in.head.flags & ~BPFUNIT_SK_MSG_SHARED)
		return -EINVAL;
	err = check_fragments(run);
	if (err)
		return err;
	run->room = request_data_room(request);
	err = sock_run_tcp(run->in.head.sock, run_locked, run) ?: run->err;
	if (!err) {
		const struct answer answer = {
			.retval = run->retval,
			.duration = loop_duration(&run->loop),
			.data = {run->out, sizeof(run->result) + run->result.size},
		};

		err = request_answer(request, &answer);
	}
	kvfree(run->out);
	return err;
}

int sk_msg_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
		    union bpf_attr __user *uattr)
{
	const struct test_request request = {kattr, uattr};
	struct run *run;
	int err;

	run = kzalloc(sizeof(*run), GFP_KERNEL_ACCOUNT); /* the message alone is a kilobyte */
	if (!run)
		return -ENOMEM;
	run->prog = prog;
	run->loop.repeat = request_repeat(&request);
	err = request_read(&request, &run->in, sizeof(run->in), &run->payload, BPFUNIT_SK_MSG_MAX);
	if (!err) {
		err = run_request(run, &request);
		kvfree(run->payload.bytes);
	}
	kfree(run);
	return err;
}
