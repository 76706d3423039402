// SPDX-License-Identifier: GPL-2.0
/* A helper that every kernel has, in a hook that may not call it. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("cgroup/sendmsg4")
int binds(struct bpf_sock_addr *ctx)
{
	__u64 address[2] = {};

	return !bpf_bind(ctx, (struct sockaddr *)address, sizeof(address));
}
