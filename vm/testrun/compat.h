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

#endif
