/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Puts the maps of a loaded object back to what a fresh load gives, and proves it map by map.
 *
 * What is emptied is emptied to the kernel's own "there is nothing more" (ENOENT), or, where the
 * memory that the kernel accounts to a map tells how many entries it has, to that of the empty map.
 * The structures are mirrored in bpfunit/_native/__init__.py; bpfunit/reuse/rewind.py chooses the
 * ways.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum way {
	BATCH, /* hash tables: entries known, the rest in batches */
	WALK, /* tries and hashes of maps: from key to key */
	SLOTS, /* arrays whose slots are empty at first */
	POP, /* queues and stacks */
	ELEMENTS, /* arrays of data */
	SOCKETS, /* storage of the sockets that this process has open */
	DRAINED, /* emptied by who reads it: looked at, not changed */
};

struct rewound_map {
	int32_t fd;
	uint32_t way;
	uint32_t key_size;
	uint32_t value_size; /* of all CPUs */
	uint32_t max_entries;
	int32_t known; /* keys that are known to have been written; -1 when they were not noted */
	const uint8_t *keys;
	const uint8_t *initial; /* ELEMENTS: every element as the load left it, NULL for zeros */
	int64_t memory; /* accounted to the empty map where that tells the count, else -1 */
	int32_t frozen; /* as the load left it */
	int32_t error; /* out: why it could not be put back, an errno; 0 for still not empty */
};

static long bpf(int cmd, union bpf_attr *attr)
{
	return syscall(SYS_bpf, cmd, attr, sizeof(*attr));
}

static long element(int cmd, int fd, const void *key, const void *value)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = fd;
	attr.key = (uintptr_t)key;
	attr.value = (uintptr_t)value;
	return bpf(cmd, &attr);
}

/* Read what the kernel says of a map: the bytes accounted to it, and whether it is frozen. */
int bpfunit_map_state(int fd, int64_t *memory, int32_t *frozen)
{
	char path[64], text[1024], *found;
	ssize_t size;
	int file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return errno;
	size = read(file, text, sizeof(text) - 1);
	close(file);
	if (size <= 0)
		return EIO;
	text[size] = 0;
	found = strstr(text, "memlock:");
	*memory = found ? atoll(found + strlen("memlock:")) : -1;
	found = strstr(text, "frozen:");
	*frozen = found ? atoi(found + strlen("frozen:")) : -1;
	return 0;
}

static int empty_in_batches(struct rewound_map *map)
{
	uint32_t room = map->max_entries < 256 ? map->max_entries : 256;
	size_t key_room = map->key_size < 4 ? 4 : map->key_size; /* hashes keep 4 bytes there */
	uint8_t *memory = NULL;
	union bpf_attr attr;
	int result;

again:
	free(memory);
	memory = malloc(2 * key_room + (size_t)room * (map->key_size + map->value_size));
	if (!memory)
		return ENOMEM;
	memset(&attr, 0, sizeof(attr));
	attr.batch.map_fd = map->fd;
	attr.batch.keys = (uintptr_t)(memory + 2 * key_room);
	attr.batch.values = attr.batch.keys + (uint64_t)room * map->key_size;
	for (;;) {
		attr.batch.out_batch = (uintptr_t)memory;
		attr.batch.count = room;
		result = bpf(BPF_MAP_LOOKUP_AND_DELETE_BATCH, &attr) ? errno : 0;
		if (result == ENOSPC &&
		    room < map->max_entries) { /* a fuller bucket than there is room */
			room = room > map->max_entries / 4 ? map->max_entries : room * 4;
			goto again;
		}
		if (result)
			break;
		memcpy(memory + key_room, memory, key_room);
		attr.batch.in_batch = (uintptr_t)(memory + key_room);
	}
	free(memory);
	return result == ENOENT ? 0 : result;
}

