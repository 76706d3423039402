/* SPDX-License-Identifier: GPL-2.0 */
/* The life of a connection, as sock_ops sees it. */
#ifndef MESH_FOLLOW_H
#define MESH_FOLLOW_H

#include <bpf/bpf_endian.h>

#include "../hook/address.h"
#include "../hook/log.h"
#include "maps.h"

#define AF_INET 2 /* <sys/socket.h> is for user space */

/*
 * "volatile" keeps the compiler from reading half a word at a time, which the verifier allows for
 * none of the addresses.
 */
static __always_inline struct bpf_sock_tuple tuple_of(const volatile struct bpf_sock_ops *ctx)
{
	/* local_port is in host byte order; remote_port is 32 bits in network byte order */
	__be16 own = bpf_htons(ctx->local_port);
	__be16 peer = bpf_htons(bpf_ntohl(ctx->remote_port));
	struct bpf_sock_tuple tuple = {};

	if (ctx->family == AF_INET) {
		tuple.ipv4.saddr = ctx->local_ip4;
		tuple.ipv4.daddr = ctx->remote_ip4;
		tuple.ipv4.sport = own;
		tuple.ipv4.dport = peer;
	} else {
		tuple.ipv6.saddr[0] = ctx->local_ip6[0];
		tuple.ipv6.saddr[1] = ctx->local_ip6[1];
		tuple.ipv6.saddr[2] = ctx->local_ip6[2];
		tuple.ipv6.saddr[3] = ctx->local_ip6[3];
		tuple.ipv6.daddr[0] = ctx->remote_ip6[0];
		tuple.ipv6.daddr[1] = ctx->remote_ip6[1];
		tuple.ipv6.daddr[2] = ctx->remote_ip6[2];
		tuple.ipv6.daddr[3] = ctx->remote_ip6[3];
		tuple.ipv6.sport = own;
		tuple.ipv6.dport = peer;
	}
	return tuple;
}

/*
 * A program of sock_ops may ask for the namespace's cookie since 5.15 only. It knows a managed
 * namespace by the address that the workload has there.
 */
static __always_inline bool is_managed_workload(const volatile struct bpf_sock_ops *ctx)
{
	struct manager_key key = {};

	if (ctx->family == AF_INET) {
		key.addr.ip4 = ctx->local_ip4;
	} else {
		struct destination own = {.ipv6 = true};

		own.addr.ip6[0] = ctx->local_ip6[0];
		own.addr.ip6[1] = ctx->local_ip6[1];
		own.addr.ip6[2] = ctx->local_ip6[2];
		own.addr.ip6[3] = ctx->local_ip6[3];
		key.addr = map_form(&own);
	}
	return bpf_map_lookup_elem(&km_manage, &key) != NULL;
}

static __always_inline void call_on_state_changes(struct bpf_sock_ops *ctx)
{
	int flags = ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG;

	if (bpf_sock_ops_cb_flags_set(ctx, flags))
		log_error("cannot follow a connection to its end: no state callbacks");
}

/* The socket is connecting: whether it is one of the mesh's, the later ops read here. */
static __always_inline void on_connect(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct sock_storage_data *storage;

	if (!is_managed_workload(ctx))
		return;
	storage = bpf_sk_storage_get(&km_sockstorage, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!storage) {
		log_error("cannot follow a new connection: no socket storage");
		return;
	}
	storage->direction = DIRECTION_OUTBOUND;
}

static __always_inline void on_connected(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct sock_storage_data *storage = bpf_sk_storage_get(&km_sockstorage, sk, NULL, 0);
	struct bpf_sock_tuple tuple;

	if (!storage || storage->direction != DIRECTION_OUTBOUND)
		return;
	storage->connect_success = 1;
	if (!storage->via_waypoint)
		return;
	tuple = tuple_of(ctx);
	if (bpf_sock_hash_update(ctx, &km_sockhash, &tuple, BPF_ANY)) {
		log_error("cannot tell a waypoint where a connection was going: km_sockhash "
			  "refused it");
		return;
	}
	call_on_state_changes(ctx);
}

static __always_inline void on_accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct sock_storage_data *storage;
	struct auth_request request = {};

	if (!is_managed_workload(ctx))
		return;
	storage = bpf_sk_storage_get(&km_sockstorage, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (storage) {
		storage->direction = DIRECTION_INBOUND;
		storage->connect_success = 1;
	} else {
		log_error("cannot note an accepted connection: no socket storage");
	}
	request.family = ctx->family;
	request.tuple = tuple_of(ctx);
	if (bpf_ringbuf_output(&km_auth_request, &request, sizeof(request), 0)) {
		log_error("cannot ask for authorisation: km_auth_request is full");
		return;
	}
	call_on_state_changes(ctx);
}

static __always_inline void on_closed(struct bpf_sock_ops *ctx)
{
	struct bpf_sock_tuple tuple = tuple_of(ctx);

	bpf_map_delete_elem(&km_sockhash, &tuple);
	bpf_map_delete_elem(&km_auth, &tuple);
}

#endif
