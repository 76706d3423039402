// SPDX-License-Identifier: GPL-2.0
/* The descriptors that requests name, and what happens to them meanwhile. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz.h"

int sockets[SOCKETS], programs[PROGRAMS];
static int arrays[ATTACH_TYPES], storage;

static void loopback(struct sockaddr_storage *to, int family, int port)
{
	struct sockaddr_in *in4 = (void *)to;
	struct sockaddr_in6 *in6 = (void *)to;

	memset(to, 0, sizeof(*to));
	to->ss_family = family;
	in4->sin_port = htons(port); /* sin6_port is in the same place */
	if (family == AF_INET)
		in4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		in6->sin6_addr = in6addr_loopback;
}

static int open_thing(struct rng *r)
{
	static const int families[] = {AF_INET, AF_INET,    AF_INET6, AF_INET6,
				       AF_UNIX, AF_NETLINK, AF_PACKET};
	static const int types[] = {SOCK_STREAM, SOCK_STREAM, SOCK_DGRAM,
				    SOCK_DGRAM,	 SOCK_RAW,    SOCK_SEQPACKET};
	/*
	 * No MPTCP here: what is done to it in this file leaves sockets of it behind, on 6.12
	 * without any test run. Requests still ask the module for MPTCP sockets of its own.
	 */
	static const int protocols[] = {0, 0, 0, IPPROTO_ICMP, IPPROTO_UDPLITE};
	int ends[2], fd;

	switch (below(r, 16)) {
	case 0:
		if (pipe(ends))
			return -1;
		close(ends[1]);
		return ends[0];
	case 1:
		return eventfd(0, 0);
	case 2:
		return epoll_create1(0);
	case 3:
		return open(percent(r, 50) ? "/dev/null" : "/proc/self/maps", O_RDONLY);
	case 4:
		return dup(programs[below(r, PROGRAMS)]);
	case 5:
		return dup(storage);
	default:
		fd = socket(PICK(r, families), PICK(r, types) | SOCK_NONBLOCK, PICK(r, protocols));
		return fd < 0 ? socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0) : fd;
	}
}

/* Something that changes a socket, done to whatever is there. */
static void disturb(struct rng *r, int fd)
{
	static const int ports[] = {0, 1, 7777, 7778, 7779};
	struct sockaddr_storage to;
	int on = below(r, 2), inet = AF_INET;

	loopback(&to, percent(r, 50) ? AF_INET : AF_INET6, PICK(r, ports));
	switch (below(r, 10)) {
	case 0:
	case 1:
		connect(fd, (void *)&to, sizeof(to));
		break;
	case 2:
		to.ss_family = AF_UNSPEC; /* disconnect */
		connect(fd, (void *)&to, sizeof(to));
		break;
	case 3:
		bind(fd, (void *)&to, sizeof(to));
		break;
	case 4:
		listen(fd, 4);
		break;
	case 5:
		close(accept(fd, NULL, NULL));
		break;
	case 6:
		shutdown(fd, below(r, 3));
		break;
	case 7:
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
		break;
	case 8: /* an IPv6 socket becomes an IPv4 one */
		setsockopt(fd, IPPROTO_IPV6, IPV6_ADDRFORM, &inet, sizeof(inet));
		break;
	default:
		sendto(fd, "x", 1, MSG_DONTWAIT, (void *)&to, sizeof(to));
	}
}

static void replace(int *slot, int fd)
{
	int old = __atomic_exchange_n(slot, fd, __ATOMIC_RELAXED);

	if (old >= 0)
		close(old);
}

static void replace_program(struct rng *r)
{
	int slot = below(r, PROGRAMS), type = slot % ATTACH_TYPES;
	uint32_t key = below(r, 4);
	int fd = load_program(below(r, PROGRAM_KINDS), type, storage, arrays[type]);
	union bpf_attr attr = {
		.map_fd = arrays[type],
		.key = (uintptr_t)&key,
		.value = (uintptr_t)&programs[slot],
	};

	if (fd < 0)
		return;
	replace(&programs[slot], fd);
	bpf(percent(r, 70) ? BPF_MAP_UPDATE_ELEM : BPF_MAP_DELETE_ELEM, &attr, sizeof(attr));
}

void fill_pools(struct rng *r)
{
	int i;

	storage = create_storage_map();
	if (storage < 0)
		die("create sk_storage map");
	for (i = 0; i < ATTACH_TYPES; i++) {
		arrays[i] = create_map(BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 4, 0, 0);
		if (arrays[i] < 0)
			die("create program array");
	}
	for (i = 0; i < PROGRAMS; i++) {
		int type = i % ATTACH_TYPES;

		programs[i] = load_program(below(r, PROGRAM_KINDS), type, storage, arrays[type]);
		if (programs[i] < 0)
			die("load program");
	}
	for (i = 0; i < SOCKETS; i++)
		sockets[i] = open_thing(r);
}

/* One small change: a socket of another kind or in another state, sometimes another program. */
void stir_pools(struct rng *r)
{
	int slot = below(r, SOCKETS);

	if (percent(r, 40))
		replace(&sockets[slot], percent(r, 90) ? open_thing(r) : -1);
	else
		disturb(r, sockets[slot]);
	if (percent(r, 5))
		replace_program(r);
}
