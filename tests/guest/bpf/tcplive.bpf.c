// SPDX-License-Identifier: GPL-2.0
/* Programs of a TCP connection that write down what they see, and do as a plan says. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct plan {
	__u32 verdict;
	__u32 remember;
	/* sock_ops */
	__u32 answers;
	__u32 reply;
	__u32 sets_flags;
	__u32 flags;
	/* sk_msg */
	__u32 push;
	__u32 pop_at;
	__u32 pop;
	__u32 pull;
	__u32 poke;
	__u32 apply;
	__u32 cork;
	__u32 redirect;
	__u32 ingress;
};

struct sighting {
	__u32 runs;
	__u32 words[12];
	__s32 results[4];
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
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2);
} others SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} memory SEC(".maps");

static __always_inline void remember(struct bpf_sock *sk, __u32 sum)
{
	__u64 *value;

	if (!sk || !sum)
		return;
	value = bpf_sk_storage_get(&memory, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (value)
		*value += sum;
}

SEC("sockops")
int ops(struct bpf_sock_ops *ctx)
{
	__u32 zero = 0;
	struct plan *plan = bpf_map_lookup_elem(&plans, &zero);
	struct sighting *seen = bpf_map_lookup_elem(&sightings, &zero);

	if (!plan || !seen)
		return 1;
	seen->runs++;
	seen->words[0] = ctx->op;
	seen->words[1] = ctx->args[0];
	seen->words[2] = ctx->args[1];
	seen->words[3] = ctx->args[2];
	seen->words[4] = ctx->family;
	seen->words[5] = ctx->state;
	seen->words[6] = ctx->is_fullsock;
	seen->words[7] = ctx->bpf_sock_ops_cb_flags;
	seen->words[8] = ctx->local_ip4;
	seen->words[9] = ctx->remote_ip4;
	seen->words[10] = ctx->local_ip6[3];
	seen->words[11] = ctx->remote_ip6[3];
	remember(ctx->sk, plan->remember);
	if (plan->sets_flags)
		seen->results[0] = bpf_sock_ops_cb_flags_set(ctx, plan->flags);
	if (plan->answers)
		ctx->reply = plan->reply;
	return plan->verdict ? 1 : 0;
}

SEC("sk_msg")
int messages(struct sk_msg_md *msg)
{
	__u32 zero = 0;
	struct plan *plan = bpf_map_lookup_elem(&plans, &zero);
	struct sighting *seen = bpf_map_lookup_elem(&sightings, &zero);
	__u8 *data;

	if (!plan || !seen)
		return SK_PASS;
	seen->runs++;
	seen->words[0] = msg->size;
	seen->words[1] = (__u32)((long)msg->data_end - (long)msg->data);
	seen->words[2] = msg->family;
	seen->words[3] = msg->local_ip4;
	seen->words[4] = msg->remote_ip6[3];
	remember(msg->sk, plan->remember);
	if (plan->pull)
		seen->results[0] = bpf_msg_pull_data(msg, 0, plan->pull, 0);
	if (plan->pop)
		seen->results[1] = bpf_msg_pop_data(msg, plan->pop_at, plan->pop, 0);
	if (plan->push)
		seen->results[2] = bpf_msg_push_data(msg, 0, plan->push, 0);
	data = (void *)(long)msg->data;
	/* new bytes are whatever was in that memory */
#pragma unroll
	for (int i = 0; i < 8; i++)
		if ((void *)(data + i + 1) <= (void *)(long)msg->data_end && i < (int)plan->push)
			data[i] = 'a' + i;
	if ((void *)(data + 1) <= (void *)(long)msg->data_end)
		data[0] ^= (__u8)plan->poke;
	if (plan->apply)
		bpf_msg_apply_bytes(msg, plan->apply);
	if (plan->cork)
		bpf_msg_cork_bytes(msg, plan->cork);
	if (plan->redirect) {
		int verdict = bpf_msg_redirect_map(msg, &others, plan->redirect - 1,
						   plan->ingress ? BPF_F_INGRESS : 0);

		seen->results[3] = verdict;
		return verdict;
	}
	return plan->verdict ? SK_PASS : SK_DROP;
}
