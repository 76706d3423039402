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
#include <linux/filter.h>
#include <linux/ptrace.h>
#include <linux/sched.h>

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

/* s390 exports nothing that reads registers; arguments are in 2 to 6 there. */
#ifdef CONFIG_S390
#define function_argument(regs, n) ((regs)->gprs[2 + (n)])
#else
#define function_argument(regs, n) regs_get_kernel_argument(regs, n)
#endif

/* 6.9 moved the flag ("bpf: move sleepable flag from bpf_prog_aux to bpf_prog"). */
static inline bool prog_is_sleepable(const struct bpf_prog *prog)
{
#ifdef HAVE_PROG_SLEEPABLE
	return prog->sleepable;
#else
	return prog->aux->sleepable;
#endif
}

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
 * 7.2 at the latest: a program sees what belongs to TCP only where the caller says that it
 * holds the lock of a TCP socket; is_fullsock said so before.
 */
static inline void set_locked_tcp_sock(struct bpf_sock_ops_kern *kern)
{
#ifdef HAVE_LOCKED_TCP_SOCK
	kern->is_locked_tcp_sock = 1;
#endif
}

/*
 * The return value of getsockopt that a program sees and may change: a field of the
 * context, and since 5.18 that of the run context (cgroup.h), which is found by the task.
 */
static inline void sockopt_set_retval(struct bpf_sockopt_kern *kern, s32 retval)
{
#ifdef HAVE_SOCKOPT_TASK
	kern->current_task = current;
#else
	kern->retval = retval;
#endif
}

static inline bool sockopt_retval(const struct bpf_sockopt_kern *kern, s32 *retval)
{
#ifdef HAVE_SOCKOPT_TASK
	return false;
#else
	*retval = kern->retval;
	return true;
#endif
}

/*
 * 5.14: the connection that an sk_reuseport program is asked about when its listener goes
 * away, by a program that was loaded for that.
 */
static inline bool prog_migrates(const struct bpf_prog *prog)
{
#ifdef HAVE_MIGRATING_SK
	return prog->expected_attach_type == BPF_SK_REUSEPORT_SELECT_OR_MIGRATE;
#else
	return false;
#endif
}

static inline void set_migrating_sk(struct sk_reuseport_kern *kern, struct sock *sk)
{
#ifdef HAVE_MIGRATING_SK
	kern->migrating_sk = sk;
#endif
}

#endif
