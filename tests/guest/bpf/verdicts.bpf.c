// SPDX-License-Identifier: GPL-2.0
/* Programs whose verdict, context or packet the kernel's own test run tells in its own way. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct sum {
	__u64 a, b, total;
};

SEC("tc")
int unspecified(struct __sk_buff *skb)
{
	skb->mark = skb->mark + 1;
	return TC_ACT_UNSPEC;
}

SEC("raw_tp/sys_enter")
int takes_difference(struct bpf_raw_tracepoint_args *ctx)
{
	return (int)(ctx->args[0] - ctx->args[1]);
}

SEC("syscall")
int adds(struct sum *ctx)
{
	ctx->total += ctx->a + ctx->b;
	return ctx->total > 100 ? -7 : 0;
}

SEC("flow_dissector")
int dissects(struct __sk_buff *skb __attribute__((unused)))
{
	return BPF_DROP;
}

SEC("xdp")
int grows(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_head(ctx, -160) || bpf_xdp_adjust_head(ctx, -40) ? XDP_ABORTED
									       : XDP_TX;
}

/* Reads the header where it lies; what is too short is refused. */
SEC("cgroup_skb/egress")
int only_tcp(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data;

	if ((void *)(ip + 1) > end)
		return 0;
	return ip->version == 4 && ip->protocol == IPPROTO_TCP;
}

/* The bytes that lie between the two pointers. */
SEC("cgroup_skb/ingress")
int measures(struct __sk_buff *skb)
{
	skb->mark = (__u32)(skb->data_end - skb->data);
	return 1;
}

SEC("fentry/bpf_fentry_test1")
int enters(void *ctx __attribute__((unused)))
{
	return 0;
}

SEC("fmod_ret/bpf_modify_return_test")
int modifies(void *ctx __attribute__((unused)))
{
	return 3;
}

/* so that tests can build contexts from the object's own types */
struct __sk_buff unused_skb;
struct sum unused_sum;