static int walk(struct rewound_map *map)
{
	uint8_t *keys = malloc(2 * map->key_size);
	uint8_t *key = keys, *next, *swap;
	int result = 0, more;

	if (!keys)
		return ENOMEM;
	next = keys + map->key_size;
	while (!element(BPF_MAP_GET_NEXT_KEY, map->fd, NULL, key)) {
		do { /* the next key first: from a key that is gone the kernel starts again */
			more = !element(BPF_MAP_GET_NEXT_KEY, map->fd, key, next);
			if (element(BPF_MAP_DELETE_ELEM, map->fd, key, NULL) && errno != ENOENT) {
				result = errno;
				goto out;
			}
			swap = key;
			key = next;
			next = swap;
		} while (more);
	}
	result = errno == ENOENT ? 0 : errno;
out:
	free(keys);
	return result;
}

static int empty_table(struct rewound_map *map)
{
	int64_t memory;
	int32_t frozen, n;
	int result;

	if (map->memory >= 0 && map->known >= 0) {
		for (n = 0; n < map->known; n++)
			if (element(BPF_MAP_DELETE_ELEM, map->fd,
				    map->keys + (size_t)n * map->key_size, NULL) &&
			    errno != ENOENT)
				return errno;
		result = bpfunit_map_state(map->fd, &memory, &frozen);
		if (result || memory == map->memory)
			return result;
	}
	return map->way == WALK ? walk(map) : empty_in_batches(map);
}

static int empty_slots(struct rewound_map *map)
{
	uint32_t n;

	for (n = 0; n < map->max_entries; n++)
		if (element(BPF_MAP_DELETE_ELEM, map->fd, &n, NULL) && errno != ENOENT)
			return errno;
	return 0;
}

static int pop_all(struct rewound_map *map)
{
	uint8_t *value = malloc(map->value_size);
	int result;

	if (!value)
		return ENOMEM;
	while (!element(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map->fd, NULL, value))
		;
	result = errno == ENOENT ? 0 : errno;
	free(value);
	return result;
}

static int write_elements(struct rewound_map *map)
{
	uint8_t *zeros = calloc(2, map->value_size), *value;
	int result = 0;
	uint32_t n;

	if (!zeros)
		return ENOMEM;
	value = zeros + map->value_size;
	for (n = 0; n < map->max_entries && !result; n++) {
		const uint8_t *wanted =
			map->initial ? map->initial + (size_t)n * map->value_size : zeros;

		if (element(BPF_MAP_LOOKUP_ELEM, map->fd, &n, value))
			result = errno;
		else if (memcmp(value, wanted, map->value_size) &&
			 element(BPF_MAP_UPDATE_ELEM, map->fd, &n, wanted))
			result = errno;
	}
	free(zeros);
	return result;
}

static int empty_sockets(struct rewound_map *map)
{
	DIR *directory = opendir("/proc/self/fd");
	struct dirent *entry;
	int result = 0;

	if (!directory)
		return errno;
	while ((entry = readdir(directory))) {
		int32_t fd = atoi(entry->d_name); /* "." is 0, which is asked for anyway */

		if (element(BPF_MAP_DELETE_ELEM, map->fd, &fd, NULL) && errno != ENOENT &&
		    errno != ENOTSOCK && errno != EBADF) {
			result = errno;
			break;
		}
	}
	closedir(directory);
	return result;
}

/* Put maps back, in order; return the number of the first that could not be, "count" for none. */
uint32_t bpfunit_rewind(struct rewound_map *maps, uint32_t count)
{
	uint32_t n;

	for (n = 0; n < count; n++) {
		struct rewound_map *map = &maps[n];
		int64_t memory;
		int32_t frozen;

		switch (map->way) {
		case BATCH:
		case WALK:
			map->error = empty_table(map);
			break;
		case SLOTS:
			map->error = empty_slots(map);
			break;
		case POP:
			map->error = pop_all(map);
			break;
		case ELEMENTS:
			map->error = write_elements(map);
			break;
		case SOCKETS:
			map->error = empty_sockets(map);
			break;
		case DRAINED:
			map->error = 0;
			break;
		default:
			map->error = EINVAL;
		}
		if (map->error)
			return n;
		map->error = bpfunit_map_state(map->fd, &memory, &frozen);
		if (map->error || frozen != map->frozen ||
		    (map->memory >= 0 && memory != map->memory))
			return n;
	}
	return count;
}
