// SPDX-License-Identifier: GPL-2.0
/*
 * Sockets that are made, bound and closed: those of UDP get a mark, raw ones are refused;
 * ports below 1024 and the address ::2 are nobody's; how long each lived is counted.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define SOCK_DGRAM 2
#define SOCK_RAW 3

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} seen SEC(".maps"); /* how often, by socket */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} closed SEC(".maps"); /* marks of those that were closed, added up */

SEC("cgroup/sock_create")
int made(struct bpf_sock *ctx)
{
	__u32 *count = bpf_sk_storage_get(&seen, ctx, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (count)
		(*count)++;
	if (ctx->type == SOCK_RAW)
		return 0;
	if (ctx->type == SOCK_DGRAM) {
		ctx->mark = 0x1234;
		ctx->priority = 3;
	}
	return 1;
}

SEC("cgroup/sock_release")
int gone(struct bpf_sock *ctx)
{
	__u32 zero = 0, *sum = bpf_map_lookup_elem(&closed, &zero);

	if (sum)
		*sum += ctx->mark;
	return 1;
}

SEC("cgroup/post_bind4")
int bound4(struct bpf_sock *ctx)
{
	return ctx->src_port >= 1024;
}

SEC("cgroup/post_bind6")
int bound6(struct bpf_sock *ctx)
{
	return ctx->src_ip6[3] != __builtin_bswap32(2);
}
