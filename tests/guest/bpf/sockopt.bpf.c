// SPDX-License-Identifier: GPL-2.0
/*
 * Options of sockets: a priority is at most 4, marks are denied, whoever wants keepalive
 * is told that it is on; and an option that the kernel does not know has an answer.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define SOL_SOCKET 1
#define SO_KEEPALIVE 9
#define SO_PRIORITY 12
#define SO_MARK 36
#define SO_OURS 4711

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} asked SEC(".maps"); /* how often, by socket */

SEC("cgroup/setsockopt")
int limit(struct bpf_sockopt *ctx)
{
	__u32 *value = ctx->optval, *count;

	if (ctx->sk) {
		count = bpf_sk_storage_get(&asked, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (count)
			(*count)++;
	}
	if (ctx->level != SOL_SOCKET)
		goto as_it_is;
	if (ctx->optname == SO_MARK)
		return 0;
	if (ctx->optname == SO_KEEPALIVE) {
		ctx->optlen = -1;
		return 1;
	}
	if (ctx->optname == SO_PRIORITY && (void *)(value + 1) <= ctx->optval_end && *value > 4) {
		*value = 4;
		ctx->optlen = 4;
		return 1;
	}
as_it_is:
	ctx->optlen = 0;
	return 1;
}

SEC("cgroup/getsockopt")
int answer(struct bpf_sockopt *ctx)
{
	__u32 *value = ctx->optval;

	if (ctx->level == SOL_SOCKET && ctx->optname == SO_MARK)
		return 0;
	if (ctx->level == SOL_SOCKET && ctx->optname == SO_OURS &&
	    (void *)(value + 1) <= ctx->optval_end) {
		*value = 42;
		ctx->optlen = 4;
		asm volatile("" ::: "memory"); /* clang makes one store of both, which is refused */
		ctx->retval = 0;
	}
	return 1;
}
