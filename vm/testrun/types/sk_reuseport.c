// SPDX-License-Identifier: GPL-2.0
/* sk_reuseport: which socket of a group gets a packet, or a connection whose listener goes. */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/skbuff.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <net/inet_sock.h>
#include <net/ipv6.h>
#include <net/sock.h>
#include <net/sock_reuseport.h>

#include "../bpfunit_testrun.h"
#include "../compat.h"
#include "../loop.h"
#include "../request.h"
#include "../sock.h"
#include "types.h"

struct run {
	struct bpf_prog *prog;
	struct bpfunit_sk_reuseport in;
	struct payload payload;
	struct sock *sk; /* of the group */
	struct sock *migrating;
	struct sk_buff *skb;
	struct sk_reuseport_kern kern;
	struct loop loop;
	u32 retval;
	int err; /* of the slice */
	struct bpfunit_sk_reuseport_result result;
};

/* ---- the packet ---- */

static bool is_ours4(const struct sock *sk, __be32 address)
{
	return !inet_sk(sk)->inet_rcv_saddr || inet_sk(sk)->inet_rcv_saddr == address;
}

static bool is_ours6(const struct sock *sk, const struct in6_addr *address)
{
#if IS_ENABLED(CONFIG_IPV6)
	return ipv6_addr_any(&sk->sk_v6_rcv_saddr) ||
	       ipv6_addr_equal(&sk->sk_v6_rcv_saddr, address);
#else
	return false;
#endif
}

/* The header of IPv4: whole, of the socket's protocol, and to an address of the socket's. */
static int check_ipv4(const struct run *run, const struct iphdr *ip)
{
	const struct sock *sk = run->sk;

	if (run->in.transport < sizeof(*ip) || ip->ihl * 4 != run->in.transport)
		return -EINVAL;
	if (ip->protocol != sk->sk_protocol)
		return -EPROTOTYPE;
	if (sk->sk_family == AF_INET6 && ipv6_only_sock(sk))
		return -EAFNOSUPPORT;
	return is_ours4(sk, ip->daddr) ? 0 : -EADDRNOTAVAIL;
}

/* That of IPv6; what lies behind it before the transport's is the caller's affair. */
static int check_ipv6(const struct run *run, const struct ipv6hdr *ip)
{
	const struct sock *sk = run->sk;

	if (run->in.transport < sizeof(*ip))
		return -EINVAL;
	if (run->in.transport == sizeof(*ip) && ip->nexthdr != sk->sk_protocol)
		return -EPROTOTYPE;
	if (sk->sk_family != AF_INET6)
		return -EAFNOSUPPORT;
	return is_ours6(sk, &ip->daddr) ? 0 : -EADDRNOTAVAIL;
}

/* The packet that brings the kernel to this group, or none for a connection that migrates. */
static int check_packet(const struct run *run)
{
	const u8 *bytes = run->payload.bytes;
	u32 at = run->in.transport, size = run->payload.size;
	u32 header = run->sk->sk_type == SOCK_DGRAM ? sizeof(struct udphdr) : sizeof(struct tcphdr);
	int err;

	if (!size)
		return run->migrating && !at ? 0 : -EINVAL;
	if (at > size || size - at < header)
		return -EINVAL;
	switch (bytes[0] >> 4) {
	case 4:
		err = check_ipv4(run, (const void *)bytes);
		break;
	case 6:
		err = check_ipv6(run, (const void *)bytes);
		break;
	default:
		return -EINVAL;
	}
	if (err)
		return err;
	/* both headers begin with the source's port and the destination's */
	return (bytes[at + 2] << 8 | bytes[at + 3]) == inet_sk(run->sk)->inet_num ? 0
										  : -EADDRNOTAVAIL;
}

/* As the transport's receiver has it: its header first, the others still to be found. */
static int make_packet(struct run *run)
{
	struct sk_buff *skb = alloc_skb(ETH_HLEN + run->payload.size, GFP_KERNEL_ACCOUNT);

	if (!skb)
		return -ENOMEM;
	run->skb = skb;
	skb_reserve(skb, ETH_HLEN);
	if (!run->payload.size) /* a connection without a packet has an empty one */
		return 0;
	skb_put_data(skb, run->payload.bytes, run->payload.size);
	skb_reset_network_header(skb);
	memset(skb_push(skb, ETH_HLEN), 0, ETH_HLEN);
	skb_reset_mac_header(skb);
	skb->protocol = htons(*(u8 *)run->payload.bytes >> 4 == 4 ? ETH_P_IP : ETH_P_IPV6);
	eth_hdr(skb)->h_proto = skb->protocol;
	skb_pull(skb, ETH_HLEN + run->in.transport);
	skb_reset_transport_header(skb);
	return 0;
}

/* ---- the sockets ---- */

