// SPDX-License-Identifier: GPL-2.0
/* What the tracing runner keeps around a program: trace_call_bpf(), bpf_trace_run_ctx. */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/mm.h>
#include <linux/preempt.h>

#include "compat.h"
#include "tracing.h"

/*
 * The header, which may be left out. Programs that the kernel runs with another run
 * context (kprobe_multi and its kin), or where they may sleep, are refused.
 */
int tracing_read(struct tracing_run *run, const struct bpf_prog *prog,
		 const struct test_request *request)
{
	const union bpf_attr *kattr = request->kattr;
	struct payload payload;
	int err;

	memset(run, 0, sizeof(*run));
	if (prog->expected_attach_type || prog_is_sleepable(prog))
		return -EOPNOTSUPP;
	if (!kattr->test.data_in && !kattr->test.data_size_in)
		return 0;
	err = request_read_data(request, &run->in, sizeof(run->in), &payload, 0);
	if (err)
		return err;
	kvfree(payload.bytes);
	if (run->in.head.flags || run->in.head.sock)
		return -EINVAL;
#ifndef HAVE_TRACE_RUN_CTX
	if (run->in.cookie)
		return -EOPNOTSUPP;
#endif
	return 0;
}

/* The helpers' buffers are the processor's. */
void tracing_enter(struct tracing_run *run)
{
	preempt_disable();
#ifdef HAVE_TRACE_RUN_CTX
	run->ctx.bpf_cookie = run->in.cookie;
	run->outer = bpf_set_run_ctx(&run->ctx.run_ctx);
#endif
}

void tracing_leave(struct tracing_run *run)
{
#ifdef HAVE_TRACE_RUN_CTX
	bpf_reset_run_ctx(run->outer);
#endif
	preempt_enable();
}
