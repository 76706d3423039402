// SPDX-License-Identifier: GPL-2.0
/* cgroup_sockopt: what setsockopt(2) asks for, and what getsockopt(2) answers. */
#include <linux/bpf.h>
#include <linux/err.h>
#include <linux/filter.h>
#include <linux/slab.h>
#include <linux/tcp.h>
#include <net/sock.h>

#include "../bpfunit_testrun.h"
#include "../cgroup.h"
#include "../compat.h"
#include "../loop.h"
#include "../request.h"
#include "../sock.h"
#include "types.h"

/* What a program of setsockopt may write to, however short the caller's value is. */
#define SET_ROOM_MIN 16

struct run {
	struct bpf_prog *prog;
	struct bpfunit_sockopt in;
	struct payload payload;
	struct bpf_sockopt_kern kern;
	u32 room; /* bytes between optval and optval_end */
	s32 optlen; /* what the program sees of it */
	struct cgroup_run cgroup;
	struct loop loop;
	u32 retval;
	struct bpfunit_sockopt_result *result; /* the bytes that the program works on follow */
};

static bool is_get(const struct run *run)
{
	return run->prog->expected_attach_type == BPF_CGROUP_GETSOCKOPT;
}

static __always_inline void rewind(void *data)
{
	struct run *run = data;
	u32 size = run->payload.size;

	memcpy(run->kern.optval, run->payload.bytes, size);
	memset(run->kern.optval + size, 0, run->room - size);
	run->kern.level = run->in.level;
	run->kern.optname = run->in.optname;
	run->kern.optlen = run->optlen;
	sockopt_set_retval(&run->kern, run->in.retval);
	cgroup_rewind(&run->cgroup, run->in.retval);
}

static void run_slice(struct loop *loop, void *data)
{
	struct run *run = data;

	cgroup_enter(&run->cgroup, run->prog);
	run->retval = loop_slice(loop, run->prog, &run->kern, rewind, run);
	cgroup_leave(&run->cgroup);
}

static int pause_run(void *data)
{
	struct run *run = data;

	sock_yield(run->kern.sk);
	return 0;
}

static const struct loop_ops loop_ops = {.slice = run_slice, .pause = pause_run};

/* What __cgroup_bpf_run_filter_setsockopt() makes of it. */
static void judge_set(const struct run *run, struct bpfunit_sockopt_result *result)
{
	s32 optlen = run->kern.optlen;

	result->err = cgroup_errno(&run->cgroup, run->retval);
	if (result->err < 0)
		return;
	if (result->err > 0 || optlen == -1) { /* a positive value is none to the caller */
		result->err = 0;
		result->action = BPFUNIT_SOCKOPT_BYPASS;
	} else if (optlen < -1 || optlen > (s32)run->room) {
		result->err = -EFAULT;
	} else if (optlen) {
		result->action = BPFUNIT_SOCKOPT_REPLACE;
	}
}

/* What __cgroup_bpf_run_filter_getsockopt() makes of it. */
static void judge_get(const struct run *run, struct bpfunit_sockopt_result *result)
{
	bool in_context = sockopt_retval(&run->kern, &result->retval);
	s32 optlen = run->kern.optlen;

	result->err = cgroup_errno(&run->cgroup, run->retval);
	if (result->err < 0)
		return;
	if (optlen < 0 || optlen > (s32)run->room) {
		result->err = -EFAULT;
		return;
	}
	if (in_context) {
		if (result->retval && result->retval != run->in.retval) {
			result->err = -EFAULT;
			return;
		}
		result->err = result->retval;
	}
	if (optlen)
		result->action = BPFUNIT_SOCKOPT_REPLACE;
}

static void judge(const struct run *run)
{
	struct bpfunit_sockopt_result *result = run->result;

	result->level = run->kern.level;
	result->optname = run->kern.optname;
	result->optlen = run->kern.optlen;
	result->retval = cgroup_retval(&run->cgroup);
	result->action = BPFUNIT_SOCKOPT_KEEP;
	result->size = run->room;
	if (is_get(run))
		judge_get(run, result);
	else
		judge_set(run, result);
}

/*
 * The hook runs for sockets of every family, with the socket locked. One question of
 * TCP's comes by another way, where the program has no bytes at all.
 */
static int run_locked(struct run *run, struct sock *sk)
{
	int err;

	if (!sk || !sk_fullsock(sk))
		return -ENOTCONN;
	if (is_get(run) && !sock_check_tcp(sk) && run->in.level == SOL_TCP &&
	    run->in.optname == TCP_ZEROCOPY_RECEIVE)
		return -EOPNOTSUPP;
	lock_sock(sk);
	run->kern.sk = sk;
	err = loop_run(&run->loop, &loop_ops, run);
	release_sock(sk);
	return err;
}

/* How much the program sees, and whether a system call comes to it with that. */
static int check_request(struct run *run)
{
	const struct bpfunit_sockopt *in = &run->in;

	if (in->head.flags || memchr_inv(in->reserved, 0, sizeof(in->reserved)))
		return -EINVAL;
	if (!is_get(run)) {
		if (in->room || in->retval)
			return -EINVAL;
		run->room = max_t(u32, run->payload.size, SET_ROOM_MIN);
		run->optlen = run->payload.size;
		return 0;
	}
	if (in->room > BPFUNIT_SOCKOPT_MAX)
		return -E2BIG;
	if (run->payload.size > in->room || in->retval > 0 || in->retval < -MAX_ERRNO)
		return -EINVAL;
	/* after a failure the program gets zeroes, and the length that the caller gave */
	if (in->retval && run->payload.size)
		return -EINVAL;
	run->room = in->room;
	run->optlen = in->retval ? in->room : run->payload.size;
	return 0;
}

static int run_request(struct run *run, const struct test_request *request)
{
	struct sock_ref ref;
	int err;

	err = check_request(run) ?: sock_ref_get(&ref, run->in.head.sock);
	if (err)
		return err;
	run->result = kzalloc(sizeof(*run->result) + run->room, GFP_KERNEL_ACCOUNT);
	if (run->result) {
		run->kern.optval = (u8 *)(run->result + 1);
		run->kern.optval_end = run->kern.optval + run->room;
		err = run_locked(run, ref.socket->sk);
	} else {
		err = -ENOMEM;
	}
	sock_ref_put(&ref);
	if (!err) {
		const struct answer answer = {
			.retval = run->retval,
			.duration = loop_duration(&run->loop),
			.data = {run->result, sizeof(*run->result) + run->room},
		};

		judge(run);
		err = request_answer(request, &answer);
	}
	kfree(run->result);
	return err;
}

int cgroup_sockopt_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
			    union bpf_attr __user *uattr)
{
	const struct test_request request = {kattr, uattr};
	struct run run = {.prog = prog, .loop.repeat = request_repeat(&request)};
	int err;

	err = request_read(&request, &run.in, sizeof(run.in), &run.payload, BPFUNIT_SOCKOPT_MAX);
	if (err)
		return err;
	err = cgroup_begin(&run.cgroup, prog) ?: run_request(&run, &request);
	cgroup_end(&run.cgroup);
	kvfree(run.payload.bytes);
	return err;
}
