// SPDX-License-Identifier: GPL-2.0
/* Programs of types that every kernel can test-run by itself. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 16);
} dropped SEC(".maps");

/* Drops UDP to port 9 and counts it by source address. */
SEC("xdp")
int drop_discard(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__u64 one = 1, *count;
	__u32 source;

	if ((void *)(udp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return XDP_PASS;
	if (ip->protocol != IPPROTO_UDP || udp->dest != bpf_htons(9))
		return XDP_PASS;
	source = ip->saddr;
	count = bpf_map_lookup_elem(&dropped, &source);
	if (count)
		(*count)++;
	else
		bpf_map_update_elem(&dropped, &source, &one, BPF_ANY);
	return XDP_DROP;
}

/* Puts the packet's length into its mark and lowers the time to live. */
SEC("tc")
int lower_ttl(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);

	skb->mark = skb->len;
	if ((void *)(ip + 1) > end)
		return TC_ACT_SHOT;
	ip->ttl--;
	return TC_ACT_OK;
}

SEC("cgroup_skb/egress")
int only_udp(struct __sk_buff *skb)
{
	struct iphdr ip;

	/* the kernel's test run sets no data_end for this type, so loads are the way */
	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
		return 0;
	return ip.protocol == IPPROTO_UDP;
}

SEC("sk_lookup")
int refuse_port_7(struct bpf_sk_lookup *ctx)
{
	return ctx->local_port == 7 ? SK_DROP : SK_PASS;
}

struct seen {
	__u32 family, protocol, local_port;
	__u16 remote_port; /* network byte order */
	__u32 local4, remote4;
	__u32 local6[4], remote6[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct seen);
} lookup_seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} servers SEC(".maps");

/* Notes who connects to what, and hands it to the server, if there is one of that family. */
SEC("sk_lookup")
int to_the_server(struct bpf_sk_lookup *ctx)
{
	__u32 first = 0;
	struct seen *seen = bpf_map_lookup_elem(&lookup_seen, &first);
	struct bpf_sock *sk;
	long err;

	if (!seen)
		return SK_DROP;
	seen->family = ctx->family;
	seen->protocol = ctx->protocol;
	seen->local_port = ctx->local_port;
	seen->remote_port = (__u16)ctx->remote_port;
	seen->local4 = ctx->local_ip4;
	seen->remote4 = ctx->remote_ip4;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		seen->local6[i] = ctx->local_ip6[i];
		seen->remote6[i] = ctx->remote_ip6[i];
	}
	sk = bpf_map_lookup_elem(&servers, &first);
	if (!sk)
		return SK_PASS;
	err = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return err ? SK_DROP : SK_PASS;
}

/* so that tests can build contexts from the object's own types */
struct __sk_buff unused_skb;
struct bpf_sk_lookup unused_lookup;
