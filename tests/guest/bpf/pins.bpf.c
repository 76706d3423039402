// SPDX-License-Identifier: GPL-2.0
/* A map that is pinned by its name. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct backend {
	__u32 address;
	__u16 port;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, struct backend);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} backends SEC(".maps");

#ifdef OTHER
/* Moves the numbers of the types about. */
struct other {
	__u64 a, b, c;
} other_global;
#endif

SEC("cgroup/connect4")
int steer(struct bpf_sock_addr *ctx)
{
	__u32 key = ctx->user_ip4;
	struct backend *backend = bpf_map_lookup_elem(&backends, &key);

	if (backend)
		ctx->user_ip4 = backend->address;
	return 1;
}
