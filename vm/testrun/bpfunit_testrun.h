/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/* What the module adds to the interface of BPF_PROG_TEST_RUN. */
#ifndef BPFUNIT_TESTRUN_H
#define BPFUNIT_TESTRUN_H

#include <linux/types.h>

/* In data_out, where the caller asks for it. */
struct bpfunit_result {
	/*
	 * What the hook would hand to the system call: 0, or a negative errno. It is the
	 * program's verdict together with what it set by bpf_set_retval().
	 */
	__s32 err;
};

#endif
