/* SPDX-License-Identifier: GPL-2.0 */
/* What the hook writes into a socket's storage. */
#ifndef HOOK_STORAGE_H
#define HOOK_STORAGE_H

#include "address.h"
#include "log.h"

/* NULL when the socket's option memory is exhausted (net.core.optmem_max). */
static __always_inline struct sock_storage_data *storage_of(struct bpf_sock_addr *ctx)
{
	return bpf_sk_storage_get(&km_sockstorage, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
}

static __always_inline void observe_connect(struct bpf_sock_addr *ctx)
{
	struct sock_storage_data *storage = storage_of(ctx);

	if (!storage) {
		log_error("cannot record the time of this connect: no socket storage");
		return;
	}
	storage->connect_ns = bpf_ktime_get_ns();
}

/*
 * Remembers where the connection was going before it is rewritten. The first destination of
 * a socket stays: a tail call re-enters the hook with the waypoint as destination.
 */
static __always_inline void remember_destination(struct bpf_sock_addr *ctx,
						 const struct destination *dst, bool via_waypoint)
{
	struct sock_storage_data *storage = storage_of(ctx);

	if (!storage) {
		log_error("cannot remember the original destination: no socket storage");
		return;
	}
	if (via_waypoint)
		storage->via_waypoint = true;
	if (storage->has_set_ip)
		return;

	if (dst->ipv6) {
		storage->sk_tuple.ipv6.daddr[0] = dst->addr.ip6[0];
		storage->sk_tuple.ipv6.daddr[1] = dst->addr.ip6[1];
		storage->sk_tuple.ipv6.daddr[2] = dst->addr.ip6[2];
		storage->sk_tuple.ipv6.daddr[3] = dst->addr.ip6[3];
		storage->sk_tuple.ipv6.dport = dst->port;
	} else {
		storage->sk_tuple.ipv4.daddr = dst->addr.ip4;
		storage->sk_tuple.ipv4.dport = dst->port;
	}
	storage->has_set_ip = true;
}

#endif
