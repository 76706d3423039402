// SPDX-License-Identifier: GPL-2.0
/*
 * BPF_PROG_TEST_RUN for programs of type BPF_PROG_TYPE_CGROUP_SOCK_ADDR.
 *
 * Linux answers ENOTSUPP, since the type has no .test_run. This module gives one to
 * every program of the type that is loaded after it, so that any client of bpf(2) can
 * run the verified, JITed program with a crafted struct bpf_sock_addr.
 *
 * The contract (what is accepted, what the program sees, which error means what) is
 * docs/module.md of the bpfunit project. Differences between kernels are in compat.h.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ipv6.h>
#include <linux/jiffies.h>
#include <linux/kprobes.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <net/sock.h>

#include "bpfunit_testrun.h"
#include "compat.h"

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
	const struct hook *hook;
	struct bpf_sock_addr ctx; /* as crafted; after the run as left by the program */
	struct address crafted;
	struct address live;
	struct bpf_sock_addr_kern kern;
	struct hook_env env;
	u32 repeat;
	u32 retval; /* of the program, last run */
	u32 duration; /* nanoseconds a run */
	struct bpfunit_result result;
};

static atomic_long_t programs_equipped = ATOMIC_LONG_INIT(0);

/* ---- the request ---- */

static int read_request(struct run *run, const union bpf_attr *kattr)
{
	void __user *ctx_in = u64_to_user_ptr(kattr->test.ctx_in);
	u32 size = kattr->test.ctx_size_in;

	if (kattr->test.flags || kattr->test.cpu || test_batch_size(kattr))
		return -EINVAL;
	if (kattr->test.data_in || kattr->test.data_size_in)
		return -EINVAL;
	if (!kattr->test.data_out && kattr->test.data_size_out)
		return -EINVAL;
	if (!ctx_in)
		return -EINVAL;
	if (size > PAGE_SIZE)
		return -E2BIG;

	run->repeat = kattr->test.repeat ?: 1;
	return copy_struct_from_user(&run->ctx, sizeof(run->ctx), ctx_in, size);
}

static bool any_set(const __u32 *words, size_t n)
{
	return memchr_inv(words, 0, n * sizeof(*words));
}

/*
 * The family that user_family may name. AF_UNSPEC is what the kernel itself lets
 * through to these hooks: the wildcard form of bind(2) for IPv4, the old form of
 * sendto(2) for IPv4, and no address at all on a connected IPv6 socket.
 */
static bool family_fits(const struct hook *hook, const struct bpf_sock_addr *ctx)
{
	if (ctx->user_family == hook->family)
		return true;
	if (ctx->user_family != AF_UNSPEC)
		return false;
	if (hook->family == AF_INET)
		return hook->call == HOOK_BIND || hook->call == HOOK_SENDMSG;
	return hook->call == HOOK_SENDMSG && !ctx->user_port && !any_set(ctx->user_ip6, 4);
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

/* The caller's socket, or one made as socket(2) would for the caller, in its namespaces. */
static struct socket *get_socket(const struct bpf_sock_addr *ctx)
{
	u64 fd = (unsigned long)ctx->sk;
	struct socket *sock;
	int err;

	/* on a 32-bit kernel the pointer holds half of the field */
	BUILD_BUG_ON(sizeof(ctx->sk) != sizeof(u64));
	if (fd > INT_MAX)
		return ERR_PTR(-EBADF);
	if (fd) {
		sock = sockfd_lookup(fd, &err);
		return sock ?: ERR_PTR(err);
	}

	/* socket(2) turns SOCK_PACKET into another family, with a line in the log */
	if (ctx->family != AF_INET && ctx->family != AF_INET6)
		return ERR_PTR(-EAFNOSUPPORT);
	if (ctx->type == SOCK_PACKET)
		return ERR_PTR(-ESOCKTNOSUPPORT);
	err = sock_create(ctx->family, ctx->type, ctx->protocol, &sock);
	return err ? ERR_PTR(err) : sock;
}

static void put_socket(const struct bpf_sock_addr *ctx, struct socket *sock)
{
	if (ctx->sk)
		sockfd_put(sock);
	else
		sock_release(sock);
}

static bool is_udp(const struct sock *sk)
{
	return sk->sk_type == SOCK_DGRAM &&
	       (sk->sk_protocol == IPPROTO_UDP || sk->sk_protocol == IPPROTO_UDPLITE);
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
		/* a dual-stack UDP socket with an IPv4 destination runs the IPv4 hook */
		if (hook->family == AF_INET6 || !is_udp(sk) || ipv6_only_sock(sk))
			return -EAFNOSUPPORT;
		if (hook->call != HOOK_CONNECT && hook->call != HOOK_SENDMSG)
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
		ok = is_udp(sk);
		break;
	case HOOK_NAME:
		break;
	}
	return ok ? 0 : -EOPNOTSUPP;
}

