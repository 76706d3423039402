// SPDX-License-Identifier: GPL-2.0
/* A message is answered by its first byte, as far as the program sees it. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 4);
} others SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 4);
} named SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} sent SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 2);
} next SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} km_log SEC(".maps");

struct {
	__u32 ret;
	char msg[8];
} dropped = {.ret = 8, .msg = "dropped"};

__u32 seen;

SEC("sk_msg")
int decide(struct sk_msg_md *msg)
{
	__u8 *data = (void *)(long)msg->data;
	__u64 *sum;

	seen = (__u32)((long)msg->data_end - (long)msg->data);
	if (msg->sk) {
		sum = bpf_sk_storage_get(&sent, msg->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (sum)
			*sum += msg->size;
	}
	if ((void *)(data + 1) > (void *)(long)msg->data_end)
		return SK_PASS;
	switch (data[0]) {
	case 'd':
		bpf_ringbuf_output(&km_log, &dropped, sizeof(dropped), 0);
		return SK_DROP;
	case 'r':
		return bpf_msg_redirect_map(msg, &others, 1, BPF_F_INGRESS);
	case 'h': {
		__u32 key = 7;

		return bpf_msg_redirect_hash(msg, &named, &key, 0);
	}
	case 'i': /* ignores that nobody is there */
		bpf_msg_redirect_map(msg, &others, 3, 0);
		return SK_PASS;
	case 'a':
		bpf_msg_apply_bytes(msg, 4);
		bpf_msg_cork_bytes(msg, 9);
		return SK_PASS;
	case 'p': /* grows in front */
		if (bpf_msg_push_data(msg, 0, 4, 0) || bpf_msg_pull_data(msg, 0, 4, 0))
			return SK_DROP;
		data = (void *)(long)msg->data;
		if ((void *)(data + 4) > (void *)(long)msg->data_end)
			return SK_DROP;
		__builtin_memcpy(data, "HEAD", 4);
		return SK_PASS;
	case 't':
		bpf_tail_call(msg, &next, 0);
		return SK_DROP;
	}
	return SK_PASS;
}
