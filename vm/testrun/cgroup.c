// SPDX-License-Identifier: GPL-2.0
/* The run context of programs that are attached to a cgroup. */
#include <linux/bpf.h>
#include <linux/bpf-cgroup.h>
#include <linux/err.h>
#include <linux/filter.h>

#include "cgroup.h"

/* Entered for a slice of runs, since it belongs to the task that runs them. */
void cgroup_enter(struct cgroup_run *run, struct bpf_prog *prog)
{
#ifdef HAVE_CG_RUN_RETVAL
	run->item.prog = prog;
	run->cg.prog_item = &run->item;
	run->outer = bpf_set_run_ctx(&run->cg.run_ctx);
#endif
}

void cgroup_leave(struct cgroup_run *run)
{
#ifdef HAVE_CG_RUN_RETVAL
	bpf_reset_run_ctx(run->outer);
#endif
}

/*
 * What the hook hands to the system call, 0 or a negative errno: what
 * bpf_prog_run_array_cg() makes of a program's verdict and of bpf_set_retval().
 */
int cgroup_errno(const struct cgroup_run *run, bool allowed)
{
#ifdef HAVE_CG_RUN_RETVAL
	if (allowed || IS_ERR_VALUE((long)run->cg.retval))
		return run->cg.retval;
#else
	if (allowed)
		return 0;
#endif
	return -EPERM;
}

/* A program with cgroup-local storage wants the storage of the cgroup that it is attached to. */
bool cgroup_needs_storage(const struct bpf_prog *prog)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(prog->aux->cgroup_storage); i++)
		if (prog->aux->cgroup_storage[i])
			return true;
	return false;
}