/* ---- the run ---- */

/* Let others have the processor and the socket; a waiter would never win against our loop. */
static int yield_socket(const struct run *run, struct sock *sk)
{
	bool contended = waitqueue_active(&sk->sk_lock.wq);

	release_sock(sk);
	if (contended)
		schedule_timeout_interruptible(1);
	else
		cond_resched();
	lock_sock(sk);
	/* the socket may have become another one: IPV6_ADDRFORM, IPV6_V6ONLY */
	return check_socket(run, sk);
}

/*
 * The context of the real hook, from the outside in: socket lock, no migration, RCU
 * read side, run context. A slice of it lasts a tick at most, so that neither RCU nor
 * those who wait for the socket notice how long the whole takes.
 */
static int run_locked(struct run *run, struct sock *sk)
{
	struct bpf_prog *prog = run->prog;
	u64 spent = 0, start;
	unsigned long tick;
	u32 done = 0;
	int err;

	err = check_socket(run, sk);
	while (!err) {
		migrate_disable();
		rcu_read_lock();
		hook_env_enter(&run->env, prog);
		tick = jiffies;
		start = ktime_get_ns();
		do {
			run->live = run->crafted;
			hook_env_rewind(&run->env);
			run->retval = bpf_prog_run(prog, &run->kern);
			done++;
		} while (done < run->repeat && !need_resched() && !signal_pending(current) &&
			 jiffies == tick);
		spent += ktime_get_ns() - start;
		hook_env_leave(&run->env);
		rcu_read_unlock();
		migrate_enable();

		if (done == run->repeat)
			break;
		err = signal_pending(current) ? -EINTR : yield_socket(run, sk);
	}
	if (err)
		return err;

	run->duration = min_t(u64, div_u64(spent, done), U32_MAX);
	return 0;
}

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
	run->result.err = hook_env_errno(&run->env, allowed);
}

static int run_on_socket(struct run *run)
{
	struct socket *sock = get_socket(&run->ctx);
	struct sock *sk;
	int err;

	if (IS_ERR(sock))
		return PTR_ERR(sock);

	sk = sock->sk;
	if (!sk || !sk_fullsock(sk)) {
		err = -ENOTCONN;
	} else if (sk->sk_family != AF_INET && sk->sk_family != AF_INET6) {
		err = -EAFNOSUPPORT;
	} else {
		run->kern.sk = sk;
		lock_sock(sk);
		err = run_locked(run, sk);
		if (!err)
			collect(run, sk);
		release_sock(sk);
	}
	put_socket(&run->ctx, sock);
	return err;
}

/* ---- the answer ---- */

/*
 * One of the two output buffers, as the kernel's own test runs fill theirs: what fits
 * is copied, the whole size is reported, and ENOSPC says that it did not fit.
 */
static int write_buffer(u64 to, u32 room, const void *from, u32 size, u32 __user *size_out)
{
	if (!to)
		return 0;
	if (copy_to_user(u64_to_user_ptr(to), from, min(room, size)) ||
	    copy_to_user(size_out, &size, sizeof(size)))
		return -EFAULT;
	return room < size ? -ENOSPC : 0;
}

