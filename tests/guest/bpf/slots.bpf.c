// SPDX-License-Identifier: GPL-2.0
/* A program array that the object itself fills. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

int enter(struct bpf_sock_addr *ctx);
int leave(struct bpf_sock_addr *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, sizeof(int));
	__array(values, int(void *));
} stages SEC(".maps") = {.values = {[1] = (void *)&leave}};

SEC("cgroup/connect4")
int enter(struct bpf_sock_addr *ctx)
{
	bpf_tail_call(ctx, &stages, 1);
	return 0;
}

SEC("cgroup/connect4")
int leave(struct bpf_sock_addr *ctx)
{
	ctx->user_port = 0;
	return 1;
}
