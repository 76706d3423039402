// SPDX-License-Identifier: GPL-2.0
/* Loads that extend the sign: one instruction with -mcpu=v4, two before. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

volatile short level = -2;
volatile int wide;

SEC("cgroup/connect4")
int go(struct bpf_sock_addr *ctx)
{
	wide = level;
	return ctx->user_port != 0;
}
