// SPDX-License-Identifier: GPL-2.0
/* What the coverage tests run: every kind of control flow that probes have to survive. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

/* Constant once loaded: with 0 the verifier removes what only happens with it set. */
const volatile __u32 strict = 0;
volatile __u64 seen;

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} next_program SEC(".maps");

/* A subprogram: called, not inlined. */
static __noinline int weigh(__u32 proto, __u32 length)
{
	switch (proto) {
	case IPPROTO_TCP:
		return length > 100 ? 3 : 2;
	case IPPROTO_UDP:
		return 5;
	case IPPROTO_ICMP:
	case IPPROTO_IGMP:
		return 7;
	default:
		return 0;
	}
}

/* A global function: verified on its own. */
__noinline int fold(__u32 value)
{
	int bits = 0;

	for (int i = 0; i < 32; i++) {
		if (value & 1)
			bits++;
		value >>= 1;
	}
	return bits;
}

static __always_inline bool between(__u32 value, __u32 low, __u32 high)
{
	return value >= low && value <= high;
}

SEC("xdp")
int classify(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	__u32 length;

	if ((void *)(ip + 1) > end)
		return XDP_ABORTED;
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	length = bpf_ntohs(ip->tot_len);
	seen += weigh(ip->protocol, length);
	if (strict && ip->ttl == 0)
		return XDP_DROP;
	if (between(length, 60, 80) || between(length, 200, 220))
		return XDP_TX;
	seen += fold(ip->saddr);
	return ip->saddr == ip->daddr && length ? XDP_DROP : XDP_PASS;
}

SEC("tc")
int mark(struct __sk_buff *skb)
{
	if (skb->len > 200) {
		skb->mark = 2;
		return TC_ACT_SHOT;
	}
	skb->mark = skb->len & 1 ? 1 : 0;
	bpf_tail_call(skb, &next_program, 0);
	return TC_ACT_OK;
}

SEC("socket")
int longest_run(struct __sk_buff *skb)
{
	__u32 best = 0, run = 0, i;
	__u8 last = 0, now;

	for (i = 0; i < 6; i++) {
		if (bpf_skb_load_bytes(skb, i, &now, 1))
			break;
		run = i && now == last ? run + 1 : 1;
		if (run > best)
			best = run;
		last = now;
	}
	return best;
}

/*
 * Keeps every register in use across a jump. BEFORE is more to do first, with the packet's
 * length in r1.
 */
#define USE_EVERY_REGISTER(before)                                    \
	asm volatile("r1 = *(u32 *)(r1 + 0)\n\t" before "r0 = r1\n\t" \
		     "r2 = 2\n\t"                                     \
		     "r3 = 3\n\t"                                     \
		     "r4 = 4\n\t"                                     \
		     "r5 = 5\n\t"                                     \
		     "r6 = 6\n\t"                                     \
		     "r7 = 7\n\t"                                     \
		     "r8 = 8\n\t"                                     \
		     "r9 = 9\n\t"                                     \
		     "if r1 > 60 goto 1f\n\t"                         \
		     "r0 += 1000\n\t"                                 \
		     "1:\n\t"                                         \
		     "r0 += r1\n\t"                                   \
		     "r0 += r2\n\t"                                   \
		     "r0 += r3\n\t"                                   \
		     "r0 += r4\n\t"                                   \
		     "r0 += r5\n\t"                                   \
		     "r0 += r6\n\t"                                   \
		     "r0 += r7\n\t"                                   \
		     "r0 += r8\n\t"                                   \
		     "r0 += r9\n\t"                                   \
		     "exit\n\t" ::                                    \
			     : "memory")

/* No register is free at its jump: a probe has to save one. */
SEC("socket")
__attribute__((naked)) int crowded(void)
{
	USE_EVERY_REGISTER("");
}

/* And here there is no room to save it either. */
SEC("socket")
__attribute__((naked)) int overcrowded(void)
{
	USE_EVERY_REGISTER("*(u64 *)(r10 - 512) = r1\n\t");
}

static long add_one(__u32 index, void *data)
{
	__u64 *sum = data;

	if (index >= 10)
		return 1;
	*sum += index;
	return 0;
}

/* A callback, called by the kernel: bpf_loop came with Linux 5.17. */
SEC("socket")
int sum_by_callback(struct __sk_buff *skb)
{
	__u64 sum = 0;

	bpf_loop(skb->len, add_one, &sum, 0);
	return sum;
}
