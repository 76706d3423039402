// SPDX-License-Identifier: GPL-2.0
/*
 * A group of workers: datagrams go to the worker whose number is their first byte, those that
 * begin with an X to nobody; connections go by their hash; when a listener goes away, worker 0
 * gets its connections.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define IPPROTO_UDP 17

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} workers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} asked SEC(".maps"); /* how often */

static __always_inline void count(void)
{
	__u32 zero = 0, *times = bpf_map_lookup_elem(&asked, &zero);

	if (times)
		(*times)++;
}

SEC("sk_reuseport")
int choose(struct sk_reuseport_md *ctx)
{
	__u32 key = 0;
	__u8 first = 0;

	count();
	if (ctx->ip_protocol == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(ctx, 8, &first, 1))
			return SK_PASS;
		if (first == 'X')
			return SK_DROP;
		key = first - '0';
	} else {
		key = ctx->hash % 4;
	}
	bpf_sk_select_reuseport(ctx, &workers, &key, 0);
	return SK_PASS;
}

#ifdef MIGRATE
SEC("sk_reuseport/migrate")
int migrate(struct sk_reuseport_md *ctx)
{
	__u32 key = ctx->migrating_sk ? 0 : 1;

	bpf_sk_select_reuseport(ctx, &workers, &key, 0);
	return SK_PASS;
}
#endif
