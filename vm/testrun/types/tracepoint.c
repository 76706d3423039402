// SPDX-License-Identifier: GPL-2.0
/* tracepoint: a record of an event, as its format file in tracefs describes it. */
#include <linux/bpf.h>
#include <linux/mm.h>
#include <linux/perf_event.h>
#include <linux/slab.h>
#include <linux/trace_events.h>

#include "../bpfunit_testrun.h"
#include "../loop.h"
#include "../request.h"
#include "../tracing.h"
#include "types.h"

struct run {
	struct bpf_prog *prog;
	void *record;
	u32 size;
	struct pt_regs regs;
	struct tracing_run tracing;
	struct loop loop;
	u32 retval;
};

/*
 * The first eight bytes are not the program's to see: helpers find the registers of the
 * event by them, as perf_trace_run_bpf_submit() leaves them there.
 */
static __always_inline void rewind(void *data)
{
}

static void run_slice(struct loop *loop, void *data)
{
	struct run *run = data;

	tracing_enter(&run->tracing);
	perf_fetch_caller_regs(&run->regs);
	*(struct pt_regs **)run->record = &run->regs;
	run->retval = loop_slice(loop, run->prog, run->record, rewind, run);
	*(struct pt_regs **)run->record = NULL;
	tracing_leave(&run->tracing);
}

static const struct loop_ops loop_ops = {.slice = run_slice, .pause = loop_rest};

/* As attaching does, refuse a program that reads past the end of the event. */
static int read_record(struct run *run, const struct test_request *request)
{
	u32 size = request->kattr->test.ctx_size_in;
	int err;

	if (!request->kattr->test.ctx_in || size < sizeof(u64))
		return -EINVAL;
	if (size > PERF_MAX_TRACE_SIZE)
		return -E2BIG;
	if (size < run->prog->aux->max_ctx_offset)
		return -EACCES;
	run->size = size;
	run->record = kvzalloc(size, GFP_KERNEL_ACCOUNT);
	if (!run->record)
		return -ENOMEM;
	if (copy_from_user(run->record, u64_to_user_ptr(request->kattr->test.ctx_in), size))
		err = -EFAULT;
	else
		err = *(u64 *)run->record ? -EINVAL : 0;
	return err;
}

int tracepoint_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
			union bpf_attr __user *uattr)
{
	const struct test_request request = {kattr, uattr};
	struct run run = {.prog = prog, .loop.repeat = request_repeat(&request)};
	int err;

	err = request_check(&request) ?: tracing_read(&run.tracing, prog, &request);
	err = err ?: read_record(&run, &request);
	err = err ?: loop_run(&run.loop, &loop_ops, &run);
	err = err
		      ?: request_answer(&request, &(const struct answer){
							  .retval = run.retval,
							  .duration = loop_duration(&run.loop),
							  .ctx = {run.record, run.size},
						  });
	kvfree(run.record);
	return err;
}
