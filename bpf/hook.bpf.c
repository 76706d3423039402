// SPDX-License-Identifier: GPL-2.0
/*
 * The connect hook of a service mesh: connections to a service's address go to one of its
 * endpoints, or to its waypoint; DNS goes to the mesh's proxy.
 *
 * One object for every kernel from 5.10: the youngest helper in use is bpf_ringbuf_reserve()
 * of 5.8.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "hook/address.h"
#include "hook/log.h"
#include "hook/manage.h"
#include "hook/maps.h"
#include "hook/route.h"
#include "hook/storage.h"

char _license[] SEC("license") = "GPL";

/* The hook steers connections; it never refuses one. */
#define PROCEED 1

#define DNS_PORT 53
#define DNS_PROXY_UID 0

/* Indices of the next program of a waypoint connection, by family. */
#define TAIL_CONNECT4 0
#define TAIL_CONNECT6 1

static __always_inline const backend_value *dns_proxy(void)
{
	backend_key key = {.backend_uid = DNS_PROXY_UID};

	return bpf_map_lookup_elem(&km_backend, &key);
}

static __always_inline void redirect_dns(struct bpf_sock_addr *ctx, const struct destination *dst)
{
	const backend_value *proxy = dns_proxy();

	if (!proxy) {
		log_debug("no DNS proxy, destination kept");
		return;
	}
	remember_destination(ctx, dst, false);
	ctx->user_ip4 = proxy->addr.ip4;
}

SEC("cgroup/connect4")
int cgroup_connect4_prog(struct bpf_sock_addr *ctx)
{
	struct destination dst = destination4(ctx);
	struct route route = {};
	enum verdict verdict;

	if (handle_control(ctx, &dst) || !is_managed(ctx))
		return PROCEED;
	if (dst.port == bpf_htons(DNS_PORT)) {
		redirect_dns(ctx, &dst);
		return PROCEED;
	}
	if (ctx->protocol != IPPROTO_TCP)
		return PROCEED;

	observe_connect(ctx);
	verdict = choose_route(&dst, &route);
	if (verdict == NOT_OURS)
		return PROCEED;
	remember_destination(ctx, &dst, route.via_waypoint);
	if (verdict == KEEP)
		return PROCEED;

	ctx->user_ip4 = route.addr.ip4;
	ctx->user_port = route.port;
	if (route.via_waypoint) {
		bpf_tail_call(ctx, &km_cgr_tailcall, TAIL_CONNECT4);
		log_error("waypoint connection: km_cgr_tailcall has no program to go on with");
	}
	return PROCEED;
}

SEC("cgroup/connect6")
int cgroup_connect6_prog(struct bpf_sock_addr *ctx)
{
	struct destination dst = destination6(ctx);
	struct route route = {};
	enum verdict verdict;

	if (handle_control(ctx, &dst) || !is_managed(ctx))
		return PROCEED;
	if (ctx->protocol != IPPROTO_TCP)
		return PROCEED;

	observe_connect(ctx);
	verdict = choose_route(&dst, &route);
	if (verdict == NOT_OURS)
		return PROCEED;
	remember_destination(ctx, &dst, route.via_waypoint);
	if (verdict == KEEP)
		return PROCEED;

	/* A v4-mapped connection comes from a socket that can only go on with IPv4. */
	if (is_v4_mapped(&dst.addr) && !is_v4_mapped(&route.addr))
		route.addr = to_v4_mapped(route.addr.ip4);
	ctx->user_ip6[0] = route.addr.ip6[0];
	ctx->user_ip6[1] = route.addr.ip6[1];
	ctx->user_ip6[2] = route.addr.ip6[2];
	ctx->user_ip6[3] = route.addr.ip6[3];
	ctx->user_port = route.port;
	if (route.via_waypoint) {
		bpf_tail_call(ctx, &km_cgr_tail6, TAIL_CONNECT6);
		log_error("waypoint connection: km_cgr_tail6 has no program to go on with");
	}
	return PROCEED;
}

SEC("cgroup/sendmsg4")
int bpf_redirect_dns_send(struct bpf_sock_addr *ctx)
{
	struct destination dst = destination4(ctx);

	if (handle_control(ctx, &dst) || !is_managed(ctx))
		return PROCEED;
	if (dst.port == bpf_htons(DNS_PORT))
		redirect_dns(ctx, &dst);
	return PROCEED;
}

/* An answer of the proxy is to come from where the question went. */
SEC("cgroup/recvmsg4")
int bpf_restore_dns_recv(struct bpf_sock_addr *ctx)
{
	struct destination src = destination4(ctx);
	struct sock_storage_data *storage;

	if (handle_control(ctx, &src) || !is_managed(ctx))
		return PROCEED;
	if (src.port != bpf_htons(DNS_PORT) || !dns_proxy())
		return PROCEED;

	storage = storage_of(ctx);
	if (!storage) {
		log_error("cannot restore the source of a DNS answer: no socket storage");
		return PROCEED;
	}
	ctx->user_ip4 = storage->sk_tuple.ipv4.daddr;
	return PROCEED;
}
