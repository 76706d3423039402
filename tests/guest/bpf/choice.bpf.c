// SPDX-License-Identifier: GPL-2.0
/* A program that is refused, one that is not, and one that is loaded on request. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} table SEC(".maps");

SEC("cgroup/connect4")
int unchecked(struct bpf_sock_addr *ctx)
{
	__u32 key = 1, *value = bpf_map_lookup_elem(&table, &key);

	ctx->user_ip4 = *value;
	return 1;
}

SEC("cgroup/connect4")
int sound(struct bpf_sock_addr *ctx)
{
	return ctx->user_port != 0;
}

SEC("?cgroup/connect4")
int on_request(struct bpf_sock_addr *ctx)
{
	ctx->user_port = 0;
	return 1;
}
