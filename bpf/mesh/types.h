/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The interface of the connect hook's neighbours: what their maps hold, and what they put in
 * front of a connection's bytes.
 *
 * A connection is known by a struct bpf_sock_tuple, the socket's own end as source; the bytes
 * that its family leaves are zero.
 */
#ifndef MESH_TYPES_H
#define MESH_TYPES_H

#include "../hook/types.h"

/* Who opened a connection; 0 while the mesh has nothing to do with it. */
enum direction {
	DIRECTION_INBOUND = 1,
	DIRECTION_OUTBOUND = 2,
};

/* A record of km_auth_request: a connection was accepted, is it allowed? */
struct auth_request {
	__u32 family; /* AF_INET or AF_INET6 */
	struct bpf_sock_tuple tuple;
};

/*
 * What a waypoint reads first: where the connection was going. The length, address and port
 * are in network byte order; the length counts what follows it.
 */
#define TLV_ORIGINAL_DESTINATION 1

struct tlv4 {
	__u8 type;
	__be32 length;
	__be32 addr;
	__be16 port;
} __attribute__((packed));

struct tlv6 {
	__u8 type;
	__be32 length;
	__be32 addr[4];
	__be16 port;
} __attribute__((packed));

#define TLV_LENGTH(tlv) (sizeof(tlv) - sizeof((tlv).type) - sizeof((tlv).length))

#endif
