/* SPDX-License-Identifier: GPL-2.0 */
/* Which network namespaces the mesh manages, and how a namespace joins and leaves. */
#ifndef HOOK_MANAGE_H
#define HOOK_MANAGE_H

#include "address.h"
#include "log.h"

/* A process joins or leaves by a connect to 0.0.0.2 or ::2 at one of these ports. */
#define CONTROL_HOST 2
#define CONTROL_PORT_JOIN 929
#define CONTROL_PORT_LEAVE 930

static __always_inline struct manager_key manager_of(struct bpf_sock_addr *ctx)
{
	struct manager_key key = {};

	key.netns_cookie = bpf_get_netns_cookie(ctx);
	return key;
}

static __always_inline bool is_control_address(const struct destination *dst)
{
	if (!dst->ipv6)
		return dst->addr.ip4 == bpf_htonl(CONTROL_HOST);
	return dst->addr.ip6[0] == 0 && dst->addr.ip6[1] == 0 && dst->addr.ip6[2] == 0 &&
	       dst->addr.ip6[3] == bpf_htonl(CONTROL_HOST);
}

static __always_inline void join_mesh(struct bpf_sock_addr *ctx)
{
	struct manager_key key = manager_of(ctx);
	__u32 value = 0;

	if (bpf_map_update_elem(&km_manage, &key, &value, BPF_ANY))
		log_error("cannot manage this network namespace: km_manage refused it");
	else
		log_info("network namespace managed");
}

static __always_inline void leave_mesh(struct bpf_sock_addr *ctx)
{
	struct manager_key key = manager_of(ctx);

	if (bpf_map_delete_elem(&km_manage, &key))
		log_error("cannot stop managing this network namespace: it is not managed");
	else
		log_info("network namespace no longer managed");
}

/* Obeys a control connection; false if this is none. */
static __always_inline bool handle_control(struct bpf_sock_addr *ctx, const struct destination *dst)
{
	if (!is_control_address(dst))
		return false;
	if (dst->port == bpf_htons(CONTROL_PORT_JOIN)) {
		join_mesh(ctx);
		return true;
	}
	if (dst->port == bpf_htons(CONTROL_PORT_LEAVE)) {
		leave_mesh(ctx);
		return true;
	}
	return false;
}

static __always_inline bool is_managed(struct bpf_sock_addr *ctx)
{
	struct manager_key key = manager_of(ctx);

	return bpf_map_lookup_elem(&km_manage, &key) != NULL;
}

#endif
