// SPDX-License-Identifier: GPL-2.0
/* sk_skb: what came in on a TCP socket that is in a sockmap, its parser and its verdict. */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/mm.h>
#include <linux/skbuff.h>
#include <linux/skmsg.h>
#include <linux/slab.h>
#include <net/sock.h>
#include <net/tcp.h>

#include "../bpfunit_testrun.h"
#include "../compat.h"
#include "../loop.h"
#include "../request.h"
#include "../skb.h"
#include "../sock.h"
#include "types.h"

struct run {
	struct bpf_prog *prog;
	struct sock *sk;
	struct bpfunit_sk_skb in;
	struct payload payload;
	struct sk_buff *skb;
	struct loop loop;
	u32 retval;
	struct bpfunit_sk_skb_result result;
	void *out; /* the result, and behind it what the caller has room for of the data */
	u32 room;
	int err; /* of making it */
};

/* Put the payload behind the linear bytes into pages, as the receiver of a segment does. */
static int append_pages(struct sk_buff *skb, const char *bytes, u32 size)
{
	int i;

	for (i = 0; size; i++) {
		u32 length = min_t(u32, size, PAGE_SIZE);
		struct page *page = alloc_page(GFP_KERNEL_ACCOUNT);

		if (!page)
			return -ENOMEM;
		memcpy(page_address(page), bytes, length);
		skb_add_rx_frag(skb, i, page, 0, length, PAGE_SIZE);
		bytes += length;
		size -= length;
	}
	return 0;
}

/*
 * A segment without its headers, for which there is headroom. It has no device any more,
 * and is not charged to the socket: both were taken off before a program sees it.
 */
static int prepare(void *data)
{
	struct run *run = data;
	u32 linear = run->in.linear;
	struct sk_buff *skb;
	int err;

	skb = alloc_skb(MAX_TCP_HEADER + linear, GFP_KERNEL_ACCOUNT);
	if (!skb)
		return -ENOMEM;
	skb_reserve(skb, MAX_TCP_HEADER);
	skb_put_data(skb, run->payload.bytes, linear);
	err = append_pages(skb, run->payload.bytes + linear, run->payload.size - linear);
	if (err) {
		kfree_skb(skb);
		return err;
	}
	skb->protocol = htons(run->sk->sk_family == AF_INET ? ETH_P_IP : ETH_P_IPV6);
	skb->priority = run->in.priority;
	memset(skb->cb, 0, sizeof(skb->cb));
	skb_end_of_linear(skb);
	run->skb = skb;
	return 0;
}

/* What sk_psock_map_verd() makes of it; the target is ours only as long as RCU is. */
static void judge(struct run *run)
{
	struct bpfunit_sk_skb_result *result = &run->result;
	struct sock *target = skb_redirect_target(run->skb);

	memset(result, 0, sizeof(*result));
	result->size = run->skb->len;
	result->priority = run->skb->priority;
	result->tc_index = skb_tc_index(run->skb);
	if (run->in.hook == BPFUNIT_SK_SKB_PARSER) {
		result->verdict = BPFUNIT_SK_SKB_PARSED;
	} else if (run->retval != SK_PASS) {
		result->verdict = BPFUNIT_SK_SKB_DROP;
	} else if (!target) {
		result->verdict = BPFUNIT_SK_SKB_PASS;
	} else {
		result->verdict = BPFUNIT_SK_SKB_REDIRECT;
		result->ingress = skb_redirect_ingress(run->skb);
		result->target_cookie = atomic64_read(&target->sk_cookie);
		result->target_inode = sock_i_ino(target);
	}
}

static void run_slice(struct loop *loop, void *data)
{
	struct run *run = data;

	run->skb->sk = run->sk;
	run->retval = loop_once(loop, run->prog, run->skb);
	run->skb->sk = NULL;
	if (loop_is_done(loop))
		judge(run);
	skb_redirect_forget(run->skb); /* it lies where the freeing looks for a route */
}

/* The result and the data, as much of it as the caller has room for. */
static int collect(struct run *run)
{
	u32 at = sizeof(run->result);
	u32 room = min_t(u32, run->room, at + run->skb->len);

	run->out = kvmalloc(max_t(u32, room, at), GFP_KERNEL_ACCOUNT);
	if (!run->out)
		return -ENOMEM;
	memcpy(run->out, &run->result, at);
	return room > at ? skb_copy_bits(run->skb, 0, run->out + at, room - at) : 0;
}

static void finish(struct loop *loop, void *data)
{
	struct run *run = data;

	if (loop_is_done(loop))
		run->err = collect(run);
	kfree_skb(run->skb);
}

/*
 * Data comes in on a connection; that of the last segment when its FIN has changed the
 * state already.
 */
static int check_state(const struct sock *sk)
{
	int err = sock_check_tcp(sk);

	return err ?: 1 << sk->sk_state & TCPF_CONNECTED & ~TCPF_LAST_ACK ? 0 : -ENOTCONN;
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

/* A program for one of the two is not run as the other, though the kernel would attach it. */
static int check_hook(const struct run *run)
{
	u32 attach_type = run->prog->expected_attach_type;

	switch (run->in.hook) {
	case BPFUNIT_SK_SKB_PARSER:
		if (attach_type && attach_type != BPF_SK_SKB_STREAM_PARSER)
			return -EINVAL;
		return parser_may_attach(run->prog) ? 0 : -EOPNOTSUPP;
	case BPFUNIT_SK_SKB_VERDICT:
		return attach_type == BPF_SK_SKB_STREAM_PARSER ? -EINVAL : 0;
	default:
		return -EINVAL;
	}
}

static int check_request(const struct run *run)
{
	const struct bpfunit_sk_skb *in = &run->in;

	if (in->head.flags || memchr_inv(in->reserved, 0, sizeof(in->reserved)))
		return -EINVAL;
	/* a segment without data does not come here */
	if (!run->payload.size || in->linear > run->payload.size)
		return -EINVAL;
	return check_hook(run);
}

static int run_request(struct run *run, const struct test_request *request)
{
	int err = check_request(run);

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

int sk_skb_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
		    union bpf_attr __user *uattr)
{
	const struct test_request request = {kattr, uattr};
	struct run run = {.prog = prog, .loop.repeat = request_repeat(&request)};
	int err;

	err = request_read(&request, &run.in, sizeof(run.in), &run.payload, BPFUNIT_SK_SKB_MAX);
	if (err)
		return err;
	err = run_request(&run, &request);
	kvfree(run.payload.bytes);
	return err;
}
