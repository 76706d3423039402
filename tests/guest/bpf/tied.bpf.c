// SPDX-License-Identifier: GPL-2.0
// Programs of many types, each of which tail-calls through an array of its own: the kernel ties the
// array to the first program that uses it.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct jumps {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
};

int runs;

#define TIED(section, name, context)                                   \
	struct jumps name##_jumps SEC(".maps");                        \
                                                                       \
	SEC(section)                                                   \
	int name(struct context *ctx)                                  \
	{                                                              \
		bpf_tail_call(ctx, &name##_jumps, 0);                  \
		runs++;                                                \
		return 1;                                              \
	}                                                              \
                                                                       \
	SEC(section)                                                   \
	int name##_target(struct context *ctx __attribute__((unused))) \
	{                                                              \
		return 0;                                              \
	}

TIED("xdp", on_xdp, xdp_md)
TIED("tc", on_tc, __sk_buff)
TIED("tcx/egress", on_tc_egress, __sk_buff)
TIED("cgroup_skb/egress", on_skb_egress, __sk_buff)
TIED("sockops", on_sockops, bpf_sock_ops)
TIED("cgroup/sysctl", on_sysctl, bpf_sysctl)
TIED("flow_dissector", on_dissector, __sk_buff)
TIED("cgroup/connect6", on_connect6, bpf_sock_addr)

// Two attach types that share an array: refused by 6.12.57, 6.17 and newer, with or without us.
struct jumps shared SEC(".maps");

SEC("cgroup/connect4")
int shared4(struct bpf_sock_addr *ctx)
{
	bpf_tail_call(ctx, &shared, 0);
	return 1;
}

SEC("cgroup/connect6")
int shared6(struct bpf_sock_addr *ctx)
{
	bpf_tail_call(ctx, &shared, 0);
	return 1;
}

// A device map is tied to the programs that redirect through it.
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 4);
	__uint(key_size, 4);
	__uint(value_size, 4);
} devices SEC(".maps");

SEC("xdp")
int redirect(struct xdp_md *ctx __attribute__((unused)))
{
	return bpf_redirect_map(&devices, 0, XDP_PASS);
}

// Of a section that libbpf has work of its own for, and that therefore cannot be rewritten.
struct jumps usdt_jumps SEC(".maps");

SEC("?usdt")
int on_usdt(void *ctx)
{
	if (bpf_get_prandom_u32() > 9)
		bpf_tail_call(ctx, &usdt_jumps, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
