/* SPDX-License-Identifier: GPL-2.0 */
/* Traffic control: where a connection to a service address really goes. */
#ifndef HOOK_ROUTE_H
#define HOOK_ROUTE_H

#include "address.h"
#include "log.h"

enum verdict {
	NOT_OURS, /* leave the connection alone, remember nothing */
	KEEP, /* ours, and its destination is right as it is */
	REWRITE, /* ours, and it goes to the route's destination */
};

struct route {
	struct ip_addr addr;
	__u32 port;
	bool via_waypoint;
};

static __always_inline enum verdict route_to_waypoint(const struct ip_addr *addr, __u32 port,
						      struct route *route)
{
	route->addr = *addr;
	route->port = port;
	route->via_waypoint = true;
	return REWRITE;
}

/* Finds the target port that goes with a port of the service; false if it has no such port. */
static __always_inline bool find_target_port(const service_value *service, __u32 port,
					     __u32 *target_port)
{
#pragma unroll
	for (int i = 0; i < SERVICE_PORTS; i++) {
		if (service->service_port[i] == port) {
			*target_port = service->target_port[i];
			return true;
		}
	}
	return false;
}

static __always_inline enum verdict route_to_backend(const struct destination *dst,
						     const service_value *service,
						     const backend_value *backend,
						     struct route *route)
{
	if (backend->waypoint_port)
		return route_to_waypoint(&backend->wp_addr, backend->waypoint_port, route);

	if (!find_target_port(service, dst->port, &route->port)) {
		log_error("service without a port equal to the connection's");
		return NOT_OURS;
	}
	route->addr = backend->addr;
	return REWRITE;
}

/* A random one of the service's `count` endpoints of this priority. */
static __always_inline enum verdict route_to_endpoint(const struct destination *dst,
						      __u32 service_id,
						      const service_value *service, __u32 prio,
						      __u32 count, struct route *route)
{
	endpoint_key key = {
		.service_id = service_id,
		.prio = prio,
		.backend_index = bpf_get_prandom_u32() % count + 1,
	};
	const endpoint_value *endpoint;
	const backend_value *backend;
	backend_key uid = {};

	endpoint = bpf_map_lookup_elem(&km_endpoint, &key);
	if (!endpoint) {
		log_error("endpoint counted but missing");
		return NOT_OURS;
	}
	uid.backend_uid = endpoint->backend_uid;
	backend = bpf_map_lookup_elem(&km_backend, &uid);
	if (!backend) {
		log_error("endpoint without its backend");
		return NOT_OURS;
	}
	return route_to_backend(dst, service, backend, route);
}

static __always_inline enum verdict route_by_failover(const struct destination *dst,
						      __u32 service_id,
						      const service_value *service,
						      struct route *route)
{
	__u32 count = 0;
	__u32 prio = 0;

#pragma unroll
	for (int i = 0; i < PRIORITIES; i++) {
		if (service->prio_endpoint_count[i]) {
			count = service->prio_endpoint_count[i];
			prio = i;
			break;
		}
	}
	if (!count) {
		log_error("failover policy: no endpoint at any priority");
		return NOT_OURS;
	}
	return route_to_endpoint(dst, service_id, service, prio, count, route);
}

static __always_inline enum verdict route_to_service(const struct destination *dst,
						     __u32 service_id, const service_value *service,
						     struct route *route)
{
	__u32 count = service->prio_endpoint_count[0];

	/* The first word decides for IPv6 as well: that is the interface. */
	if (service->wp_addr.ip4 && service->waypoint_port)
		return route_to_waypoint(&service->wp_addr, service->waypoint_port, route);

	switch (service->lb_policy) {
	case LB_RANDOM:
		if (!count) {
			log_debug("random policy: no endpoint, destination kept");
			return KEEP;
		}
		return route_to_endpoint(dst, service_id, service, 0, count, route);
	case LB_STRICT_LOCALITY:
		if (!count) {
			log_error("strict policy: no endpoint at priority 0");
			return NOT_OURS;
		}
		return route_to_endpoint(dst, service_id, service, 0, count, route);
	case LB_FAILOVER_LOCALITY:
		return route_by_failover(dst, service_id, service, route);
	default:
		log_error("unknown load balancing policy");
		return NOT_OURS;
	}
}

static __always_inline enum verdict choose_route(const struct destination *dst, struct route *route)
{
	frontend_key key = {.addr = map_form(dst)};
	const frontend_value *frontend;
	const service_value *service;
	const backend_value *backend;
	service_key service_id = {};
	backend_key uid = {};

	frontend = bpf_map_lookup_elem(&km_frontend, &key);
	if (!frontend) {
		log_debug("destination is no frontend");
		return NOT_OURS;
	}

	service_id.service_id = frontend->upstream_id;
	service = bpf_map_lookup_elem(&km_service, &service_id);
	if (service)
		return route_to_service(dst, service_id.service_id, service, route);

	uid.backend_uid = frontend->upstream_id;
	backend = bpf_map_lookup_elem(&km_backend, &uid);
	if (!backend) {
		log_error("frontend without its service or backend");
		return NOT_OURS;
	}
	if (backend->waypoint_port)
		return route_to_waypoint(&backend->wp_addr, backend->waypoint_port, route);
	return KEEP;
}

#endif
