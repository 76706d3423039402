// SPDX-License-Identifier: GPL-2.0
/* Programs of types that `bpfunit run` cannot run by an address. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("perf_event")
int sampled(void *ctx)
{
	(void)ctx;
	return 0;
}

SEC("cgroup/sysctl")
int reads(struct bpf_sysctl *ctx)
{
	(void)ctx;
	return 1;
}
