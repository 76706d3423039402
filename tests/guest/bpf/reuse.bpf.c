// SPDX-License-Identifier: GPL-2.0
/* A map of every type that can be put back between tests, and programs that write and tell. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define SMALL 4
#define LARGE 2000

#define TABLE(name, map_type, entries, flags) \
	struct {                              \
		__uint(type, map_type);       \
		__uint(max_entries, entries); \
		__uint(map_flags, flags);     \
		__type(key, __u32);           \
		__type(value, __u32);         \
	} name SEC(".maps")

TABLE(hash, BPF_MAP_TYPE_HASH, SMALL, 0);
TABLE(sparse_hash, BPF_MAP_TYPE_HASH, LARGE, BPF_F_NO_PREALLOC);
TABLE(percpu_hash, BPF_MAP_TYPE_PERCPU_HASH, SMALL, 0);
TABLE(sparse_percpu_hash, BPF_MAP_TYPE_PERCPU_HASH, SMALL, BPF_F_NO_PREALLOC);
#ifdef PLAIN /* for kernels whose LRU maps cannot be put back */
TABLE(lru, BPF_MAP_TYPE_HASH, LARGE, 0);
TABLE(percpu_lru, BPF_MAP_TYPE_PERCPU_HASH, LARGE, 0);
#else
TABLE(lru, BPF_MAP_TYPE_LRU_HASH, SMALL, 0);
TABLE(percpu_lru, BPF_MAP_TYPE_LRU_PERCPU_HASH, SMALL, 0);
#endif
TABLE(array, BPF_MAP_TYPE_ARRAY, SMALL, 0);
TABLE(mapped_array, BPF_MAP_TYPE_ARRAY, SMALL, BPF_F_MMAPABLE);
TABLE(percpu_array, BPF_MAP_TYPE_PERCPU_ARRAY, SMALL, 0);

struct prefix {
	__u32 length;
	__u32 address;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, SMALL);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, SMALL);
	__type(value, __u32);
} queue SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, SMALL);
	__type(value, __u32);
} stack SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SMALL);
	__type(key, __u32);
	__type(value, __u32);
};

struct inner one_inner SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SMALL);
	__type(key, __u32);
	__array(values, struct inner);
} array_of_maps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, SMALL);
	__type(key, __u32);
	__array(values, struct inner);
} hash_of_maps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, SMALL);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} next SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} storage SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

__u32 counted = 7;
__u32 calls;
__u32 scratch[64]; /* by the last bits of the address */
const volatile __u32 step = 3;

#ifdef PRINTS
#define SAY() bpf_printk("ran")
#else
#define SAY()
#endif

#ifdef ASKS
__u64 position;
#define ASK() (position = bpf_ringbuf_query(&ring, BPF_RB_PROD_POS))
#else
#define ASK()
#endif

#ifdef TIMER
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bpf_timer);
} timers SEC(".maps");
#endif

#ifdef BLOOM
struct {
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__uint(max_entries, SMALL);
	__type(value, __u32);
} bloom SEC(".maps");
#endif

SEC("cgroup/connect4")
int dirty(struct bpf_sock_addr *ctx)
{
	__u32 key = ctx->user_ip4, value = ctx->user_port + step, slot = key % SMALL;
	struct prefix prefix = {32, key};
	__u32 *found;

	bpf_map_update_elem(&hash, &key, &value, BPF_ANY);
	bpf_map_update_elem(&sparse_hash, &key, &value, BPF_ANY);
	bpf_map_update_elem(&percpu_hash, &key, &value, BPF_ANY);
	bpf_map_update_elem(&sparse_percpu_hash, &key, &value, BPF_ANY);
	bpf_map_update_elem(&lru, &key, &value, BPF_ANY);
	bpf_map_update_elem(&percpu_lru, &key, &value, BPF_ANY);
	bpf_map_update_elem(&array, &slot, &value, BPF_ANY);
	bpf_map_update_elem(&mapped_array, &slot, &value, BPF_ANY);
	bpf_map_update_elem(&percpu_array, &slot, &value, BPF_ANY);
	bpf_map_update_elem(&prefixes, &prefix, &value, BPF_ANY);
	bpf_map_push_elem(&queue, &value, BPF_ANY);
	bpf_map_push_elem(&stack, &value, BPF_ANY);
	bpf_ringbuf_output(&ring, &value, sizeof(value), 0);
	if (ctx->sk) {
		found = bpf_sk_storage_get(&storage, ctx->sk, &value, BPF_SK_STORAGE_GET_F_CREATE);
		if (found)
			*found += 1;
	}
	counted += value;
	calls++;
	scratch[ctx->user_ip4 & 63] = value;
	SAY();
	ASK();
	bpf_tail_call(ctx, &next, slot);
	return 1;
}

/* What a program sees, without changing anything: one record of answers. */
SEC("cgroup/connect4")
int tell(struct bpf_sock_addr *ctx)
{
	__u32 key = ctx->user_ip4, slot = key % SMALL, answers[18] = {}, n = 0;
	struct prefix prefix = {32, key};
	__u32 *found;
	void *inner;

#define ANSWER(map, key)                        \
	found = bpf_map_lookup_elem(&map, key); \
	answers[n++] = found ? *found + 1 : 0

	ANSWER(hash, &key);
	ANSWER(sparse_hash, &key);
	ANSWER(percpu_hash, &key);
	ANSWER(sparse_percpu_hash, &key);
	ANSWER(lru, &key);
	ANSWER(percpu_lru, &key);
	ANSWER(array, &slot);
	ANSWER(mapped_array, &slot);
	ANSWER(percpu_array, &slot);
	ANSWER(prefixes, &prefix);
	ANSWER(one_inner, &key);
	inner = bpf_map_lookup_elem(&array_of_maps, &slot);
	answers[n++] = !!inner;
	inner = bpf_map_lookup_elem(&hash_of_maps, &slot);
	answers[n++] = !!inner;
	answers[n++] = bpf_map_peek_elem(&queue, &answers[17]) == 0;
	answers[n++] = bpf_map_peek_elem(&stack, &answers[17]) == 0;
	if (ctx->sk) {
		found = bpf_sk_storage_get(&storage, ctx->sk, NULL, 0);
		answers[n++] = found ? *found + 1 : 0;
	}
	answers[16] = counted + calls + scratch[ctx->user_ip4 & 63];
	bpf_ringbuf_output(&ring, answers, sizeof(answers), 0);
	return 1;
}
