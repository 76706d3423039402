/* SPDX-License-Identifier: GPL-2.0 */
/* The original destination, put in front of a message. */
#ifndef MESH_ENCODE_H
#define MESH_ENCODE_H

#include <bpf/bpf_endian.h>

#include "maps.h"

static __always_inline bool put_in_front(struct sk_msg_md *msg, const void *bytes, __u32 size)
{
	void *data;

	if (bpf_msg_push_data(msg, 0, size, 0))
		return false;
	data = (void *)(long)msg->data;
	if (data + size > (void *)(long)msg->data_end)
		return false;
	__builtin_memcpy(data, bytes, size);
	return true;
}

static __always_inline bool put_destination4(struct sk_msg_md *msg,
					     const struct sock_storage_data *storage)
{
	struct tlv4 tlv = {
		.type = TLV_ORIGINAL_DESTINATION,
		.length = bpf_htonl(TLV_LENGTH(tlv)),
		.addr = storage->sk_tuple.ipv4.daddr,
		.port = storage->sk_tuple.ipv4.dport,
	};

	return put_in_front(msg, &tlv, sizeof(tlv));
}

static __always_inline bool put_destination6(struct sk_msg_md *msg,
					     const struct sock_storage_data *storage)
{
	struct tlv6 tlv = {
		.type = TLV_ORIGINAL_DESTINATION,
		.length = bpf_htonl(TLV_LENGTH(tlv)),
		.port = storage->sk_tuple.ipv6.dport,
	};

	tlv.addr[0] = storage->sk_tuple.ipv6.daddr[0];
	tlv.addr[1] = storage->sk_tuple.ipv6.daddr[1];
	tlv.addr[2] = storage->sk_tuple.ipv6.daddr[2];
	tlv.addr[3] = storage->sk_tuple.ipv6.daddr[3];
	return put_in_front(msg, &tlv, sizeof(tlv));
}

#endif
