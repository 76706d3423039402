/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The inner loop of bpfunit.explore(): an input at a time, from maps as they were at the load, and
 * what the recording pass of bpfunit/explorer/recorder.py saw of it.
 *
 * Inputs and outcomes are byte strings in the layout of bpfunit/explorer/wire.py, so that the
 * search may run in another machine than the kernel. The structures are mirrored in
 * bpfunit/_native.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_CTX 512
#define MAX_DATA 4096
#define MAX_KEY 512
#define RECORD_SIZE 64
#define KEY_AT 24
#define KEY_ROOM 40
/* Of the sockets of a pair, in every run the same: programs keep what they know by them. */
#define SERVER_PORT 20080
#define CLIENT_PORT 20081

enum map_kind {
	KIND_DELETE, /* entries can be deleted: hash, LPM trie, LRU */
	KIND_ARRAY, /* entries are put back to zero */
	KIND_SECTION, /* one value, put back to what it was at the load */
	KIND_STORAGE, /* the key is the run's socket */
	KIND_PROGRAMS, /* the value is the descriptor of the spy */
	KIND_SOCKETS, /* the value is the descriptor of a listening socket, of 4 or 8 bytes */
	KIND_GROUP, /* the value is the descriptor of the run's own socket */
};

struct explored_map {
	int32_t fd;
	uint32_t kind;
	uint32_t key_size;
	uint32_t value_size; /* that of a value as the system call has it: of all CPUs */
	const uint8_t *initial; /* KIND_SECTION */
};

struct ring {
	volatile uint64_t *consumer;
	volatile uint64_t *producer;
	const uint8_t *data; /* mapped twice in a row, so that no record is cut */
	uint64_t mask;
};

struct site {
	uint8_t has_a, has_b;
	uint16_t key_size; /* 0 for none */
	int32_t map; /* whose key it is, -1 for none */
};

struct exploration {
	int32_t prog_fd;
	int32_t spy_fd;
	uint32_t answer_size; /* 4 for types that answer with struct bpfunit_result, else 0 */
	uint32_t has_ctx_out;
	uint32_t data_room; /* bytes by which a packet may grow; 0 for types without a packet */
	int32_t fd_offset; /* as in bulk.c */
	int32_t made_of_offset;
	uint32_t maps, rings, sites;
	struct explored_map *map;
	struct ring *ring;
	struct site *site;
	volatile uint64_t *head; /* how many records were written, then room, then the records */
	uint64_t record_mask;
	uint8_t *stub; /* the memory that stubbed calls read */
	const uint8_t *stub_default;
	uint64_t stub_size;
	const uint8_t *in;
	uint64_t in_size;
	uint8_t *out;
	uint64_t out_room;
	uint64_t out_used;
	int64_t socket_fd; /* what is put into maps of sockets */
	/*
	 * Of types that are run by a header in data_in, where it names the socket, as
	 * bpfunit/explorer/heads.py says which; the context of an input is that header. -1
	 * elsewhere.
	 */
	int32_t socket_offset;
	uint32_t answer_head; /* bytes in front of the data in data_out, */
	uint32_t answer_shown; /* of which these are part of the outcome: the rest names sockets */
	uint32_t reserved;
};

/* The lowest byte of a socket's number in a header; the next is its family, then its type. */
enum role {
	ROLE_NONE,
	ROLE_CLIENT,
	ROLE_SERVER,
	ROLE_LISTENER,
	ROLE_FRESH,
	ROLE_BOUND,
	ROLE_GROUP, /* bound with SO_REUSEPORT, TCP listens */
};

/* The run's socket, its other end, and the listener of the two; 0 for none. */
struct sockets {
	int own, peer, listener;
};

struct touched {
	uint16_t map;
	uint8_t key[MAX_KEY];
};

/* What an outcome can take at most beside its records: contexts, packets, storages, log, entries.
 */
#define SPARE (1 << 18)
#define MAX_TOUCHED 1024

static struct touched touched[MAX_TOUCHED];
static unsigned int touched_count;
static uint8_t zeroes[1 << 16], value_room[1 << 16];

