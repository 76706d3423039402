// SPDX-License-Identifier: GPL-2.0
/* cgroup_sock_addr: bind, connect, sendmsg, recvmsg, getpeername, getsockname. */
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ipv6.h>
#include <linux/net.h>
#include <net/sock.h>

#include "../bpfunit_testrun.h"
#include "../cgroup.h"
#include "../compat.h"
#include "../loop.h"
#include "../request.h"
#include "../sock.h"
#include "types.h"

/* The system call whose hook a program stands for: what differs between them. */
enum hook_call {
	HOOK_BIND = 1,
	HOOK_CONNECT,
	HOOK_SENDMSG,
	HOOK_RECVMSG,
	HOOK_NAME, /* getpeername, getsockname */
};

struct hook {
	enum hook_call call;
	sa_family_t family; /* of the address, AF_INET or AF_INET6 */
};

/* AF_UNIX attach types (6.7) are left out on purpose: their address is not in the context. */
static const struct hook hooks[] = {
	[BPF_CGROUP_INET4_BIND] = {HOOK_BIND, AF_INET},
	[BPF_CGROUP_INET6_BIND] = {HOOK_BIND, AF_INET6},
	[BPF_CGROUP_INET4_CONNECT] = {HOOK_CONNECT, AF_INET},
	[BPF_CGROUP_INET6_CONNECT] = {HOOK_CONNECT, AF_INET6},
	[BPF_CGROUP_UDP4_SENDMSG] = {HOOK_SENDMSG, AF_INET},
	[BPF_CGROUP_UDP6_SENDMSG] = {HOOK_SENDMSG, AF_INET6},
	[BPF_CGROUP_UDP4_RECVMSG] = {HOOK_RECVMSG, AF_INET},
	[BPF_CGROUP_UDP6_RECVMSG] = {HOOK_RECVMSG, AF_INET6},
	[BPF_CGROUP_INET4_GETPEERNAME] = {HOOK_NAME, AF_INET},
	[BPF_CGROUP_INET6_GETPEERNAME] = {HOOK_NAME, AF_INET6},
	[BPF_CGROUP_INET4_GETSOCKNAME] = {HOOK_NAME, AF_INET},
	[BPF_CGROUP_INET6_GETSOCKNAME] = {HOOK_NAME, AF_INET6},
};

/* What a program may change in one run, in the kernel's own form. */
struct address {
	union {
		struct sockaddr_in in4;
		struct sockaddr_in6 in6;
	} dst;
	union {
		struct in_addr in4;
		struct in6_addr in6;
	} src; /* behind t_ctx; sendmsg only */
};

struct run {
	struct bpf_prog *prog;
	struct sock *sk;
	const struct hook *hook;
	struct bpf_sock_addr ctx; /* as crafted; after the run as left by the program */
	struct address crafted;
	struct address live;
	struct bpf_sock_addr_kern kern;
	struct cgroup_run cgroup;
	struct loop loop;
	u32 retval; /* of the program, last run */
	struct bpfunit_result result;
};

/* ---- the address ---- */

static bool any_set(const __u32 *words, size_t n)
{
	return memchr_inv(words, 0, n * sizeof(*words));
}

/*
 * The family that user_family may name. bind(2) and connect(2) run their hooks with
 * whatever the caller wrote and look at it afterwards; AF_UNSPEC disconnects before that.
 * sendmsg(2) looks first, and lets AF_UNSPEC through: the old form of sendto(2) for IPv4,
 * no address at all on a connected IPv6 socket. The kernel itself writes the others.
 */
static bool family_fits(const struct hook *hook, const struct bpf_sock_addr *ctx)
{
	if (ctx->user_family == hook->family)
		return true;
	if (ctx->user_family > USHRT_MAX) /* sa_family_t */
		return false;
	switch (hook->call) {
	case HOOK_BIND:
		return true;
	case HOOK_CONNECT:
		return ctx->user_family != AF_UNSPEC;
	case HOOK_SENDMSG:
		if (ctx->user_family != AF_UNSPEC)
			return false;
		return hook->family == AF_INET || (!ctx->user_port && !any_set(ctx->user_ip6, 4));
	default:
		return false;
	}
}

