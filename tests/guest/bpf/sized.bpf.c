// SPDX-License-Identifier: GPL-2.0
/* Maps that declare sizes alone, filled from inlined functions: their types are in DWARF only. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "sized.h"

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__uint(key_size, sizeof(sized_key));
	__uint(value_size, sizeof(sized_value));
} places SEC(".maps");

static __always_inline const sized_value *place_of(__u32 id)
{
	sized_key key = {.id = id};

	return bpf_map_lookup_elem(&places, &key);
}

SEC("cgroup/connect4")
int go(struct bpf_sock_addr *ctx)
{
	const sized_value *value = place_of(ctx->user_ip4);

	if (value) {
		ctx->user_ip4 = value->address;
		ctx->user_port = value->ports[1];
	}
	return 1;
}