static long bpf(int cmd, union bpf_attr *attr)
{
	return syscall(SYS_bpf, cmd, attr, sizeof(*attr));
}

static long element(int cmd, const struct explored_map *map, const void *key, const void *value)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = map->fd;
	attr.key = (uint64_t)(uintptr_t)key;
	attr.value = (uint64_t)(uintptr_t)value;
	return bpf(cmd, &attr);
}

static void put(struct exploration *job, const void *data, size_t size)
{
	memcpy(job->out + job->out_used, data, size);
	job->out_used += size;
}

static void put32(struct exploration *job, uint32_t value)
{
	put(job, &value, sizeof(value));
}

static uint32_t take32(const uint8_t **at)
{
	uint32_t value;

	memcpy(&value, *at, sizeof(value));
	*at += sizeof(value);
	return value;
}

static void touch(struct exploration *job, uint16_t map, const uint8_t *key)
{
	unsigned int n, size = job->map[map].key_size;

	for (n = 0; n < touched_count; n++)
		if (touched[n].map == map && !memcmp(touched[n].key, key, size))
			return;
	if (touched_count == MAX_TOUCHED || size > MAX_KEY)
		return;
	touched[touched_count].map = map;
	memcpy(touched[touched_count++].key, key, size);
}

/* A key that is too long for a record: the map is emptied by walking through it. */
static void empty(const struct explored_map *map)
{
	uint8_t key[MAX_KEY];

	while (!element(BPF_MAP_GET_NEXT_KEY, map, NULL, key))
		if (element(BPF_MAP_DELETE_ELEM, map, key, NULL))
			return;
}

static void reset(struct exploration *job)
{
	unsigned int n;

	for (n = 0; n < touched_count; n++) {
		struct explored_map *map = &job->map[touched[n].map];

		if (map->kind == KIND_DELETE || map->kind == KIND_PROGRAMS ||
		    map->kind == KIND_SOCKETS || map->kind == KIND_GROUP)
			element(BPF_MAP_DELETE_ELEM, map, touched[n].key, NULL);
		else if (map->kind == KIND_ARRAY)
			element(BPF_MAP_UPDATE_ELEM, map, touched[n].key, zeroes);
	}
	touched_count = 0;
	for (n = 0; n < job->maps; n++) {
		if (job->map[n].kind == KIND_SECTION)
			element(BPF_MAP_UPDATE_ELEM, &job->map[n], zeroes, job->map[n].initial);
		else if (job->map[n].kind == KIND_DELETE && job->map[n].key_size > KEY_ROOM)
			empty(&job->map[n]);
	}
	for (n = 0; n < job->rings; n++)
		*job->ring[n].consumer = *job->ring[n].producer;
	memcpy(job->stub, job->stub_default, job->stub_size);
}

static void records_out(struct exploration *job)
{
	const uint8_t *base = (const uint8_t *)(job->head + 8);
	uint64_t head = *job->head, first = 1, n;
	uint64_t size_at = job->out_used + 4;

	if (head > job->record_mask)
		first = head - job->record_mask + 1;
	put32(job, head);
	put32(job, 0);
	for (n = first; n <= head; n++) {
		const uint8_t *record = base + (n & job->record_mask) * RECORD_SIZE;
		struct site *site;
		uint16_t number;
		uint32_t id;

		memcpy(&id, record, sizeof(id));
		if (id >= job->sites)
			continue;
		site = &job->site[id];
		number = id;
		put(job, &number, sizeof(number));
		if (site->has_a)
			put(job, record + 8, 8);
		if (site->has_b)
			put(job, record + 16, 8);
		if (site->key_size) {
			put(job, record + KEY_AT, site->key_size);
			if (site->map >= 0)
				touch(job, site->map, record + KEY_AT);
		}
	}
	n = job->out_used - size_at - 4;
	memcpy(job->out + size_at, &(uint32_t){n}, 4);
	*job->head = 0;
}