/* Refuse what the program could not see anyway: silence would hide the caller's mistake. */
static int parse_address(struct run *run)
{
	const struct bpf_sock_addr *ctx = &run->ctx;
	struct address *to = &run->crafted;
	bool has_src = run->hook->call == HOOK_SENDMSG;

	if (!family_fits(run->hook, ctx))
		return -EAFNOSUPPORT;
	if (ctx->user_port > U16_MAX)
		return -EINVAL;

	if (run->hook->family == AF_INET) {
		if (any_set(ctx->user_ip6, 4) || any_set(ctx->msg_src_ip6, 4))
			return -EINVAL;
		if (ctx->msg_src_ip4 && !has_src)
			return -EINVAL;
		to->dst.in4.sin_family = ctx->user_family;
		to->dst.in4.sin_port = (__force __be16)ctx->user_port;
		to->dst.in4.sin_addr.s_addr = (__force __be32)ctx->user_ip4;
		to->src.in4.s_addr = (__force __be32)ctx->msg_src_ip4;
		set_uaddr(&run->kern, &run->live.dst, sizeof(to->dst.in4));
	} else {
		if (ctx->user_ip4 || ctx->msg_src_ip4)
			return -EINVAL;
		if (any_set(ctx->msg_src_ip6, 4) && !has_src)
			return -EINVAL;
		to->dst.in6.sin6_family = ctx->user_family;
		to->dst.in6.sin6_port = (__force __be16)ctx->user_port;
		memcpy(&to->dst.in6.sin6_addr, ctx->user_ip6, sizeof(ctx->user_ip6));
		memcpy(&to->src.in6, ctx->msg_src_ip6, sizeof(ctx->msg_src_ip6));
		set_uaddr(&run->kern, &run->live.dst, sizeof(to->dst.in6));
	}
	run->kern.t_ctx = has_src ? &run->live.src : NULL;
	return 0;
}

/* ---- the socket ---- */

static int get_socket(struct sock_ref *ref, const struct bpf_sock_addr *ctx)
{
	/* on a 32-bit kernel the pointer holds half of the field */
	BUILD_BUG_ON(sizeof(ctx->sk) != sizeof(u64));
	if (ctx->sk)
		return sock_ref_get(ref, (unsigned long)ctx->sk);
	return sock_ref_make(ref, ctx->family, ctx->type, ctx->protocol);
}

/* Whether a program sees this socket in real life; needs the socket's lock. */
static int check_socket(const struct run *run, const struct sock *sk)
{
	const struct hook *hook = run->hook;
	const struct bpf_sock_addr *ctx = &run->ctx;
	bool ok = true;

	if (sk->sk_family != AF_INET && sk->sk_family != AF_INET6)
		return -EAFNOSUPPORT;
	if (sk->sk_family != hook->family) {
		/* a dual-stack UDP socket goes by the family that the caller wrote */
		if (ctx->user_family != AF_INET)
			return -EAFNOSUPPORT;
		if (hook->family == AF_INET6 || !sock_is_udp(sk) || ipv6_only_sock(sk))
			return -EAFNOSUPPORT;
		if (hook->call != HOOK_CONNECT && hook->call != HOOK_SENDMSG)
			return -EAFNOSUPPORT;
	} else if (hook->family == AF_INET6 && hook->call == HOOK_CONNECT && sock_is_udp(sk) &&
		   ctx->user_family == AF_INET) {
		return -EAFNOSUPPORT;
	}

	/* zero stands for «whatever the socket has» */
	if (ctx->family && ctx->family != sk->sk_family)
		return -EAFNOSUPPORT;
	if (ctx->type && ctx->type != sk->sk_type)
		return -EPROTOTYPE;
	if (ctx->protocol && ctx->protocol != sk->sk_protocol)
		return -EPROTOTYPE;

	switch (hook->call) {
	case HOOK_CONNECT:
		ok = sk->sk_prot->pre_connect;
		break;
	case HOOK_BIND:
		/* protocols that bind on their own pass by the hook, MPTCP shows its subflow */
		ok = !sk->sk_prot->bind && sk->sk_protocol != IPPROTO_MPTCP;
		break;
	case HOOK_SENDMSG:
	case HOOK_RECVMSG:
		ok = sock_is_udp(sk);
		break;
	case HOOK_NAME:
		break;
	}
	return ok ? 0 : -EOPNOTSUPP;
}

/* ---- the run ---- */

