// SPDX-License-Identifier: GPL-2.0
/*
 * Messages with their length in front, as one byte: a parser, and a verdict that answers
 * by the second byte. 'r' goes to the socket of the map, 'd' nowhere, the rest on.
 */
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
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} bytes SEC(".maps");

SEC("sk_skb/stream_parser")
int parse(struct __sk_buff *skb)
{
	__u8 length;

	if (bpf_skb_load_bytes(skb, 0, &length, 1))
		return 0;
	return length + 1;
}

SEC("sk_skb/stream_verdict")
int decide(struct __sk_buff *skb)
{
	__u64 *sum;
	__u32 zero = 0;
	__u8 *data;

	sum = bpf_map_lookup_elem(&bytes, &zero);
	if (sum)
		*sum += skb->len;
	if (bpf_skb_pull_data(skb, 2))
		return SK_DROP;
	data = (void *)(long)skb->data;
	if ((void *)(data + 2) > (void *)(long)skb->data_end)
		return SK_DROP;
	switch (data[1]) {
	case 'r':
		return bpf_sk_redirect_map(skb, &others, 0, BPF_F_INGRESS);
	case 'd':
		return SK_DROP;
	case 'w':
		data[1] = 'W';
		skb->priority = 6;
		return SK_PASS;
	case 'g': /* grows */
		if (bpf_skb_change_tail(skb, skb->len + 1000, 0))
			return SK_DROP;
	}
	return SK_PASS;
}

SEC("sk_skb")
int either(struct __sk_buff *skb)
{
	return skb->len;
}
