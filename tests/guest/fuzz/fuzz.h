/* SPDX-License-Identifier: GPL-2.0 */
/* What the parts of the fuzzer share: chance, the pools of descriptors, and each other. */
#ifndef FUZZ_H
#define FUZZ_H

#include <linux/bpf.h>
#include <stddef.h>
#include <stdint.h>

/* ---- chance (splitmix64): the same seed asks for the same ---- */

struct rng {
	uint64_t state;
};

static inline uint64_t next(struct rng *r)
{
	uint64_t z = r->state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static inline unsigned int below(struct rng *r, unsigned int n)
{
	return next(r) % n;
}

static inline int percent(struct rng *r, unsigned int p)
{
	return below(r, 100) < p;
}

#define PICK(r, array) ((array)[below(r, sizeof(array) / sizeof(*(array)))])

/* ---- programs.c ---- */

enum { ATTACH_TYPES = 12 };
extern const int attach_types[ATTACH_TYPES];

enum program_kind { ALLOW, REWRITE, STORE, CHAIN, SETSOCKOPT, BIND, PROGRAM_KINDS };

long bpf(int cmd, void *attr, unsigned int size);
int attaches_ipv4(int type);
int create_map(int type, int key, int value, int entries, int flags, int btf);
int create_storage_map(void);
int load_program(enum program_kind kind, int type, int storage, int array);

/* ---- pools.c: shared by all threads on purpose, descriptors that go stale included ---- */

enum { SOCKETS = 64, PROGRAMS = 4 * ATTACH_TYPES };
extern int sockets[SOCKETS]; /* and whatever else a descriptor can be */
extern int programs[PROGRAMS]; /* slot i is of attach type i % ATTACH_TYPES */

void fill_pools(struct rng *r);
void stir_pools(struct rng *r);

/* ---- requests.c ---- */

extern struct bpf_sock_addr shared_ctx; /* used by some requests while it changes */

void prepare_requests(struct rng *r);
void fill_context(struct rng *r, struct bpf_sock_addr *ctx, int type);
long make_request(struct rng *r, int *type); /* returns the errno, 0 when the program ran */

void die(const char *what);

#endif
