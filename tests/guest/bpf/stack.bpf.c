// SPDX-License-Identifier: GPL-2.0
// A bit of everything that depends on libbpf and on the compiler; the tests of tests/stacks run it.

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct target {
	__u32 address;
	__u16 port;
	__u16 weight;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct target);
} targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} jumps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12);
} event_log SEC(".maps");

struct record {
	__u32 ret;
	char msg[12];
};

const volatile int limit = 3;
int level = 7;
int runs;
__u64 last;

SEC("cgroup/connect4")
int decide(struct bpf_sock_addr *ctx)
{
	__u32 port = bpf_ntohs(ctx->user_port);
	struct target *target;
	struct record *record;

	runs++;
	if (bpf_get_prandom_u32() == 42)
		return 0;
	if (runs > limit) {
		record = bpf_ringbuf_reserve(&event_log, sizeof(*record), 0);
		if (record) {
			record->ret = runs;
			__builtin_memcpy(record->msg, "over limit", 11);
			bpf_ringbuf_submit(record, 0);
		}
	}
	target = bpf_map_lookup_elem(&targets, &port);
	if (target) {
		ctx->user_ip4 = target->address;
		ctx->user_port = target->port;
		bpf_tail_call(ctx, &jumps, 1);
	}
	return 1;
}

SEC("cgroup/connect4")
int deny(struct bpf_sock_addr *ctx)
{
	last = ctx->user_ip4;
	return 0;
}

static __attribute__((noinline)) int weigh(const __u8 *data, const __u8 *end)
{
	int sum = 0;

	for (int n = 0; n < 32; n++) {
		if (data + n + 1 > end)
			break;
		sum += data[n];
	}
	return sum;
}

SEC("xdp")
int filter(struct xdp_md *ctx)
{
	const __u8 *data = (void *)(long)ctx->data;
	const __u8 *end = (void *)(long)ctx->data_end;

	return weigh(data, end) > 100 ? XDP_DROP : XDP_PASS;
}

SEC("?cgroup/connect4")
int refused(struct bpf_sock_addr *ctx)
{
	__u32 port = ctx->user_port;
	struct target *target = bpf_map_lookup_elem(&targets, &port);

	return target->weight & 1;
}