static __always_inline void rewind(void *data)
{
	struct run *run = data;

	run->live = run->crafted;
	cgroup_rewind(&run->cgroup, 0);
}

static void run_slice(struct loop *loop, void *data)
{
	struct run *run = data;

	cgroup_enter(&run->cgroup, run->prog);
	run->retval = loop_slice(loop, run->prog, &run->kern, rewind, run);
	cgroup_leave(&run->cgroup);
}

static int pause_run(void *data)
{
	struct run *run = data;

	sock_yield(run->sk);
	/* it may have become another socket meanwhile: IPV6_ADDRFORM, IPV6_V6ONLY */
	return check_socket(run, run->sk);
}

/* The context of the real hook: socket lock, no migration, RCU read side, run context. */
static const struct loop_ops loop_ops = {.slice = run_slice, .pause = pause_run};

/* The context as the program left it; fields that it cannot have stay as they came in. */
static void collect(struct run *run, const struct sock *sk)
{
	const struct address *from = &run->live;
	struct bpf_sock_addr *ctx = &run->ctx;
	/* of bind's verdict, the second bit asks for something else than permission */
	bool allowed = run->hook->call == HOOK_BIND ? run->retval & 1 : run->retval;

	ctx->family = sk->sk_family;
	ctx->type = sk->sk_type;
	ctx->protocol = sk->sk_protocol;
	if (run->hook->family == AF_INET) {
		ctx->user_family = from->dst.in4.sin_family;
		ctx->user_port = (__force __u32)from->dst.in4.sin_port;
		ctx->user_ip4 = (__force __u32)from->dst.in4.sin_addr.s_addr;
		ctx->msg_src_ip4 = (__force __u32)from->src.in4.s_addr;
	} else {
		ctx->user_family = from->dst.in6.sin6_family;
		ctx->user_port = (__force __u32)from->dst.in6.sin6_port;
		memcpy(ctx->user_ip6, &from->dst.in6.sin6_addr, sizeof(ctx->user_ip6));
		memcpy(ctx->msg_src_ip6, &from->src.in6, sizeof(ctx->msg_src_ip6));
	}
	run->result.err = cgroup_errno(&run->cgroup, allowed);
}

static int run_locked(struct run *run, struct sock *sk)
{
	int err = check_socket(run, sk);

	if (err)
		return err;
	run->sk = sk;
	run->kern.sk = sk;
	err = loop_run(&run->loop, &loop_ops, run);
	if (!err)
		collect(run, sk);
	return err;
}

static int run_on_socket(struct run *run)
{
	struct sock_ref ref;
	struct sock *sk;
	int err;

	err = get_socket(&ref, &run->ctx);
	if (err)
		return err;

	sk = ref.socket->sk;
	if (!sk || !sk_fullsock(sk)) {
		err = -ENOTCONN;
	} else if (sk->sk_family != AF_INET && sk->sk_family != AF_INET6) {
		err = -EAFNOSUPPORT;
	} else {
		lock_sock(sk);
		err = run_locked(run, sk);
		release_sock(sk);
	}
	sock_ref_put(&ref);
	return err;
}

static int answer(const struct test_request *request, const struct run *run)
{
	const struct answer answer = {
		.retval = run->retval,
		.duration = loop_duration(&run->loop),
		.ctx = {&run->ctx, sizeof(run->ctx)},
		.data = {&run->result, sizeof(run->result)},
	};

	return request_answer(request, &answer);
}

int sock_addr_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
		       union bpf_attr __user *uattr)
{
	const struct test_request request = {kattr, uattr};
	struct run run = {.prog = prog, .loop.repeat = request_repeat(&request)};
	int err;

	BUILD_BUG_ON(sizeof(struct bpf_sock_addr) != 72);

	err = request_check(&request) ?: request_refuse_data(&request);
	err = err ?: request_read_ctx(&request, &run.ctx, sizeof(run.ctx));
	if (err)
		return err;
	if (prog->expected_attach_type >= ARRAY_SIZE(hooks) ||
	    !hooks[prog->expected_attach_type].call)
		return -EOPNOTSUPP;
	run.hook = &hooks[prog->expected_attach_type];

	err = parse_address(&run) ?: cgroup_begin(&run.cgroup, prog);
	err = err ?: run_on_socket(&run);
	cgroup_end(&run.cgroup);
	return err ?: answer(&request, &run);
}
