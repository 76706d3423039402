/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The maps that the connect hook shares with the mesh's other programs.
 *
 * They declare sizes and not types, as the mesh's own do; only socket storage cannot be
 * created without BTF types.
 */
#ifndef HOOK_SHARED_MAPS_H
#define HOOK_SHARED_MAPS_H

#include <bpf/bpf_helpers.h>

#include "types.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(key_size, sizeof(struct manager_key));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} km_manage SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sock_storage_data);
} km_sockstorage SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} km_log_event SEC(".maps");

#endif
