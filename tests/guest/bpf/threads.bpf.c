// SPDX-License-Identifier: GPL-2.0
/* Programs whose runs would show another thread's: addresses, verdicts, records, races. */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define WAIT 4000 /* turns that a run waits for another one to be in the kernel as well */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 1);
} next SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 64);
} by_address SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} address SEC(".maps");

__u64 total, inside, together;

/* Says the address in every way there is; an odd last byte is refused. */
SEC("cgroup/connect4")
int tells(struct bpf_sock_addr *ctx)
{
	__u32 ip = ctx->user_ip4, *stored;
	__u64 one = 1, *count;

	bpf_printk("to %x", bpf_ntohl(ip));
	bpf_ringbuf_output(&seen, &ip, sizeof(ip), 0);
	stored = bpf_sk_storage_get(&address, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (stored)
		*stored = ip;
	count = bpf_map_lookup_elem(&by_address, &ip);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&by_address, &ip, &one, BPF_NOEXIST);
	if (bpf_ntohl(ip) & 1)
		return 0;
	bpf_tail_call(ctx, &next, 0);
	return 1;
}

/* Counts, and notes whether another run was under way at the same time. */
SEC("cgroup/connect4")
int meets(struct bpf_sock_addr *ctx __attribute__((unused)))
{
	__sync_fetch_and_add(&total, 1);
	__sync_fetch_and_add(&inside, 1);
	for (int i = 0; i < WAIT; i++) {
		if (*(volatile __u64 *)&inside > 1) {
			__sync_fetch_and_add(&together, 1);
			break;
		}
	}
	__sync_fetch_and_add(&inside, -1);
	return 1;
}
