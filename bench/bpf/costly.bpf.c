// SPDX-License-Identifier: GPL-2.0
/* A program that the verifier takes far longer for than for the hook, and that runs fast.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define STEPS 60

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u32);
} costly_seen SEC(".maps");

/* The verifier walks a static function anew for each call. */
static __noinline __u32 fold(__u32 value)
{
	__u32 i;

#pragma clang loop unroll(full)
	for (i = 0; i < STEPS; i++)
		value = (value ^ value >> 3) * (2 * i + 3);
	return value;
}

#define EIGHT(f, v) \
	(f(v) + f(v + 1) + f(v + 2) + f(v + 3) + f(v + 4) + f(v + 5) + f(v + 6) + f(v + 7))

static __noinline __u32 fold8(__u32 value)
{
	return EIGHT(fold, value);
}

static __noinline __u32 fold64(__u32 value)
{
	return EIGHT(fold8, value);
}

static __noinline __u32 fold512(__u32 value)
{
	return EIGHT(fold64, value);
}

SEC("cgroup/connect4")
int costly(struct bpf_sock_addr *ctx)
{
	__u32 sum = 0, key = 1;

	if (ctx->user_port == 0xffff) /* which no test dials */
		sum = fold512(ctx->user_ip4) + fold512(ctx->user_ip4 + 1);
	bpf_map_update_elem(&costly_seen, &key, &sum, BPF_ANY);
	return 1;
}
