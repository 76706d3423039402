// SPDX-License-Identifier: GPL-2.0
/* A program that no verifier accepts: connect4 has no source address to read. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("cgroup/connect4")
int bad_access(struct bpf_sock_addr *ctx)
{
	ctx->user_port = ctx->user_ip4 + ctx->msg_src_ip4;
	return 1;
}