/* Whether packets come to the socket's group: a listener, or an unconnected UDP socket. */
static int check_socket(const struct run *run)
{
	const struct sock *sk = run->sk;

	if (!sk || !sk_fullsock(sk))
		return -ENOTCONN;
	if (sk->sk_family != AF_INET && sk->sk_family != AF_INET6)
		return -EAFNOSUPPORT;
	if (sock_is_udp(sk) && !run->migrating)
		return sk->sk_state == TCP_ESTABLISHED ? -EISCONN : 0;
	if (sock_check_tcp(sk))
		return -EPROTOTYPE;
	return sk->sk_state == TCP_LISTEN ? 0 : -ENOTCONN;
}

/* A connection that nobody has accepted yet looks like one that somebody has. */
static int check_migrating(const struct run *run)
{
	const struct sock *sk = run->migrating;

	if (!prog_migrates(run->prog))
		return -EOPNOTSUPP;
	if (!sk || !sk_fullsock(sk) || !(1 << sk->sk_state & TCPF_CONNECTED))
		return -ENOTCONN;
	if (sock_check_tcp(sk))
		return -EPROTOTYPE;
	return sk->sk_family == run->sk->sk_family &&
			       inet_sk(sk)->inet_num == inet_sk(run->sk)->inet_num
		       ? 0
		       : -EADDRNOTAVAIL;
}

/* ---- the run ---- */

static __always_inline void rewind(void *data)
{
	struct run *run = data;

	run->kern.selected_sk = NULL;
}

/* What reuseport_select_sock() makes of it; the socket is ours only as long as RCU is. */
static void judge(struct run *run)
{
	struct bpfunit_sk_reuseport_result *result = &run->result;
	struct sock *selected = run->kern.selected_sk;

	if (run->retval != SK_PASS) {
		result->err = -ECONNREFUSED;
		result->verdict = BPFUNIT_SK_REUSEPORT_DROP;
	} else if (!selected) {
		result->verdict = BPFUNIT_SK_REUSEPORT_HASH;
	} else {
		result->verdict = BPFUNIT_SK_REUSEPORT_SELECT;
		result->target_cookie = atomic64_read(&selected->sk_cookie);
		result->target_inode = sock_i_ino(selected);
	}
}

static void run_slice(struct loop *loop, void *data)
{
	struct run *run = data;
	struct sock_reuseport *reuse = rcu_dereference(run->sk->sk_reuseport_cb);

	if (!reuse) { /* somebody has closed or disconnected it */
		run->err = -ENOENT;
		loop->done = loop->repeat;
		return;
	}
	run->kern.reuseport_id = reuse->reuseport_id;
	run->kern.bind_inany = reuse->bind_inany;
	run->retval = loop_slice(loop, run->prog, &run->kern, rewind, run);
	if (loop_is_done(loop))
		judge(run);
}

static const struct loop_ops loop_ops = {.slice = run_slice, .pause = loop_rest};

static int run_on_group(struct run *run)
{
	int err;

	err = check_socket(run);
	if (!err && run->in.head.flags & BPFUNIT_SK_REUSEPORT_MIGRATE)
		err = check_migrating(run);
	err = err ?: check_packet(run) ?: make_packet(run);
	if (err)
		return err;
	run->kern.skb = run->skb;
	run->kern.sk = run->sk;
	run->kern.data_end = run->skb->data + skb_headlen(run->skb);
	run->kern.hash = run->in.hash;
	set_migrating_sk(&run->kern, run->migrating);
	return loop_run(&run->loop, &loop_ops, run) ?: run->err;
}

static int run_with_sockets(struct run *run)
{
	bool migrate = run->in.head.flags & BPFUNIT_SK_REUSEPORT_MIGRATE;
	struct sock_ref group, migrating;
	int err;

	err = sock_ref_get(&group, run->in.head.sock);
	if (err)
		return err;
	if (migrate)
		err = sock_ref_get(&migrating, run->in.migrating);
	if (!err) {
		run->sk = group.socket->sk;
		if (migrate)
			run->migrating = migrating.socket->sk;
		err = run_on_group(run);
		kfree_skb(run->skb);
		if (migrate)
			sock_ref_put(&migrating);
	}
	sock_ref_put(&group);
	return err;
}

static int run_request(struct run *run, const struct test_request *request)
{
	const struct bpfunit_sk_reuseport *in = &run->in;
	int err;

	if (in->head.flags & ~BPFUNIT_SK_REUSEPORT_MIGRATE || in->reserved)
		return -EINVAL;
	if (in->migrating && !(in->head.flags & BPFUNIT_SK_REUSEPORT_MIGRATE))
		return -EINVAL;
	err = run_with_sockets(run);
	return err
		       ?: request_answer(request,
					 &(const struct answer){
						 .retval = run->retval,
						 .duration = loop_duration(&run->loop),
						 .data = {&run->result, sizeof(run->result)},
					 });
}

int sk_reuseport_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
			  union bpf_attr __user *uattr)
{
	const struct test_request request = {kattr, uattr};
	struct run run = {.prog = prog, .loop.repeat = request_repeat(&request)};
	int err;

	err = request_read(&request, &run.in, sizeof(run.in), &run.payload,
			   BPFUNIT_SK_REUSEPORT_MAX);
	if (err)
		return err;
	err = run_request(&run, &request);
	kvfree(run.payload.bytes);
	return err;
}
