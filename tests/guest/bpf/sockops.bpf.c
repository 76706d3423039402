// SPDX-License-Identifier: GPL-2.0
/* Answers each op in a way of its own. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define OPTION_KIND 200 /* nobody's; 253 and 254 are found by a magic number */
#define TCP_CLOSED 7

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__type(key, __u32);
	__type(value, __u32); /* as a mesh has it: no lookup from user space */
	__uint(max_entries, 4);
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} ops SEC(".maps");

struct {
	__u32 state;
	__u32 args[3];
} last;

struct option {
	__u8 kind, length;
	__u8 data[2];
};

SEC("sockops")
int follow(struct bpf_sock_ops *ctx)
{
	struct option found = {.kind = OPTION_KIND}, written = {OPTION_KIND, 4, {1, 2}};
	struct bpf_sock *sk = ctx->sk;
	__u32 *count, key;

	last.state = ctx->state;
	last.args[0] = ctx->args[0];
	last.args[1] = ctx->args[1];
	last.args[2] = ctx->args[2];
	if (sk) {
		count = bpf_sk_storage_get(&ops, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (count)
			*count += 1;
	}
	key = ctx->local_port;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TIMEOUT_INIT:
		ctx->reply = 10;
		return 1;
	case BPF_SOCK_OPS_RWND_INIT:
		ctx->reply = 20;
		return 0; /* the kernel ignores it */
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		bpf_sock_hash_update(ctx, &connections, &key, BPF_ANY);
		bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
		return 1;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == TCP_CLOSED)
			bpf_map_delete_elem(&connections, &key);
		return 1;
	case BPF_SOCK_OPS_PARSE_HDR_OPT_CB:
		ctx->reply =
			bpf_load_hdr_opt(ctx, &found, sizeof(found), 0) < 0 ? 0 : found.data[1];
		return 1;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		bpf_reserve_hdr_opt(ctx, sizeof(written), 0);
		return 1;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		bpf_store_hdr_opt(ctx, &written, sizeof(written), 0);
		return 1;
	}
	return 1;
}
