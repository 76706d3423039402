// SPDX-License-Identifier: GPL-2.0
/*
 * A congestion control beside a connect hook. The structure has some of the kernel's members only:
 * libbpf goes by their names.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct sock;

struct tcp_congestion_ops {
	__u32 (*ssthresh)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, __u32 ack, __u32 acked);
	__u32 (*undo_cwnd)(struct sock *sk);
	char name[16];
};

SEC("struct_ops/plain_ssthresh")
__u32 plain_ssthresh(unsigned long long *ctx)
{
	return ctx[0] ? 2 : 1;
}

SEC("struct_ops/plain_avoid")
int plain_avoid(unsigned long long *ctx)
{
	return ctx[1] != 0;
}

SEC("struct_ops/plain_undo")
__u32 plain_undo(unsigned long long *ctx)
{
	return ctx[0] ? 2 : 3;
}

SEC(".struct_ops")
struct tcp_congestion_ops plain = {
	.ssthresh = (void *)plain_ssthresh,
	.cong_avoid = (void *)plain_avoid,
	.undo_cwnd = (void *)plain_undo,
	.name = "bpfunit_plain",
};

SEC("cgroup/connect4")
int beside(struct bpf_sock_addr *ctx)
{
	return ctx->user_port != 0;
}
