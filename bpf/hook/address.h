/* SPDX-License-Identifier: GPL-2.0 */
/* Connections, and the two shapes an IPv4 address has in them. */
#ifndef HOOK_ADDRESS_H
#define HOOK_ADDRESS_H

#include <bpf/bpf_endian.h>

#include "types.h"

/* The destination a program was called with. */
struct destination {
	struct ip_addr addr;
	__u32 port;
	bool ipv6;
};

/* ::ffff:a.b.c.d, RFC 4291 section 2.5.5.2. */
static __always_inline bool is_v4_mapped(const struct ip_addr *addr)
{
	return addr->ip6[0] == 0 && addr->ip6[1] == 0 && addr->ip6[2] == bpf_htonl(0xffff);
}

static __always_inline struct ip_addr to_v4_mapped(__u32 ip4)
{
	return (struct ip_addr){.ip6 = {0, 0, bpf_htonl(0xffff), ip4}};
}

/* The form in which the maps know an address: an IPv4 one is never v4-mapped there. */
static __always_inline struct ip_addr map_form(const struct destination *dst)
{
	if (dst->ipv6 && is_v4_mapped(&dst->addr))
		return (struct ip_addr){.ip6 = {dst->addr.ip6[3], 0, 0, 0}};
	return dst->addr;
}

static __always_inline struct destination destination4(const struct bpf_sock_addr *ctx)
{
	return (struct destination){
		.addr.ip6 = {ctx->user_ip4, 0, 0, 0},
		.port = ctx->user_port,
	};
}

static __always_inline struct destination destination6(const struct bpf_sock_addr *ctx)
{
	return (struct destination){
		.addr.ip6 = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2],
			     ctx->user_ip6[3]},
		.port = ctx->user_port,
		.ipv6 = true,
	};
}

#endif
