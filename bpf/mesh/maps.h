/* SPDX-License-Identifier: GPL-2.0 */
/* The maps that the connect hook's neighbours have for themselves. */
#ifndef MESH_MAPS_H
#define MESH_MAPS_H

#include "../hook/shared_maps.h"
#include "types.h"

/*
 * Connections whose messages mesh_sk_msg sees. Values of 4 bytes, as meshes have them: user
 * space cannot look a socket up.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(key_size, sizeof(struct bpf_sock_tuple));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 4096);
} km_sockhash SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} km_auth_request SEC(".maps");

/* What user space answered; an entry lasts as long as its connection. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(key_size, sizeof(struct bpf_sock_tuple));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} km_auth SEC(".maps");

#endif
