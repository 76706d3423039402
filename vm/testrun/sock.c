// SPDX-License-Identifier: GPL-2.0
/* The sockets that programs run on: the caller's, or made for it. */
#include <linux/err.h>
#include <linux/in.h>
#include <linux/net.h>
#include <linux/sched.h>
#include <net/sock.h>

#include "sock.h"

/* The caller's socket. */
int sock_ref_get(struct sock_ref *ref, u64 fd)
{
	int err;

	if (fd > INT_MAX)
		return -EBADF;
	ref->own = false;
	ref->socket = sockfd_lookup(fd, &err);
	return ref->socket ? 0 : err;
}

/* One made as socket(2) would for the caller, in its namespaces; for the Internet only. */
int sock_ref_make(struct sock_ref *ref, u32 family, u32 type, u32 protocol)
{
	/* socket(2) turns SOCK_PACKET into another family, with a line in the log */
	if (family != AF_INET && family != AF_INET6)
		return -EAFNOSUPPORT;
	if (type == SOCK_PACKET)
		return -ESOCKTNOSUPPORT;
	ref->own = true;
	return sock_create(family, type, protocol, &ref->socket);
}

void sock_ref_put(struct sock_ref *ref)
{
	if (ref->own)
		sock_release(ref->socket);
	else
		sockfd_put(ref->socket);
}

bool sock_is_udp(const struct sock *sk)
{
	return sk->sk_type == SOCK_DGRAM &&
	       (sk->sk_protocol == IPPROTO_UDP || sk->sk_protocol == IPPROTO_UDPLITE);
}

/*
 * Let others have the processor and a locked socket; a waiter would never win against
 * our loop. The socket may have become another one: check it again.
 */
void sock_yield(struct sock *sk)
{
	bool contended = waitqueue_active(&sk->sk_lock.wq);

	release_sock(sk);
	if (contended)
		schedule_timeout_interruptible(1);
	else
		cond_resched();
	lock_sock(sk);
}
