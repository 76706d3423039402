// SPDX-License-Identifier: GPL-2.0
/* What a search has to solve: one program for each kind of comparison. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Another build of the same source, for comparing the two. */
#ifndef STEP
#define STEP 1
#endif

char LICENSE[] SEC("license") = "GPL";

struct rule {
	__u16 low;
	__u16 high;
	__u32 flags;
	__u64 limit;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct rule);
} rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} settings SEC(".maps");

volatile __u32 verbosity = 1;

/* A multiplicative hash, which no bit of the input maps to: one edge stays out of reach. */
SEC("cgroup/connect4")
int stubborn(struct bpf_sock_addr *ctx)
{
	__u32 a = ctx->user_ip4;

	if (a * 2654435761u == 0x12345678)
		return 0;
	return 1;
}

/* Ranges, masks, byte orders, signs, globals, an array and the time. */
SEC("cgroup/connect4")
int values(struct bpf_sock_addr *ctx)
{
	__u32 key = bpf_ntohl(ctx->user_ip4) >> 8, zero = 0;
	__u16 port = bpf_ntohs(ctx->user_port);
	struct rule *rule = bpf_map_lookup_elem(&rules, &key);
	__u64 *setting = bpf_map_lookup_elem(&settings, &zero);

	if (!rule || !setting)
		return 1;
	if (port < rule->low || port > rule->high)
		return 0;
	if ((rule->flags & 0xf0) == 0x50)
		*setting += 1;
	if (*setting > 1000000000000ull)
		return 0;
	if (verbosity == 7)
		*setting += 2;
	if ((__s32)rule->flags < -5)
		return 0;
	if (bpf_ktime_get_ns() > rule->limit + 77)
		return 0;
	return 1;
}

/* A second connection of the same address is another matter. */
SEC("cgroup/connect4")
int twice(struct bpf_sock_addr *ctx)
{
	__u32 key = ctx->user_ip4;
	struct rule fresh = {.flags = 1};
	struct rule *rule = bpf_map_lookup_elem(&rules, &key);

	if (!rule) {
		if (bpf_map_update_elem(&rules, &key, &fresh, BPF_ANY))
			return 0;
		return 1;
	}
	rule->flags += STEP;
	if (rule->flags == 2)
		return 0;
	return 1;
}

SEC("xdp")
int parser(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp;
	__u32 key;

	if ((void *)(eth + 1) > end)
		return XDP_ABORTED;
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if ((void *)(ip + 1) > end || ip->ihl != 5)
		return XDP_DROP;
	if (ip->ttl <= 1)
		return XDP_DROP;
	if (ip->protocol != IPPROTO_TCP)
		return XDP_PASS;
	tcp = (void *)(ip + 1);
	if ((void *)(tcp + 1) > end)
		return XDP_DROP;
	key = ip->saddr;
	if (bpf_map_lookup_elem(&rules, &key))
		return XDP_TX;
	if (tcp->syn && tcp->dest == bpf_htons(2222))
		return XDP_DROP;
	return XDP_PASS;
}

SEC("tc")
int marked(struct __sk_buff *skb)
{
	if (skb->mark == 0xcafe)
		return 2;
	if (skb->priority > 100 && skb->cb[1] == 3)
		return 1;
	return 0;
}

/* No kernel has a test run for what runs behind a redirection. */
SEC("xdp/devmap")
int redirected(struct xdp_md *ctx)
{
	return ctx->ingress_ifindex == 3 ? XDP_DROP : XDP_PASS;
}

/* Options that this kernel refuses: a device that is not there. */
SEC("cgroup/connect4")
int options(struct bpf_sock_addr *ctx)
{
	char missing[16] = "nowhere0", none[16] = "";

	if (bpf_setsockopt(ctx, 1 /* SOL_SOCKET */, 25 /* SO_BINDTODEVICE */, missing, 16))
		return 0;
	if (bpf_setsockopt(ctx, 1, 25, missing, 16) != -19 /* ENODEV */)
		return 0;
	if (bpf_setsockopt(ctx, 1, 25, none, 16) == -1 /* EPERM */)
		ctx->user_port = 0;
	return 1;
}
