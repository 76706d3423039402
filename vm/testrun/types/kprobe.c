// SPDX-License-Identifier: GPL-2.0
/* kprobe: kprobes, uprobes and their returns, which see the registers where they were hit. */
#include <linux/bpf.h>
#include <linux/ptrace.h>

#include "../bpfunit_testrun.h"
#include "../loop.h"
#include "../request.h"
#include "../tracing.h"
#include "types.h"

struct run {
	struct bpf_prog *prog;
	struct pt_regs crafted;
	struct pt_regs regs; /* the program sees the very structure of the kernel */
	struct tracing_run tracing;
	struct loop loop;
	u32 retval;
};

/* bpf_override_return() writes to the registers, which are then those of the next run. */
static __always_inline void rewind(void *data)
{
	struct run *run = data;

	run->regs = run->crafted;
}

static void run_slice(struct loop *loop, void *data)
{
	struct run *run = data;

	tracing_enter(&run->tracing);
	run->retval = loop_slice(loop, run->prog, &run->regs, rewind, run);
	tracing_leave(&run->tracing);
}

static const struct loop_ops loop_ops = {.slice = run_slice, .pause = loop_rest};

int kprobe_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
		    union bpf_attr __user *uattr)
{
	const struct test_request request = {kattr, uattr};
	struct run run = {.prog = prog, .loop.repeat = request_repeat(&request)};
	int err;

	err = request_check(&request);
	err = err ?: request_read_ctx(&request, &run.crafted, sizeof(run.crafted));
	err = err ?: tracing_read(&run.tracing, prog, &request);
	err = err ?: loop_run(&run.loop, &loop_ops, &run);
	if (err)
		return err;
	/* where execution goes on after bpf_override_return() is the kernel's own business */
	instruction_pointer_set(&run.regs, instruction_pointer(&run.crafted));

	return request_answer(&request, &(const struct answer){
						.retval = run.retval,
						.duration = loop_duration(&run.loop),
						.ctx = {&run.regs, sizeof(run.regs)},
					});
}