static void logs_out(struct exploration *job)
{
	uint64_t start = job->out_used;
	unsigned int n;

	put32(job, 0);
	for (n = 0; n < job->rings; n++) {
		struct ring *ring = &job->ring[n];
		uint64_t at = *ring->consumer, end = *ring->producer;

		while (at < end && job->out_used - start < SPARE / 4) {
			const uint8_t *record = ring->data + (at & ring->mask);
			uint32_t length;

			memcpy(&length, record, sizeof(length));
			if (length >> 31)
				break; /* reserved and never committed */
			if (!(length >> 30 & 1)) {
				put32(job, n);
				put32(job, length & 0x3fffffff);
				put(job, record + 8, length & 0x3fffffff);
			}
			at += ((length & 0x3fffffff) + 8 + 7) & ~7ULL;
		}
		*ring->consumer = end;
	}
	memcpy(job->out + start, &(uint32_t){job->out_used - start - 4}, 4);
}

/* A header and a payload in data_in; in data_out an answer, of which a part stands for a context.
 */
static void run_headed(struct exploration *job, const uint8_t *head, uint32_t head_size,
		       const uint8_t *data, uint32_t data_size, int fd)
{
	static uint8_t in[MAX_CTX + 2 * MAX_DATA], out[MAX_CTX + 4 * MAX_DATA];
	union bpf_attr attr;
	uint32_t size = 0;
	int32_t error;

	if (head_size > MAX_CTX || data_size > 2 * MAX_DATA)
		data_size = 0; /* too long for any of them: the module refuses what is left */
	memcpy(in, head, head_size);
	memcpy(in + job->socket_offset, &(int32_t){fd}, sizeof(int32_t));
	memcpy(in + head_size, data, data_size);
	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = job->prog_fd;
	attr.test.repeat = 1;
	attr.test.data_in = (uint64_t)(uintptr_t)in;
	attr.test.data_size_in = head_size + data_size;
	attr.test.data_out = (uint64_t)(uintptr_t)out;
	attr.test.data_size_out = sizeof(out);
	*job->head = 0;
	error = bpf(BPF_PROG_TEST_RUN, &attr) < 0 ? errno : 0;
	if (!error)
		size = attr.test.data_size_out;
	if (size < job->answer_head)
		memset(out, 0, job->answer_head);
	put32(job, error);
	put32(job, error ? 0 : attr.test.retval);
	put(job, out, sizeof(int32_t)); /* what the hook hands on: the first of every answer */
	put32(job, error ? 0 : job->answer_shown);
	put(job, out, error ? 0 : job->answer_shown);
	size = size > job->answer_head ? size - job->answer_head : 0;
	put32(job, size);
	put(job, out + job->answer_head, size);
	records_out(job);
	logs_out(job);
}

static void run(struct exploration *job, const uint8_t *ctx, uint32_t ctx_size, const uint8_t *data,
		uint32_t data_size, int fd)
{
	static uint8_t in[MAX_CTX], out[MAX_DATA], data_out[2 * MAX_DATA];
	union bpf_attr attr;
	int32_t verdict = 0, error;
	unsigned int n;

	if (job->socket_offset >= 0) {
		run_headed(job, ctx, ctx_size, data, data_size, fd);
		return;
	}
	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = job->prog_fd;
	attr.test.repeat = 1;
	if (ctx_size) {
		memcpy(in, ctx, ctx_size);
		if (fd > 0 && job->fd_offset >= 0)
			memcpy(in + job->fd_offset, &(uint64_t){fd}, sizeof(uint64_t));
		attr.test.ctx_in = (uint64_t)(uintptr_t)in;
		attr.test.ctx_size_in = ctx_size;
		if (job->has_ctx_out) {
			attr.test.ctx_out = (uint64_t)(uintptr_t)out;
			attr.test.ctx_size_out = sizeof(out);
		}
	}
	if (data_size) {
		attr.test.data_in = (uint64_t)(uintptr_t)data;
		attr.test.data_size_in = data_size;
		attr.test.data_out = (uint64_t)(uintptr_t)data_out;
		attr.test.data_size_out = data_size + job->data_room;
	} else if (job->answer_size) {
		attr.test.data_out = (uint64_t)(uintptr_t)&verdict;
		attr.test.data_size_out = job->answer_size;
	}
	*job->head = 0;
	error = bpf(BPF_PROG_TEST_RUN, &attr) < 0 ? errno : 0;
	put32(job, error);
	put32(job, error ? 0 : attr.test.retval);
	put32(job, verdict);
	n = error || !ctx_size || !job->has_ctx_out ? 0 : ctx_size;
	put32(job, n);
	put(job, out, n);
	n = error || !data_size ? 0 : attr.test.data_size_out;
	put32(job, n);
	put(job, data_out, n);
	records_out(job);
	logs_out(job);
}

