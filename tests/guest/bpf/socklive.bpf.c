// SPDX-License-Identifier: GPL-2.0
/* Programs of a socket's life that write down what they see, and do as a plan says. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct plan {
	__u32 verdict;
	__u32 remember;
	__u32 sets;
	__u32 mark;
	__u32 priority;
	__u32 bound_dev_if;
};

struct sighting {
	__u32 runs;
	__u32 words[12];
};

struct note {
	__u64 sum;
	__u8 tail[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct plan);
	__uint(max_entries, 1);
} plans SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct sighting);
	__uint(max_entries, 1);
} sightings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct note);
} memory SEC(".maps");

static __always_inline struct plan *look(struct bpf_sock *ctx, struct sighting **sighting)
{
	__u32 zero = 0;
	struct plan *plan = bpf_map_lookup_elem(&plans, &zero);
	struct sighting *seen = bpf_map_lookup_elem(&sightings, &zero);
	struct note *note;

	if (!plan || !seen)
		return NULL;
	seen->runs++;
	seen->words[0] = ctx->family;
	seen->words[1] = ctx->type;
	seen->words[2] = ctx->protocol;
	seen->words[3] = ctx->state;
	note = bpf_sk_storage_get(&memory, ctx, NULL,
				  plan->remember ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (note) {
		seen->words[4] = note->sum;
		note->sum += plan->remember;
		note->tail[2]++;
	}
	*sighting = seen;
	return plan;
}

static __always_inline int change(struct bpf_sock *ctx)
{
	struct sighting *seen;
	struct plan *plan = look(ctx, &seen);

	if (!plan)
		return 1;
	seen->words[5] = ctx->mark;
	seen->words[6] = ctx->priority;
	seen->words[7] = ctx->bound_dev_if;
	if (plan->sets & 1)
		ctx->mark = plan->mark;
	if (plan->sets & 2)
		ctx->priority = plan->priority;
	if (plan->sets & 4)
		ctx->bound_dev_if = plan->bound_dev_if;
	return plan->verdict ? 1 : 0;
}

SEC("cgroup/sock_create")
int made(struct bpf_sock *ctx)
{
	return change(ctx);
}

SEC("cgroup/sock_release")
int gone(struct bpf_sock *ctx)
{
	return change(ctx);
}

SEC("cgroup/post_bind4")
int bound4(struct bpf_sock *ctx)
{
	struct sighting *seen;
	struct plan *plan = look(ctx, &seen);

	if (!plan)
		return 1;
	seen->words[5] = ctx->src_ip4;
	seen->words[6] = ctx->src_port;
	return plan->verdict ? 1 : 0;
}

SEC("cgroup/post_bind6")
int bound6(struct bpf_sock *ctx)
{
	struct sighting *seen;
	struct plan *plan = look(ctx, &seen);

	if (!plan)
		return 1;
	seen->words[5] = ctx->src_ip6[0];
	seen->words[6] = ctx->src_ip6[3];
	seen->words[7] = ctx->src_port;
	return plan->verdict ? 1 : 0;
}
