// SPDX-License-Identifier: GPL-2.0
/* cgroup_device: whether a device node may be opened or made. */
#include <linux/bpf.h>
#include <linux/kdev_t.h>

#include "../bpfunit_testrun.h"
#include "../cgroup.h"
#include "../loop.h"
#include "../request.h"
#include "types.h"

struct run {
	struct bpf_prog *prog;
	struct bpf_cgroup_dev_ctx ctx; /* the program sees the very structure of the UAPI */
	struct cgroup_run cgroup;
	struct loop loop;
	u32 retval;
	struct bpfunit_result result;
};

/* Whether a system call asks for this: the callers of devcgroup_check_permission(). */
static bool can_be_asked(const struct bpf_cgroup_dev_ctx *ctx)
{
	u32 type = ctx->access_type & 0xffff, access = ctx->access_type >> 16;

	if (type != BPF_DEVCG_DEV_BLOCK && type != BPF_DEVCG_DEV_CHAR)
		return false;
	if (ctx->major > MAJOR(~0U) || ctx->minor > MINORMASK)
		return false;
	if (access ==
	    BPF_DEVCG_ACC_MKNOD) /* character device 0:0 is a whiteout, which anyone makes */
		return ctx->major || ctx->minor || type == BPF_DEVCG_DEV_BLOCK;
	/* none at all is access(2) with X_OK; a node of 0:0 is not asked about */
	return !(access & ~(BPF_DEVCG_ACC_READ | BPF_DEVCG_ACC_WRITE)) &&
	       (ctx->major || ctx->minor);
}

static __always_inline void rewind(void *data)
{
	struct run *run = data;

	cgroup_rewind(&run->cgroup, 0);
}

static void run_slice(struct loop *loop, void *data)
{
	struct run *run = data;

	cgroup_enter(&run->cgroup, run->prog);
	run->retval = loop_slice(loop, run->prog, &run->ctx, rewind, run);
	cgroup_leave(&run->cgroup);
}

static const struct loop_ops loop_ops = {.slice = run_slice, .pause = loop_rest};

int cgroup_device_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
			   union bpf_attr __user *uattr)
{
	const struct test_request request = {kattr, uattr};
	struct run run = {.prog = prog, .loop.repeat = request_repeat(&request)};
	int err;

	err = request_check(&request) ?: request_refuse_data(&request);
	err = err ?: request_read_ctx(&request, &run.ctx, sizeof(run.ctx));
	if (err)
		return err;
	if (!can_be_asked(&run.ctx))
		return -EINVAL;

	err = cgroup_begin(&run.cgroup, prog) ?: loop_run(&run.loop, &loop_ops, &run);
	cgroup_end(&run.cgroup);
	if (err)
		return err;
	run.result.err = cgroup_errno(&run.cgroup, run.retval);

	return request_answer(&request, &(const struct answer){
						.retval = run.retval,
						.duration = loop_duration(&run.loop),
						.ctx = {&run.ctx, sizeof(run.ctx)},
						.data = {&run.result, sizeof(run.result)},
					});
}
