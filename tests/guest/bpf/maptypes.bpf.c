// SPDX-License-Identifier: GPL-2.0
/* Maps that are no plain hash or array, and maps with awkward names. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 3);
	__type(value, __u32);
} waiting SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 3);
	__type(value, __u32);
} pile SEC(".maps");

struct sample {
	__u32 address;
	__u32 port;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(int));
	__uint(value_size, sizeof(int));
} samples SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, sizeof(int));
	__uint(value_size, sizeof(int));
} cgroups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, sizeof(int));
	__uint(value_size, sizeof(int));
} next SEC(".maps");

struct rules {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
};

struct rules inner SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 3);
	__type(key, __u32);
	__array(values, struct rules);
} by_index SEC(".maps") = {.values = {[1] = &inner}};

struct tenant {
	__u32 id;
	__u32 zone;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, struct tenant);
	__type(value, __u32);
	__array(values, struct rules);
} by_tenant SEC(".maps");

/* Fields that are called as a tool might call padding. */
struct odd {
	__u8 _pad1;
	__u8 flag : 1;
	__u32 _anonymous0;
	union {
		__u32 _pad;
		__u16 half;
	};
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct odd);
} items SEC(".maps"), keys SEC(".maps"), get SEC(".maps"), _items SEC(".maps");

struct label {
	char text[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, struct label);
	__type(value, __u32);
} labels SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
	__uint(map_flags, BPF_F_WRONLY);
} unread SEC(".maps");

SEC("cgroup/connect4")
int visit(struct bpf_sock_addr *ctx)
{
	struct sample sample = {.address = ctx->user_ip4, .port = ctx->user_port};
	struct tenant tenant = {.id = 7, .zone = 1};
	__u32 one = 1, address = ctx->user_ip4, *to;
	struct odd *odd;
	void *rules;

	bpf_map_push_elem(&waiting, &address, 0);
	bpf_map_push_elem(&pile, &address, 0);
	bpf_perf_event_output(ctx, &samples, BPF_F_CURRENT_CPU, &sample, sizeof(sample));
	odd = bpf_map_lookup_elem(&items, &one);
	if (odd && odd->flag)
		ctx->user_ip4 = odd->_anonymous0;
	rules = bpf_map_lookup_elem(&by_index, &one);
	to = rules ? bpf_map_lookup_elem(rules, &address) : NULL;
	if (to)
		ctx->user_ip4 = *to;
	rules = bpf_map_lookup_elem(&by_tenant, &tenant);
	to = rules ? bpf_map_lookup_elem(rules, &address) : NULL;
	if (to)
		ctx->user_ip4 = *to;
	bpf_tail_call(ctx, &next, 0);
	return 1;
}

SEC("cgroup/connect4")
int visited(struct bpf_sock_addr *ctx)
{
	__u32 one = 1;

	bpf_map_update_elem(&unread, &one, &one, 0);
	return ctx->user_port != 0;
}
