// SPDX-License-Identifier: GPL-2.0
/* As objects were written before libbpf 1.0: OLD_MAPS or OLD_SECTION says what is old. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#ifdef OLD_MAPS
struct definition {
	unsigned int type, key_size, value_size, max_entries, map_flags;
};

struct definition SEC("maps") table = {
	.type = BPF_MAP_TYPE_HASH,
	.key_size = 4,
	.value_size = 4,
	.max_entries = 4,
};
#endif

#ifdef OLD_SECTION
SEC("connect4")
#else
SEC("cgroup/connect4")
#endif
int go(struct bpf_sock_addr *ctx)
{
#ifdef OLD_MAPS
	__u32 key = ctx->user_ip4;

	return bpf_map_lookup_elem(&table, &key) ? 0 : 1;
#else
	return ctx->user_port != 0;
#endif
}