static void entries_out(struct exploration *job, int fd)
{
	uint64_t start = job->out_used;
	unsigned int n;

	put32(job, 0);
	for (n = 0; n < touched_count; n++) {
		struct explored_map *map = &job->map[touched[n].map];

		/* what maps of sockets show of one, its cookie, differs from run to run */
		if (map->kind == KIND_SECTION || map->kind == KIND_PROGRAMS ||
		    map->kind == KIND_SOCKETS || map->kind == KIND_GROUP)
			continue;
		if (job->out_used - start > SPARE / 4)
			break;
		if (element(BPF_MAP_LOOKUP_ELEM, map, touched[n].key, value_room))
			continue;
		put32(job, touched[n].map);
		put(job, touched[n].key, map->key_size);
		put(job, value_room, map->value_size);
	}
	for (n = 0; n < job->maps; n++) {
		struct explored_map *map = &job->map[n];

		if (map->kind == KIND_SECTION) {
			if (element(BPF_MAP_LOOKUP_ELEM, map, zeroes, value_room))
				continue;
		} else if (map->kind != KIND_STORAGE || fd <= 0 ||
			   element(BPF_MAP_LOOKUP_ELEM, map, &fd, value_room)) {
			continue;
		}
		put32(job, n);
		put(job, zeroes, map->key_size);
		put(job, value_room, map->value_size);
	}
	memcpy(job->out + start, &(uint32_t){job->out_used - start - 4}, 4);
}

static int fill(struct exploration *job, const uint8_t **at, const struct sockets *sockets)
{
	int64_t own = sockets->own, other = sockets->peer > 0 ? sockets->peer : job->socket_fd;
	uint32_t entries = take32(at), n;
	int failed = 0, fd = sockets->own;

	for (n = 0; n < entries; n++) {
		uint32_t number = take32(at);
		struct explored_map *map = &job->map[number];
		const uint8_t *key = *at, *value = *at + map->key_size;

		*at += map->key_size + map->value_size;
		if (map->kind == KIND_STORAGE) {
			if (fd > 0)
				element(BPF_MAP_UPDATE_ELEM, map, &fd, value);
			continue;
		}
		if (map->kind == KIND_PROGRAMS)
			value = (const uint8_t *)&job->spy_fd;
		else if (map->kind == KIND_SOCKETS)
			value = (const uint8_t *)&other;
		else if (map->kind == KIND_GROUP)
			value = (const uint8_t *)&own;
		touch(job, number, key);
		if (element(BPF_MAP_UPDATE_ELEM, map, key, value))
			failed = errno;
	}
	return failed;
}