static int write_answer(const struct run *run, const union bpf_attr *kattr,
			union bpf_attr __user *uattr)
{
	int ctx_err, data_err;

	if (copy_to_user(&uattr->test.retval, &run->retval, sizeof(run->retval)) ||
	    copy_to_user(&uattr->test.duration, &run->duration, sizeof(run->duration)))
		return -EFAULT;
	data_err = write_buffer(kattr->test.data_out, kattr->test.data_size_out, &run->result,
				sizeof(run->result), &uattr->test.data_size_out);
	ctx_err = write_buffer(kattr->test.ctx_out, kattr->test.ctx_size_out, &run->ctx,
			       sizeof(run->ctx), &uattr->test.ctx_size_out);
	return ctx_err ?: data_err;
}

/* A program with cgroup-local storage wants the storage of the cgroup that it is attached to. */
static bool needs_cgroup(const struct bpf_prog *prog)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(prog->aux->cgroup_storage); i++)
		if (prog->aux->cgroup_storage[i])
			return true;
	return false;
}

static int sock_addr_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
			      union bpf_attr __user *uattr)
{
	struct run run = {.prog = prog};
	int err;

	BUILD_BUG_ON(sizeof(struct bpf_sock_addr) != 72);

	err = read_request(&run, kattr);
	if (err)
		return err;
	if (prog->expected_attach_type >= ARRAY_SIZE(hooks) ||
	    !hooks[prog->expected_attach_type].call || needs_cgroup(prog))
		return -EOPNOTSUPP;
	run.hook = &hooks[prog->expected_attach_type];

	err = parse_address(&run);
	if (!err)
		err = run_on_socket(&run);
	return err ?: write_answer(&run, kattr, uattr);
}

/* ---- how programs get it ---- */

static const struct bpf_prog_ops sock_addr_ops = {
	.test_run = sock_addr_test_run,
};

/*
 * The table of operations by program type is read-only and not exported. A program's
 * own pointer into it is neither, and each one passes through here before anyone can
 * have a descriptor of it. The type's stock operations hold nothing but .test_run, so
 * nothing is lost. A program cannot tell when it dies: the first one pins the module.
 */
static int equip_program(struct kprobe *probe, struct pt_regs *regs)
{
	struct bpf_prog *prog = (void *)regs_get_kernel_argument(regs, SELECT_RUNTIME_PROG_ARG);
	static atomic_t pinned = ATOMIC_INIT(0);

	if (prog->type != BPF_PROG_TYPE_CGROUP_SOCK_ADDR)
		return 0;
	if (!atomic_read(&pinned)) {
		if (!try_module_get(THIS_MODULE)) /* on its way out */
			return 0;
		if (atomic_xchg(&pinned, 1))
			module_put(THIS_MODULE); /* another processor was first */
	}
	prog->aux->ops = &sock_addr_ops;
	atomic_long_inc(&programs_equipped);
	return 0;
}

static struct kprobe probe = {
	.symbol_name = SELECT_RUNTIME,
	.pre_handler = equip_program,
};

static int programs_get(char *buffer, const struct kernel_param *param)
{
	return scnprintf(buffer, PAGE_SIZE, "%ld\n", atomic_long_read(&programs_equipped));
}

static const struct kernel_param_ops programs_ops = {.get = programs_get};
module_param_cb(programs, &programs_ops, NULL, 0444);
MODULE_PARM_DESC(programs, "programs that got a test run since the module was loaded");

static int __init testrun_init(void)
{
	int err = register_kprobe(&probe);

	if (err)
		pr_err("probe %s: error %d; this kernel's BPF loader is not known here\n",
		       SELECT_RUNTIME, err);
	return err;
}

static void __exit testrun_exit(void)
{
	unregister_kprobe(&probe);
}

module_init(testrun_init);
module_exit(testrun_exit);

MODULE_DESCRIPTION("BPF_PROG_TEST_RUN for cgroup_sock_addr programs");
MODULE_AUTHOR("The bpfunit authors");
MODULE_LICENSE("GPL");
MODULE_VERSION("1");
