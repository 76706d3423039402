// SPDX-License-Identifier: GPL-2.0
/* Requests: a good one, and then perhaps not quite. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz.h"

struct bpf_sock_addr shared_ctx;
static char *edge, *readonly; /* the end of a page that has none behind it; a read-only page */
static long page;

static const int families[] = {AF_INET, AF_INET6, AF_UNSPEC, AF_UNIX, 0xffff, -1};
static const int socket_types[] = {SOCK_STREAM,	   SOCK_DGRAM, SOCK_RAW, 0,
				   SOCK_SEQPACKET, 10,	       77,	 -1};
static const int protocols[] = {IPPROTO_TCP, IPPROTO_UDP, 0, IPPROTO_ICMP, IPPROTO_MPTCP, 255, -1};
static const uint32_t sizes[] = {0,  1,	  8,	40,   60,   64,	   71,	    72,		73,
				 80, 128, 4095, 4096, 4097, 65536, 1 << 20, 0x7fffffff, 0xffffffff};

/* The field is a pointer to the program and a number to user space. */
static void set_fd(struct bpf_sock_addr *ctx, uint64_t fd)
{
	memcpy((char *)ctx + offsetof(struct bpf_sock_addr, sk), &fd, sizeof(fd));
}

/* A context that fits the attach type, and then perhaps not quite. */
void fill_context(struct rng *r, struct bpf_sock_addr *ctx, int type)
{
	int ipv4 = attaches_ipv4(type);
	int datagram = strchr("\x0e\x0f\x13\x14", attach_types[type]) != NULL; /* UDP*_*MSG */
	uint32_t *words = (uint32_t *)ctx;

	memset(ctx, 0, sizeof(*ctx));
	ctx->user_family = ctx->family = ipv4 ? AF_INET : AF_INET6;
	ctx->type = datagram || percent(r, 30) ? SOCK_DGRAM : SOCK_STREAM;
	ctx->user_port = htons(next(r));
	if (ipv4)
		ctx->user_ip4 = next(r);
	else
		ctx->user_ip6[3] = next(r);
	if (percent(r, 60)) {
		set_fd(ctx, sockets[below(r, SOCKETS)]);
		if (percent(r, 80))
			ctx->family = ctx->type = 0;
	}
	while (percent(r, 25)) {
		switch (below(r, 6)) {
		case 0:
			ctx->user_family = PICK(r, families);
			break;
		case 1:
			ctx->family = PICK(r, families);
			break;
		case 2:
			ctx->type = PICK(r, socket_types);
			break;
		case 3:
			ctx->protocol = PICK(r, protocols);
			break;
		case 4:
			set_fd(ctx, percent(r, 50) ? next(r) : below(r, 300));
			break;
		default:
			words[below(r, sizeof(*ctx) / 4)] = percent(r, 50) ? next(r) : 1;
		}
	}
}

/* A pointer that is wrong in one of the ways in which pointers can be. */
static uint64_t wild(struct rng *r)
{
	switch (below(r, 8)) {
	case 0:
		return 0;
	case 1:
		return (uintptr_t)edge - below(r, 80);
	case 2:
		return (uintptr_t)readonly + below(r, page);
	case 3:
		return 0xffff888000000000 + below(r, 1 << 30); /* the kernel's own memory */
	case 4:
		return 0xffffffff81000000 + below(r, 1 << 24); /* its text */
	case 5:
		return 0x00007ffffffff000 - below(r, 100); /* the last of user space */
	case 6:
		return 0x8000000000000000 | next(r) >> 1; /* not canonical */
	default:
		return next(r);
	}
}

/* Mostly once or twice; one in ten thousand would not end before the next signal. */
static uint32_t repeat(struct rng *r)
{
	unsigned int dice = below(r, 10000);

	if (dice < 9500)
		return below(r, 3);
	if (dice < 9990)
		return below(r, 50);
	return dice < 9999 ? below(r, 5000) : 0xffffffff - below(r, 2);
}

long make_request(struct rng *r, int *type)
{
	struct bpf_sock_addr in, out;
	char data[64];
	int slot = below(r, PROGRAMS);
	unsigned int size = offsetof(union bpf_attr, test.cpu) + 4;
	union bpf_attr attr;

	*type = slot % ATTACH_TYPES;
	fill_context(r, &in, *type);
	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = percent(r, 98) ? programs[slot] : sockets[below(r, SOCKETS)];
	attr.test.ctx_in = (uintptr_t)(percent(r, 97) ? &in : &shared_ctx);
	attr.test.ctx_size_in = sizeof(in);
	attr.test.ctx_out = (uintptr_t)&out;
	attr.test.ctx_size_out = sizeof(out);
	attr.test.repeat = repeat(r);
	if (percent(r, 20)) {
		attr.test.data_out = (uintptr_t)data;
		attr.test.data_size_out = percent(r, 80) ? sizeof(data) : below(r, 8);
	}
	while (percent(r, 15)) {
		switch (below(r, 9)) {
		case 0:
			attr.test.ctx_in = wild(r);
			break;
		case 1:
			attr.test.ctx_out = wild(r);
			break;
		case 2:
			attr.test.ctx_size_in = PICK(r, sizes);
			break;
		case 3:
			attr.test.ctx_size_out = PICK(r, sizes);
			break;
		case 4:
			attr.test.data_out = wild(r);
			attr.test.data_size_out = PICK(r, sizes);
			break;
		case 5:
			attr.test.data_in = wild(r);
			attr.test.data_size_in = PICK(r, sizes);
			break;
		case 6:
			attr.test.flags = 1u << below(r, 32);
			break;
		case 7:
			attr.test.cpu = next(r);
			break;
		default:
			size = below(r, sizeof(attr) + 1);
		}
	}
	return bpf(BPF_PROG_TEST_RUN, &attr, size) < 0 ? errno : 0;
}

void prepare_requests(struct rng *r)
{
	page = sysconf(_SC_PAGESIZE);
	edge = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	readonly = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (edge == MAP_FAILED || readonly == MAP_FAILED || munmap(edge + page, page))
		die("map pages");
	edge += page;
	fill_context(r, &shared_ctx, 0);
}
