// SPDX-License-Identifier: GPL-2.0
/*
 * Programs that do nothing: what is left when they run is the cost of the run loop itself, the
 * floor under every other figure. And one that does nothing plus one instruction, to see one
 * instruction.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

SEC("cgroup/connect4")
int empty_connect4(struct bpf_sock_addr *ctx)
{
	return 1;
}

SEC("cgroup/connect6")
int empty_connect6(struct bpf_sock_addr *ctx)
{
	return 1;
}

SEC("cgroup/sendmsg4")
int empty_sendmsg4(struct bpf_sock_addr *ctx)
{
	return 1;
}

SEC("cgroup/recvmsg4")
int empty_recvmsg4(struct bpf_sock_addr *ctx)
{
	return 1;
}

SEC("sockops")
int empty_sockops(struct bpf_sock_ops *ctx)
{
	return 1;
}

SEC("sk_msg")
int empty_sk_msg(struct sk_msg_md *msg)
{
	return SK_PASS;
}
