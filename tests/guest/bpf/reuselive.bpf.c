// SPDX-License-Identifier: GPL-2.0
/* Programs of a group of sockets that write down what they see, and do as a plan says. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct plan {
	__u32 retval;
	__u32 selects;
	__u32 key;
	__u32 flags;
	__u32 by_hash;
	__u32 offset; /* of the bytes to load */
	__u32 start; /* BPF_HDR_START_* */
};

struct sighting {
	__u32 runs;
	__u32 len;
	__u32 eth_protocol;
	__u32 ip_protocol;
	__u32 bind_inany;
	__u32 hash;
	__u32 linear;
	__s32 loaded;
	__s32 relative;
	__s32 selected;
	__u32 sock[8];
	__u32 migrating[8];
	__u8 direct[8];
	__u8 bytes[24];
	__u8 header[24];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct plan);
	__uint(max_entries, 1);
} plans SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct sighting);
	__uint(max_entries, 1);
} sightings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} workers SEC(".maps");

#ifdef MIGRATE
static __always_inline void look_at(struct bpf_sock *sk, __u32 *words)
{
	words[0] = sk->family;
	words[1] = sk->dst_ip4;
	words[3] = sk->src_ip4;
	words[4] = sk->src_ip6[3];
	words[5] = sk->src_port;
	words[6] = sk->bound_dev_if;
}
#endif

static __always_inline int act(struct sk_reuseport_md *ctx)
{
	__u32 zero = 0, key;
	struct plan *plan = bpf_map_lookup_elem(&plans, &zero);
	struct sighting *seen = bpf_map_lookup_elem(&sightings, &zero);
	__u8 *data = ctx->data, *end = ctx->data_end;

	if (!plan || !seen)
		return SK_PASS;
	seen->runs++;
	seen->len = ctx->len;
	seen->eth_protocol = ctx->eth_protocol;
	seen->ip_protocol = ctx->ip_protocol;
	seen->bind_inany = ctx->bind_inany;
	seen->hash = ctx->hash;
	seen->linear = end - data;
	if (data + 8 <= end)
		__builtin_memcpy(seen->direct, data, 8);
	seen->loaded = bpf_skb_load_bytes(ctx, plan->offset, seen->bytes, sizeof(seen->bytes));
	seen->relative = bpf_skb_load_bytes_relative(ctx, plan->offset, seen->header,
						     sizeof(seen->header), plan->start);
#ifdef MIGRATE
	look_at(ctx->sk, seen->sock);
	if (ctx->migrating_sk)
		look_at(ctx->migrating_sk, seen->migrating);
#endif
	key = plan->by_hash ? ctx->hash % 5 : plan->key;
	if (plan->selects)
		seen->selected = bpf_sk_select_reuseport(ctx, &workers, &key, plan->flags);
	return plan->retval;
}

SEC("sk_reuseport")
int choose(struct sk_reuseport_md *ctx)
{
	return act(ctx);
}

#ifdef MIGRATE
SEC("sk_reuseport/migrate")
int migrate(struct sk_reuseport_md *ctx)
{
	return act(ctx);
}
#endif
