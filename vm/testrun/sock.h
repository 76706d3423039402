/* SPDX-License-Identifier: GPL-2.0 */
/* The sockets that programs run on. */
#ifndef BPFUNIT_TESTRUN_SOCK_H
#define BPFUNIT_TESTRUN_SOCK_H

#include <linux/net.h>
#include <net/sock.h>
#include <net/tcp_states.h>

/* The states with two ends that know of each other. */
#define TCPF_CONNECTED                                                                         \
	(TCPF_ESTABLISHED | TCPF_CLOSE_WAIT | TCPF_FIN_WAIT1 | TCPF_FIN_WAIT2 | TCPF_CLOSING | \
	 TCPF_LAST_ACK)

/* A socket for one request: the caller's, or one of its own. */
struct sock_ref {
	struct socket *socket;
	bool own;
};

int sock_ref_get(struct sock_ref *ref, u64 fd);
int sock_ref_make(struct sock_ref *ref, u32 family, u32 type, u32 protocol);
void sock_ref_put(struct sock_ref *ref);

int sock_check_tcp(const struct sock *sk);
int sock_run_tcp(u32 fd, int (*run)(struct sock *sk, void *data), void *data);
bool sock_is_udp(const struct sock *sk);
void sock_yield(struct sock *sk);

#endif
