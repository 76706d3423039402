// SPDX-License-Identifier: GPL-2.0
/* Programs that two runs on two sockets, or two runs on one, would tell apart. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define SOL_SOCKET 1
#define SO_PRIORITY 12
#define SO_MARK 36
#define AF_INET 2

struct backend {
	__u32 ip, port;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, __u64);
	__type(value, struct backend);
	__uint(max_entries, 64);
} reverse SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u64);
	__type(value, __u64);
	__uint(max_entries, 64);
} entries SEC(".maps");

struct sockaddr;

/* The reverse NAT of a socket load balancer: where a socket wanted to go, by its cookie. */
static __always_inline int forward(struct bpf_sock_addr *ctx)
{
	struct backend wanted = {ctx->user_ip4, ctx->user_port};
	__u64 cookie = bpf_get_socket_cookie(ctx);

	bpf_map_update_elem(&reverse, &cookie, &wanted, BPF_ANY);
	ctx->user_ip4 = bpf_htonl(0x0af40005);
	ctx->user_port = bpf_htons(8080);
	return 1;
}

static __always_inline int back(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct backend *wanted = bpf_map_lookup_elem(&reverse, &cookie);

	if (wanted) {
		ctx->user_ip4 = wanted->ip;
		ctx->user_port = wanted->port;
	}
	return 1;
}

SEC("cgroup/connect4")
int connects(struct bpf_sock_addr *ctx)
{
	return forward(ctx);
}

SEC("cgroup/sendmsg4")
int sends(struct bpf_sock_addr *ctx)
{
	return forward(ctx);
}

SEC("cgroup/recvmsg4")
int receives(struct bpf_sock_addr *ctx)
{
	return back(ctx);
}

SEC("cgroup/getpeername4")
int names_peer(struct bpf_sock_addr *ctx)
{
	return back(ctx);
}

static __always_inline int enter(__u64 key, __u64 value)
{
	bpf_map_update_elem(&entries, &key, &value, BPF_ANY);
	return 1;
}

SEC("cgroup/connect4")
int by_time(struct bpf_sock_addr *ctx __attribute__((unused)))
{
	return enter(bpf_ktime_get_ns(), 7);
}

SEC("cgroup/connect4")
int by_chance(struct bpf_sock_addr *ctx __attribute__((unused)))
{
	enter(bpf_get_prandom_u32(), 1);
	return enter(bpf_get_prandom_u32(), 2);
}

SEC("cgroup/connect4")
int by_namespace(struct bpf_sock_addr *ctx)
{
	return enter(bpf_get_netns_cookie(ctx), 1);
}

/* Binds its socket; a second run finds it bound. */
SEC("cgroup/connect4")
int binds(struct bpf_sock_addr *ctx)
{
	struct sockaddr_in local = {
		.sin_family = AF_INET,
		.sin_port = bpf_htons(22444),
		.sin_addr = {bpf_htonl(0x7f000001)},
	};

	return !bpf_bind(ctx, (struct sockaddr *)&local, sizeof(local));
}

/* Grants the first call on a socket, and marks it. */
SEC("cgroup/connect4")
int grants_once(struct bpf_sock_addr *ctx)
{
	int value = 0, five = 5;

	if (bpf_getsockopt(ctx, SOL_SOCKET, SO_PRIORITY, &value, sizeof(value)) || value == five)
		return 0;
	bpf_setsockopt(ctx, SOL_SOCKET, SO_PRIORITY, &five, sizeof(five));
	return !bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &five, sizeof(five));
}
