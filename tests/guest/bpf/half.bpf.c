// SPDX-License-Identifier: GPL-2.0
/* One half of an object that is linked of several; SECOND makes the other. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

static volatile int own = 4; /* both have one */

#ifdef SECOND
int calls;

int next_port(int port)
{
	calls += own > 0;
	return port + __builtin_bswap16(1);
}

SEC("cgroup/connect4")
int second(struct bpf_sock_addr *ctx)
{
	return ctx->user_ip4 != 0;
}
#else
extern int calls;
int next_port(int port);

SEC("cgroup/connect4")
int first(struct bpf_sock_addr *ctx)
{
	ctx->user_port = next_port(ctx->user_port) & 0xffff;
	return calls > 0 && own;
}
#endif
