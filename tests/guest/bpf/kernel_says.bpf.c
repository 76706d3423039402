// SPDX-License-Identifier: GPL-2.0
/* One program that does the same in every kernel, and one that asks which kernel it runs in. */
#include <linux/bpf.h>
#include <linux/version.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

extern int LINUX_KERNEL_VERSION __kconfig;

SEC("cgroup/connect4")
int any_kernel(struct bpf_sock_addr *ctx)
{
	if (ctx->user_ip4 == 1)
		return 0;
	return 1;
}

SEC("cgroup/connect4")
int new_kernel(struct bpf_sock_addr *ctx)
{
	if (ctx->user_ip4 == 1)
		return LINUX_KERNEL_VERSION >= KERNEL_VERSION(6, 0, 0);
	return 1;
}
