/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Every difference between the kernels that the module is built for.
 *
 * HAVE_* come from Kbuild, which looks into the headers; the rest is told by macros
 * and types that the headers define.
 */
#ifndef BPFUNIT_TESTRUN_COMPAT_H
#define BPFUNIT_TESTRUN_COMPAT_H

#include <linux/bpf.h>
#include <linux/err.h>
#include <linux/filter.h>
#include <linux/ptrace.h>

/* 5.15 turned the macro into a function ("bpf: Refactor BPF_PROG_RUN into a function"). */
#ifdef BPF_PROG_RUN
#define bpf_prog_run(prog, ctx) BPF_PROG_RUN(prog, ctx)
#endif

/* 5.18 added batch_size; an older bpf(2) refuses it by itself, as bytes that it does not know. */
#ifdef BPF_F_TEST_XDP_LIVE_FRAMES
#define test_batch_size(kattr) ((kattr)->test.batch_size)
#else
#define test_batch_size(kattr) 0
#endif

/*
 * The function that every program passes through on its way to being runnable, and
 * where among its arguments the program stands. The types are checked, so that a
 * kernel which moves the argument fails to build and does not crash.
 */
#ifdef HAVE_SELECT_RUNTIME_ENV
#define SELECT_RUNTIME "__bpf_prog_select_runtime"
#define SELECT_RUNTIME_PROG_ARG 1
typedef struct bpf_prog *select_runtime_fn(struct bpf_verifier_env *, struct bpf_prog *, int *);
static_assert(__same_type(__bpf_prog_select_runtime, select_runtime_fn));
#else
#define SELECT_RUNTIME "bpf_prog_select_runtime"
#define SELECT_RUNTIME_PROG_ARG 0
typedef struct bpf_prog *select_runtime_fn(struct bpf_prog *, int *);
static_assert(__same_type(bpf_prog_select_runtime, select_runtime_fn));
#endif

/* A pointer to struct sockaddr, since 6.19 to struct sockaddr_unsized. */
typedef typeof_member(struct bpf_sock_addr_kern, uaddr) uaddr_ptr;

static inline void set_uaddr(struct bpf_sock_addr_kern *kern, void *uaddr, u32 len)
{
	kern->uaddr = (uaddr_ptr)uaddr;
#ifdef HAVE_UADDRLEN
	kern->uaddrlen = len;
#endif
}

/*
 * What the cgroup runner keeps around a program: since 5.18 a context that
 * bpf_get_retval() and bpf_set_retval() work on, before that nothing.
 */
struct hook_env {
#ifdef HAVE_CG_RUN_RETVAL
	struct bpf_cg_run_ctx cg;
	struct bpf_prog_array_item item;
	struct bpf_run_ctx *outer;
#endif
};

#ifdef HAVE_CG_RUN_RETVAL
static inline void hook_env_enter(struct hook_env *env, struct bpf_prog *prog)
{
	env->item.prog = prog;
	env->cg.prog_item = &env->item;
	env->outer = bpf_set_run_ctx(&env->cg.run_ctx);
}

static inline void hook_env_leave(struct hook_env *env)
{
	bpf_reset_run_ctx(env->outer);
}

static inline void hook_env_rewind(struct hook_env *env)
{
	env->cg.retval = 0;
}

/* What bpf_prog_run_array_cg() makes of a program's verdict. */
static inline int hook_env_errno(const struct hook_env *env, bool allowed)
{
	if (!allowed && !IS_ERR_VALUE((long)env->cg.retval))
		return -EPERM;
	return env->cg.retval;
}
#else
static inline void hook_env_enter(struct hook_env *env, struct bpf_prog *prog)
{
}

static inline void hook_env_leave(struct hook_env *env)
{
}

static inline void hook_env_rewind(struct hook_env *env)
{
}

static inline int hook_env_errno(const struct hook_env *env, bool allowed)
{
	return allowed ? 0 : -EPERM;
}
#endif

#endif
