// SPDX-License-Identifier: GPL-2.0
/* Marks packets for policy routing by their DSCP, and takes one from the TTL. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define TTL_OFFSET (ETH_HLEN + __builtin_offsetof(struct iphdr, ttl))
#define CHECKSUM_OFFSET (ETH_HLEN + __builtin_offsetof(struct iphdr, check))

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 64); /* one for each DSCP */
	__type(key, __u32);
	__type(value, __u32);
} mark_of_dscp SEC(".maps");

SEC("tc")
int mark(struct __sk_buff *skb)
{
	__u16 old_word, new_word;
	__u32 *mark, dscp;
	struct iphdr ip;

	if (skb->protocol != bpf_htons(ETH_P_IP) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return TC_ACT_OK;
	if (ip.ttl <= 1)
		return TC_ACT_SHOT;
	dscp = ip.tos >> 2;
	mark = bpf_map_lookup_elem(&mark_of_dscp, &dscp);
	if (mark && *mark)
		skb->mark = *mark;
	/* TTL and protocol are one 16-bit word of the checksum */
	old_word = bpf_htons(ip.ttl << 8 | ip.protocol);
	new_word = bpf_htons((ip.ttl - 1) << 8 | ip.protocol);
	bpf_l3_csum_replace(skb, CHECKSUM_OFFSET, old_word, new_word, sizeof(new_word));
	bpf_skb_store_bytes(skb, TTL_OFFSET, &new_word, sizeof(new_word), 0);
	return TC_ACT_OK;
}
