// SPDX-License-Identifier: GPL-2.0
/* Packet programs that tail-call, and one that leaves every packet alone. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 2);
} next_xdp SEC(".maps"), next_tc SEC(".maps");

SEC("xdp")
int hands_on(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &next_xdp, 1);
	return XDP_PASS;
}

SEC("tc")
int marks_and_hands_on(struct __sk_buff *skb)
{
	skb->mark = 7;
	bpf_tail_call(skb, &next_tc, 0);
	return TC_ACT_OK;
}

SEC("xdp")
int leaves_alone(struct xdp_md *ctx)
{
	return ctx->data ? XDP_DROP : XDP_ABORTED;
}
