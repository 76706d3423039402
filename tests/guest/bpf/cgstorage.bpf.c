// SPDX-License-Identifier: GPL-2.0
/*
 * Connects are counted, by the cgroup that the program is attached to; the third and all that
 * follow are denied, but for those to 0.0.0.0.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);
	__type(value, __u64);
} connects SEC(".maps");

SEC("cgroup/connect4")
int limit(struct bpf_sock_addr *ctx)
{
	__u64 *count = bpf_get_local_storage(&connects, 0);

	return ++*count < 3 || ctx->user_ip4 == 0;
}
