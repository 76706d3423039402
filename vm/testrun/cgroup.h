/* SPDX-License-Identifier: GPL-2.0 */
/* What the cgroup runner keeps around a program, and what it makes of the verdict. */
#ifndef BPFUNIT_TESTRUN_CGROUP_H
#define BPFUNIT_TESTRUN_CGROUP_H

#include <linux/bpf.h>
#include <linux/bpf-cgroup.h>

/*
 * Since 5.18 a context that bpf_get_retval() and bpf_set_retval() work on, and by which
 * bpf_get_local_storage() finds the values of the cgroup; before that nothing.
 */
struct cgroup_run {
#ifdef HAVE_CG_RUN_RETVAL
	struct bpf_cg_run_ctx cg;
	struct bpf_prog_array_item item;
	struct bpf_run_ctx *outer;
	struct bpf_cgroup_storage storage[MAX_BPF_CGROUP_STORAGE_TYPE];
	/* values of our own, for maps that have none */
	struct bpf_storage_buffer *shared;
	void __percpu *percpu;
#endif
};

/* Each run begins with this return value; 0 is a hook that nobody has refused. */
static inline void cgroup_rewind(struct cgroup_run *run, int retval)
{
#ifdef HAVE_CG_RUN_RETVAL
	run->cg.retval = retval;
#endif
}

/* What bpf_get_retval() would return; 0 where nobody can ask. */
static inline int cgroup_retval(const struct cgroup_run *run)
{
#ifdef HAVE_CG_RUN_RETVAL
	return run->cg.retval;
#else
	return 0;
#endif
}

int cgroup_begin(struct cgroup_run *run, const struct bpf_prog *prog);
void cgroup_end(struct cgroup_run *run);
void cgroup_enter(struct cgroup_run *run, struct bpf_prog *prog);
void cgroup_leave(struct cgroup_run *run);
int cgroup_errno(const struct cgroup_run *run, bool allowed);

#endif
