/* SPDX-License-Identifier: GPL-2.0 */
/* What the maps of sized.bpf.c hold; its BTF says nothing of it. */
#ifndef SIZED_H
#define SIZED_H

#include <linux/types.h>

#ifndef PORTS
#define PORTS 4
#endif

typedef struct {
	__u32 id;
} __attribute__((packed)) sized_key;

typedef struct {
	__u8 kind;
	__u32 address;
	__u32 ports[PORTS];
} __attribute__((packed)) sized_value;

#endif
