/* SPDX-License-Identifier: GPL-2.0 */
/* What kprobe and tracepoint programs have in common. */
#ifndef BPFUNIT_TESTRUN_TRACING_H
#define BPFUNIT_TESTRUN_TRACING_H

#include <linux/bpf.h>

#include "bpfunit_testrun.h"
#include "request.h"

/* Since 5.15 a context that the program's cookie is read from, before that nothing. */
struct tracing_run {
	struct bpfunit_tracing in;
#ifdef HAVE_TRACE_RUN_CTX
	struct bpf_trace_run_ctx ctx;
	struct bpf_run_ctx *outer;
#endif
};

int tracing_read(struct tracing_run *run, const struct bpf_prog *prog,
		 const struct test_request *request);
void tracing_enter(struct tracing_run *run);
void tracing_leave(struct tracing_run *run);

#endif
