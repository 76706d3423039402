// SPDX-License-Identifier: GPL-2.0
/* A return value that the verifier cannot bound. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("cgroup/connect4")
int go(struct bpf_sock_addr *ctx)
{
	bpf_set_retval(bpf_get_prandom_u32());
	return ctx->user_port != 0;
}
