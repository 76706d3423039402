/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The maps that the connect hook has for itself.
 *
 * They declare sizes and not types, as the mesh's own do.
 */
#ifndef HOOK_MAPS_H
#define HOOK_MAPS_H

#include <bpf/bpf_helpers.h>

#include "shared_maps.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(key_size, sizeof(frontend_key));
	__uint(value_size, sizeof(frontend_value));
	__uint(max_entries, 105000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} km_frontend SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(key_size, sizeof(service_key));
	__uint(value_size, sizeof(service_value));
	__uint(max_entries, 5000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} km_service SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(key_size, sizeof(endpoint_key));
	__uint(value_size, sizeof(endpoint_value));
	__uint(max_entries, 105000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} km_endpoint SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(key_size, sizeof(backend_key));
	__uint(value_size, sizeof(backend_value));
	__uint(max_entries, 100000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} km_backend SEC(".maps");

/*
 * One array for each family: a kernel refuses a program array that mixes connect4 and connect6
 * programs (6.12.57 and later do).
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 8);
} km_cgr_tailcall SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 8);
} km_cgr_tail6 SEC(".maps");

#endif
