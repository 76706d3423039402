// SPDX-License-Identifier: GPL-2.0
/* What a program asks of the kernel's configuration. */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

extern int LINUX_KERNEL_VERSION __kconfig;
extern unsigned long CONFIG_HZ __kconfig;
extern bool CONFIG_INET __kconfig;
extern bool CONFIG_OF_NO_KERNEL __kconfig __weak;

__u32 version;
__u64 ticks;
bool inet;
bool absent = true;

SEC("cgroup/connect4")
int ask(struct bpf_sock_addr *ctx)
{
	version = LINUX_KERNEL_VERSION;
	ticks = CONFIG_HZ;
	inet = CONFIG_INET;
	absent = CONFIG_OF_NO_KERNEL;
	return ctx->user_port != 0;
}
