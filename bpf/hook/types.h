/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The interface of the connect hook: what its maps hold.
 *
 * Control planes and tests fill the maps by these layouts, and find them by name in the
 * object's BTF. Addresses and ports are in network byte order everywhere.
 *
 * "packed" is part of the interface; "aligned(4)" changes no offset and no size, and spares
 * the compiler from reading every word byte by byte.
 */
#ifndef HOOK_TYPES_H
#define HOOK_TYPES_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#define PRIORITIES 7
#define SERVICE_PORTS 10
#define BACKEND_SERVICES 10
#define LOG_TEXT_SIZE 255

#define __packed_words __attribute__((packed, aligned(4)))

/* An IPv4 address takes the first word; the other three are then zero. */
struct ip_addr {
	union {
		__u32 ip4;
		__u32 ip6[4];
	};
};

/* A managed workload is known by its network namespace's cookie. */
struct manager_key {
	union {
		__u64 netns_cookie;
		struct ip_addr addr;
	};
};

typedef struct {
	struct ip_addr addr;
} __packed_words frontend_key;

/* The id of a service or, where no such service exists, the uid of a backend. */
typedef struct {
	__u32 upstream_id;
} __packed_words frontend_value;

typedef struct {
	__u32 service_id;
} __packed_words service_key;

enum lb_policy {
	LB_RANDOM = 0,
	LB_STRICT_LOCALITY = 1,
	LB_FAILOVER_LOCALITY = 2,
};

/* Port i of a service is served at target port i of its endpoints. */
typedef struct {
	__u32 prio_endpoint_count[PRIORITIES];
	__u32 lb_policy;
	__u32 service_port[SERVICE_PORTS];
	__u32 target_port[SERVICE_PORTS];
	struct ip_addr wp_addr;
	__u32 waypoint_port;
} __packed_words service_value;

/* backend_index counts from 1. */
typedef struct {
	__u32 service_id;
	__u32 prio;
	__u32 backend_index;
} __packed_words endpoint_key;

typedef struct {
	__u32 backend_uid;
} __packed_words endpoint_value;

typedef struct {
	__u32 backend_uid;
} __packed_words backend_key;

typedef struct {
	struct ip_addr addr;
	__u32 service_count;
	__u32 service[BACKEND_SERVICES];
	struct ip_addr wp_addr;
	__u32 waypoint_port;
} __packed_words backend_value;

/* What the hook remembers of a socket, for the programs that see the connection later. */
struct sock_storage_data {
	__u64 connect_ns;
	__u64 last_report_ns;
	__u8 direction;
	__u8 connect_success;
	bool via_waypoint;
	bool has_encoded;
	bool has_set_ip;
	struct bpf_sock_tuple sk_tuple;
};

/* A record of the ring buffer: a text that ends in a NUL, and its size with that NUL. */
struct log_event {
	__u32 ret;
	char msg[LOG_TEXT_SIZE];
};

#endif