static int bound(int family, int type, int port, int option)
{
	struct sockaddr_in6 six = {.sin6_family = AF_INET6,
				   .sin6_port = htons(port),
				   .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	struct sockaddr_in four = {.sin_family = AF_INET,
				   .sin_port = htons(port),
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(family, type, 0), on = 1;

	if (fd < 0)
		return fd;
	setsockopt(fd, SOL_SOCKET, option, &on, sizeof(on));
	if (family == AF_INET6 ? bind(fd, (struct sockaddr *)&six, sizeof(six))
			       : bind(fd, (struct sockaddr *)&four, sizeof(four))) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Two ends of one connection over loopback. */
static void make_pair(struct sockets *made, int family, int from_server)
{
	struct sockaddr_storage address;
	socklen_t size = sizeof(address);
	int client, server;

	made->listener = bound(family, SOCK_STREAM, SERVER_PORT, SO_REUSEADDR);
	client = bound(family, SOCK_STREAM, CLIENT_PORT, SO_REUSEADDR);
	if (listen(made->listener, 1) ||
	    getsockname(made->listener, (struct sockaddr *)&address, &size) ||
	    connect(client, (struct sockaddr *)&address, size))
		return;
	server = accept(made->listener, NULL, NULL);
	made->own = from_server ? server : client;
	made->peer = from_server ? client : server;
}

static struct sockets make_sockets(struct exploration *job, const uint8_t *ctx)
{
	struct sockets made = {0};
	uint32_t number, made_of[3];
	int family, type;

	if (job->socket_offset < 0) {
		if (job->made_of_offset >= 0) {
			memcpy(made_of, ctx + job->made_of_offset, sizeof(made_of));
			made.own = socket(made_of[0], made_of[1], made_of[2]);
		}
		return made;
	}
	memcpy(&number, ctx + job->socket_offset, sizeof(number));
	family = number >> 8 & 0xff;
	type = number >> 16 & 0xff;
	switch (number & 0xff) {
	case ROLE_CLIENT:
	case ROLE_SERVER:
		make_pair(&made, family, (number & 0xff) == ROLE_SERVER);
		break;
	case ROLE_FRESH:
		made.own = socket(family, type, 0);
		break;
	case ROLE_LISTENER:
	case ROLE_BOUND:
		made.own = bound(family, type, SERVER_PORT, SO_REUSEADDR);
		break;
	case ROLE_GROUP:
		made.own = bound(family, type, SERVER_PORT, SO_REUSEPORT);
		break;
	}
	if ((number & 0xff) == ROLE_LISTENER ||
	    ((number & 0xff) == ROLE_GROUP && type == SOCK_STREAM))
		listen(made.own, 1);
	return made;
}

/* Without the wait of a connection's end, so that the next one may have its ports. */
static void close_sockets(const struct sockets *made)
{
	struct linger at_once = {.l_onoff = 1};
	int fds[] = {made->peer, made->own, made->listener};
	unsigned int n;

	for (n = 0; n < sizeof(fds) / sizeof(fds[0]); n++) {
		if (fds[n] <= 0)
			continue;
		if (made->listener)
			setsockopt(fds[n], SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
		close(fds[n]);
	}
}

/*
 * Run the inputs from byte "from" on; return where the first one starts that was not run: in_size
 * at the end, less when the room for outcomes is used up.
 */
uint64_t bpfunit_explore(struct exploration *job, uint64_t from)
{
	const uint8_t *at = job->in + from, *end = job->in + job->in_size;
	uint64_t need = SPARE + (job->record_mask + 1) * RECORD_SIZE;

	job->out_used = 0;
	reset(job);
	while (at < end) {
		const uint8_t *input = at;
		uint32_t size = take32(&at), stubs, steps, n;
		uint64_t start = job->out_used;
		const uint8_t *first, *entries;
		struct sockets sockets = {0};

		/* an outcome holds one set of records for each step */
		first = at;
		steps = take32(&at);
		if (job->out_room - job->out_used < need * (steps ? steps : 1))
			return input - job->in;
		put32(job, 0);
		put32(job, steps);
		stubs = take32(&at);
		for (n = 0; n < stubs; n++) {
			uint32_t slot = take32(&at);

			memcpy(job->stub + slot * 16, at, 16);
			at += 16;
		}
		entries = at;
		/* the socket is that of the first step's context */
		{
			uint32_t count = take32(&at);

			for (n = 0; n < count; n++) {
				struct explored_map *map = &job->map[take32(&at)];

				at += map->key_size + map->value_size;
			}
		}
		for (n = 0; n < steps; n++) {
			uint32_t ctx_size = take32(&at), data_size;
			const uint8_t *ctx = at, *data;

			at += ctx_size;
			data_size = take32(&at);
			data = at;
			at += data_size;
			if (!n) {
				if (ctx_size)
					sockets = make_sockets(job, ctx);
				put32(job, fill(job, &entries, &sockets));
			}
			run(job, ctx, ctx_size, data, data_size, sockets.own);
		}
		entries_out(job, sockets.own);
		close_sockets(&sockets);
		reset(job);
		memcpy(job->out + start, &(uint32_t){job->out_used - start - 4}, 4);
		at = first + size;
	}
	return job->in_size;
}
