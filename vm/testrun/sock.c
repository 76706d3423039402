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
 * Whether this is a TCP socket through and through. MPTCP and SMC share families and
 * types with it, and another protocol's structure behind struct sock is another one.
 */
int sock_check_tcp(const struct sock *sk)
{
	if (sk->sk_family != AF_INET && sk->sk_family != AF_INET6)
		return -EAFNOSUPPORT;
	if (sk->sk_type != SOCK_STREAM || sk->sk_protocol != IPPROTO_TCP)
		return -EPROTOTYPE;
	return 0;
}

/* Run with the caller's TCP socket, locked. */
int sock_run_tcp(u32 fd, int (*run)(struct sock *sk, void *data), void *data)
{
	struct sock_ref ref;
	struct sock *sk;
	int err;

	err = sock_ref_get(&ref, fd);
	if (err)
		return err;
	sk = ref.socket->sk;
	err = sk && sk_fullsock(sk) ? sock_check_tcp(sk) : -ENOTCONN;
	if (!err) {
		lock_sock(sk);
		err = run(sk, data);
		release_sock(sk);
	}
	sock_ref_put(&ref);
	return err;
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
