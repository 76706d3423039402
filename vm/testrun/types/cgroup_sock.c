// SPDX-License-Identifier: GPL-2.0
/* cgroup_sock: a socket that is made, that was bound, or that goes away. */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>
#include <net/inet_sock.h>
#include <net/sock.h>

#include "../bpfunit_testrun.h"
#include "../cgroup.h"
#include "../compat.h"
#include "../loop.h"
#include "../request.h"
#include "../sock.h"
#include "types.h"

/* What a program may write to. */
struct fields {
	int bound_dev_if;
	u32 mark;
	u32 priority;
};

struct run {
	struct bpf_prog *prog;
	struct sock *sk; /* the program's context is the very socket */
	struct bpfunit_sock in;
	struct payload payload;
	struct fields crafted;
	struct cgroup_run cgroup;
	struct loop loop;
	u32 retval;
	struct bpfunit_sock_result result;
};

static struct fields fields_of(const struct sock *sk)
{
	return (struct fields){sk->sk_bound_dev_if, sk->sk_mark, sk->sk_priority};
}

static __always_inline void set_fields(struct sock *sk, const struct fields *fields)
{
	WRITE_ONCE(sk->sk_bound_dev_if, fields->bound_dev_if);
	WRITE_ONCE(sk->sk_mark, fields->mark);
	WRITE_ONCE(sk->sk_priority, fields->priority);
}

/* A socket that nobody has done anything with; a raw one has its protocol for a port. */
static int check_fresh(const struct sock *sk)
{
	if (sk->sk_state != TCP_CLOSE)
		return -EISCONN;
	return inet_sk(sk)->inet_num && sk->sk_type != SOCK_RAW ? -EINVAL : 0;
}

/* One that bind(2) has just found a port for, in __inet_bind() or __inet6_bind(). */
static int check_bound(const struct sock *sk, sa_family_t family)
{
	if (sk->sk_family != family)
		return -EAFNOSUPPORT;
	/* protocols that bind on their own pass by the hook, MPTCP shows its subflow */
	if (sk->sk_prot->bind || sk->sk_protocol == IPPROTO_MPTCP)
		return -EOPNOTSUPP;
	if (sk->sk_state != TCP_CLOSE)
		return -EISCONN;
	return inet_sk(sk)->inet_num ? 0 : -EADDRNOTAVAIL;
}

/* Whether a program sees this socket in real life; needs the socket's lock. */
static int check_socket(const struct run *run)
{
	const struct sock *sk = run->sk;

	if (sk->sk_family != AF_INET && sk->sk_family != AF_INET6)
		return -EAFNOSUPPORT;
	switch (run->prog->expected_attach_type) {
	case BPF_CGROUP_INET_SOCK_CREATE:
		return check_fresh(sk);
	case BPF_CGROUP_INET4_POST_BIND:
		return check_bound(sk, AF_INET);
	case BPF_CGROUP_INET6_POST_BIND:
		return check_bound(sk, AF_INET6);
	case BPF_CGROUP_INET_SOCK_RELEASE: /* close(2) comes in every state */
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static __always_inline void rewind(void *data)
{
	struct run *run = data;

	set_fields(run->sk, &run->crafted);
	cgroup_rewind(&run->cgroup, 0);
}

static void run_slice(struct loop *loop, void *data)
{
	struct run *run = data;

	cgroup_enter(&run->cgroup, run->prog);
	run->retval = loop_slice(loop, run->prog, run->sk, rewind, run);
	cgroup_leave(&run->cgroup);
}

static int pause_run(void *data)
{
	struct run *run = data;

	sock_yield(run->sk);
	return check_socket(run);
}

static const struct loop_ops loop_ops = {.slice = run_slice, .pause = pause_run};

/*
 * close(2) goes on whatever its program says. The socket that it runs on here lives on, as
 * it was; that of the other hooks stays as the program left it.
 */
static void judge(struct run *run)
{
	bool release = run->prog->expected_attach_type == BPF_CGROUP_INET_SOCK_RELEASE;
	struct fields left = fields_of(run->sk);

	run->result.bound_dev_if = left.bound_dev_if;
	run->result.mark = left.mark;
	run->result.priority = left.priority;
	if (release)
		set_fields(run->sk, &run->crafted);
	else
		run->result.err = cgroup_errno(&run->cgroup, run->retval);
}

/*
 * socket(2) and close(2) run their programs without the lock, where nobody else has the
 * socket. Here somebody may, and the lock keeps it as it was crafted.
 */
static int run_on_socket(struct run *run, struct sock *sk)
{
	int err;

	if (!sk || !sk_fullsock(sk))
		return -ENOTCONN;
	lock_sock(sk);
	run->sk = sk;
	err = check_socket(run);
	if (!err) {
		run->crafted = fields_of(sk);
		err = loop_run(&run->loop, &loop_ops, run);
		judge(run);
	}
	release_sock(sk);
	return err;
}

static int run_request(struct run *run, const struct test_request *request)
{
	struct sock_ref ref;
	int err;

	if (run->in.head.flags)
		return -EINVAL;
	err = sock_ref_get(&ref, run->in.head.sock);
	if (err)
		return err;
	err = run_on_socket(run, ref.socket->sk);
	sock_ref_put(&ref);
	return err
		       ?: request_answer(request,
					 &(const struct answer){
						 .retval = run->retval,
						 .duration = loop_duration(&run->loop),
						 .data = {&run->result, sizeof(run->result)},
					 });
}

int cgroup_sock_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
			 union bpf_attr __user *uattr)
{
	const struct test_request request = {kattr, uattr};
	struct run run = {.prog = prog, .loop.repeat = request_repeat(&request)};
	int err;

	err = request_read(&request, &run.in, sizeof(run.in), &run.payload, 0);
	if (err)
		return err;
	err = cgroup_begin(&run.cgroup, prog) ?: run_request(&run, &request);
	cgroup_end(&run.cgroup);
	kvfree(run.payload.bytes);
	return err;
}
