// SPDX-License-Identifier: GPL-2.0
/* What the tests of the Python API run: one object with a bit of everything it binds. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct ip_addr {
	union {
		__u32 ip4;
		__u32 ip6[4];
	};
};

typedef struct {
	struct ip_addr addr;
} __attribute__((packed)) route_key;

typedef struct {
	struct ip_addr addr;
	__u32 port;
	__u16 weights[5];
	bool chain;
} __attribute__((packed)) route_value;

struct seen {
	__u64 first_ns;
	struct ip_addr original;
	__u32 runs;
};

struct log_record {
	__u32 ret;
	char msg[60];
};

/* no BTF types, as the mesh declares its maps */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(route_key));
	__uint(value_size, sizeof(route_value));
	__uint(max_entries, 200000);
} routes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct seen);
} seen_storage SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 4);
} next4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 4);
} next6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} event_log SEC(".maps");

volatile __u32 level = 2;
const volatile __u32 step = 1;

static void say(__u32 ret)
{
	struct log_record *record = bpf_ringbuf_reserve(&event_log, sizeof(*record), 0);

	if (!record)
		return;
	record->ret = ret;
	__builtin_memcpy(record->msg, "no route", 9);
	bpf_ringbuf_submit(record, 0);
}

static void remember(struct bpf_sock_addr *ctx, const struct ip_addr *original)
{
	struct seen *seen =
		ctx->sk ? bpf_sk_storage_get(&seen_storage, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE)
			: NULL;

	if (!seen)
		return;
	if (!seen->runs) {
		seen->first_ns = bpf_ktime_get_ns();
		seen->original = *original;
	}
	seen->runs += step;
}

SEC("cgroup/connect4")
int redirect4(struct bpf_sock_addr *ctx)
{
	struct ip_addr original = {.ip6 = {ctx->user_ip4}};
	route_key key = {.addr = original};
	route_value *route;

	if (ctx->protocol != IPPROTO_TCP)
		return 1;
	remember(ctx, &original);
	route = bpf_map_lookup_elem(&routes, &key);
	if (!route) {
		if (level >= 3)
			say(7);
		return 1;
	}
	ctx->user_ip4 = route->addr.ip4;
	ctx->user_port = route->port;
	if (route->chain) {
		bpf_tail_call(ctx, &next4, 0);
		if (level >= 3)
			say(9);
	}
	return 1;
}

SEC("cgroup/connect6")
int redirect6(struct bpf_sock_addr *ctx)
{
	route_key key = {};
	route_value *route;

	key.addr.ip6[0] = ctx->user_ip6[0];
	key.addr.ip6[1] = ctx->user_ip6[1];
	key.addr.ip6[2] = ctx->user_ip6[2];
	key.addr.ip6[3] = ctx->user_ip6[3];
	route = bpf_map_lookup_elem(&routes, &key);
	if (!route)
		return 1;
	ctx->user_ip6[0] = route->addr.ip6[0];
	ctx->user_ip6[1] = route->addr.ip6[1];
	ctx->user_ip6[2] = route->addr.ip6[2];
	ctx->user_ip6[3] = route->addr.ip6[3];
	ctx->user_port = route->port;
	bpf_tail_call(ctx, &next6, 1);
	return 1;
}

SEC("cgroup/sendmsg4")
int source4(struct bpf_sock_addr *ctx)
{
	bpf_printk("sendmsg to port %d", bpf_ntohs((__u16)ctx->user_port));
	ctx->msg_src_ip4 = bpf_htonl(0x7f000009);
	return ctx->msg_src_ip4 == bpf_htonl(0x7f000009);
}

SEC("cgroup/bind4")
int refuse4(struct bpf_sock_addr *ctx)
{
	return bpf_ntohs((__u16)ctx->user_port) != 22;
}

SEC("xdp")
int swap_ports(struct xdp_md *xdp)
{
	__u8 *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&counters, &zero);

	if (count)
		(*count)++;
	if (data + 2 > end)
		return XDP_DROP;
	data[0] ^= 0xff;
	return XDP_PASS;
}

/* so that the types above reach the BTF of the object */
route_key unused_route_key;
route_value unused_route_value;
struct log_record unused_log_record;
