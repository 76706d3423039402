/* SPDX-License-Identifier: GPL-2.0 */
/* The types of programs that get a test run: one file each in this directory. */
#ifndef BPFUNIT_TESTRUN_TYPES_H
#define BPFUNIT_TESTRUN_TYPES_H

#include <linux/bpf.h>

/* A type's .test_run. */
typedef int test_run_fn(struct bpf_prog *prog, const union bpf_attr *kattr,
			union bpf_attr __user *uattr);

test_run_fn sock_addr_test_run;
test_run_fn cgroup_device_test_run;
test_run_fn cgroup_sockopt_test_run;
test_run_fn cgroup_sock_test_run;
test_run_fn cgroup_sysctl_test_run; /* with CONFIG_SYSCTL */
test_run_fn sk_msg_test_run; /* with CONFIG_NET_SOCK_MSG */
test_run_fn sk_skb_test_run; /* the same */
test_run_fn sock_ops_test_run;
test_run_fn sk_reuseport_test_run;
test_run_fn kprobe_test_run; /* with CONFIG_BPF_EVENTS */
test_run_fn tracepoint_test_run; /* the same */
test_run_fn cgroup_skb_test_run;

/* Types that the kernel can run by itself are told how, since theirs goes on from there. */
void cgroup_skb_keep_stock(test_run_fn *stock);

#endif
