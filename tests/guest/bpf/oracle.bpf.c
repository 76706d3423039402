// SPDX-License-Identifier: GPL-2.0
/*
 * One program for each INET hook of sockets: it writes down everything it can see and
 * does what the plan says. The engines of bpfunit are compared by what these saw and did.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

/* bind(2): since Linux 5.12 a second bit may be returned, which waives a privilege */
const volatile __u32 bind_verdicts = 1;
/* bpf_set_retval(), since Linux 5.18 */
const volatile bool has_set_retval = false;

struct plan {
	__u32 verdict;
	__u32 rewrite_ip;
	__u32 ip[4];
	__u32 rewrite_port;
	__u32 port;
	__u32 rewrite_src;
	__u32 src[4];
	__u32 error; /* of which bpf_set_retval() gets the negative, 0 for none */
	__u32 remember; /* write socket storage */
};

struct seen {
	__u32 runs;
	__u32 user_family;
	__u32 user_ip[4];
	__u32 user_port;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 src[4];
	__u32 sk_family;
	__u32 sk_type;
	__u32 sk_protocol;
	__u32 sk_mark;
	__u32 sk_priority;
	__u32 sk_bound_dev_if;
	__u32 sk_state;
	__u32 sk_src_ip4;
	__u32 sk_src_ip6[4];
	__u32 sk_src_port;
	__u32 sk_dst_ip4;
	__u32 sk_dst_ip6[4];
	__u32 sk_dst_port;
	__u32 had_storage;
	__u64 netns_cookie;
	__u64 socket_cookie;
	__u64 pid_tgid;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct plan);
} plans SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct seen);
} sightings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} memory SEC(".maps");

static __always_inline void see_socket(struct bpf_sock_addr *ctx, struct seen *seen)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return;
	seen->sk_family = sk->family;
	seen->sk_type = sk->type;
	seen->sk_protocol = sk->protocol;
	seen->sk_mark = sk->mark;
	seen->sk_priority = sk->priority;
	seen->sk_bound_dev_if = sk->bound_dev_if;
	seen->sk_state = sk->state;
	seen->sk_src_ip4 = sk->src_ip4;
	seen->sk_src_ip6[0] = sk->src_ip6[0];
	seen->sk_src_ip6[1] = sk->src_ip6[1];
	seen->sk_src_ip6[2] = sk->src_ip6[2];
	seen->sk_src_ip6[3] = sk->src_ip6[3];
	seen->sk_src_port = sk->src_port;
	seen->sk_dst_ip4 = sk->dst_ip4;
	seen->sk_dst_ip6[0] = sk->dst_ip6[0];
	seen->sk_dst_ip6[1] = sk->dst_ip6[1];
	seen->sk_dst_ip6[2] = sk->dst_ip6[2];
	seen->sk_dst_ip6[3] = sk->dst_ip6[3];
	seen->sk_dst_port = sk->dst_port;
}

static __always_inline void use_storage(struct bpf_sock_addr *ctx, const struct plan *plan,
					struct seen *seen)
{
	struct bpf_sock *sk = ctx->sk;
	__u64 *value;

	if (!sk)
		return;
	seen->had_storage = !!bpf_sk_storage_get(&memory, sk, 0, 0);
	if (!plan->remember)
		return;
	value = bpf_sk_storage_get(&memory, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (value)
		*value += plan->remember;
}

/* What all hooks have in common; the address fields differ by hook for the verifier. */
static __always_inline struct plan *look(struct bpf_sock_addr *ctx, struct seen **where)
{
	__u32 zero = 0;
	struct plan *plan = bpf_map_lookup_elem(&plans, &zero);
	struct seen *seen = bpf_map_lookup_elem(&sightings, &zero);

	if (!plan || !seen)
		return NULL;
	seen->runs++;
	seen->user_family = ctx->user_family;
	seen->user_port = ctx->user_port;
	seen->family = ctx->family;
	seen->type = ctx->type;
	seen->protocol = ctx->protocol;
	seen->netns_cookie = bpf_get_netns_cookie(ctx);
	seen->socket_cookie = bpf_get_socket_cookie(ctx);
	seen->pid_tgid = bpf_get_current_pid_tgid();
	see_socket(ctx, seen);
	use_storage(ctx, plan, seen);
	*where = seen;
	return plan;
}

#define ADDRESS_4()                                  \
	do {                                         \
		seen->user_ip[0] = ctx->user_ip4;    \
		if (plan->rewrite_ip)                \
			ctx->user_ip4 = plan->ip[0]; \
		if (plan->rewrite_port)              \
			ctx->user_port = plan->port; \
	} while (0)

#define ADDRESS_6()                                     \
	do {                                            \
		seen->user_ip[0] = ctx->user_ip6[0];    \
		seen->user_ip[1] = ctx->user_ip6[1];    \
		seen->user_ip[2] = ctx->user_ip6[2];    \
		seen->user_ip[3] = ctx->user_ip6[3];    \
		if (plan->rewrite_ip) {                 \
			ctx->user_ip6[0] = plan->ip[0]; \
			ctx->user_ip6[1] = plan->ip[1]; \
			ctx->user_ip6[2] = plan->ip[2]; \
			ctx->user_ip6[3] = plan->ip[3]; \
		}                                       \
		if (plan->rewrite_port)                 \
			ctx->user_port = plan->port;    \
	} while (0)

#define SOURCE_4()                                       \
	do {                                             \
		seen->src[0] = ctx->msg_src_ip4;         \
		if (plan->rewrite_src)                   \
			ctx->msg_src_ip4 = plan->src[0]; \
	} while (0)

#define SOURCE_6()                                          \
	do {                                                \
		seen->src[0] = ctx->msg_src_ip6[0];         \
		seen->src[1] = ctx->msg_src_ip6[1];         \
		seen->src[2] = ctx->msg_src_ip6[2];         \
		seen->src[3] = ctx->msg_src_ip6[3];         \
		if (plan->rewrite_src) {                    \
			ctx->msg_src_ip6[0] = plan->src[0]; \
			ctx->msg_src_ip6[1] = plan->src[1]; \
			ctx->msg_src_ip6[2] = plan->src[2]; \
			ctx->msg_src_ip6[3] = plan->src[3]; \
		}                                           \
	} while (0)

static __always_inline void set_retval(const struct plan *plan)
{
	int error = plan->error & 0xfff; /* MAX_ERRNO, which the verifier wants to see */

	if (has_set_retval && error)
		bpf_set_retval(-error);
}

#define SET_RETVAL() set_retval(plan)

#define NOTHING() \
	do {      \
	} while (0)

#define ORACLE(name, section, address, source, errors, verdict) \
	SEC(section)                                            \
	int name(struct bpf_sock_addr *ctx)                     \
	{                                                       \
		struct seen *seen;                              \
		struct plan *plan = look(ctx, &seen);           \
                                                                \
		if (!plan)                                      \
			return 1;                               \
		address();                                      \
		source();                                       \
		errors();                                       \
		return verdict;                                 \
	}

ORACLE(connect4, "cgroup/connect4", ADDRESS_4, NOTHING, SET_RETVAL, plan->verdict & 1)
ORACLE(connect6, "cgroup/connect6", ADDRESS_6, NOTHING, SET_RETVAL, plan->verdict & 1)
ORACLE(bind4, "cgroup/bind4", ADDRESS_4, NOTHING, SET_RETVAL, plan->verdict &bind_verdicts)
ORACLE(bind6, "cgroup/bind6", ADDRESS_6, NOTHING, SET_RETVAL, plan->verdict &bind_verdicts)
ORACLE(sendmsg4, "cgroup/sendmsg4", ADDRESS_4, SOURCE_4, SET_RETVAL, plan->verdict & 1)
ORACLE(sendmsg6, "cgroup/sendmsg6", ADDRESS_6, SOURCE_6, SET_RETVAL, plan->verdict & 1)
ORACLE(recvmsg4, "cgroup/recvmsg4", ADDRESS_4, NOTHING, NOTHING, 1)
ORACLE(recvmsg6, "cgroup/recvmsg6", ADDRESS_6, NOTHING, NOTHING, 1)
ORACLE(getpeername4, "cgroup/getpeername4", ADDRESS_4, NOTHING, NOTHING, 1)
ORACLE(getpeername6, "cgroup/getpeername6", ADDRESS_6, NOTHING, NOTHING, 1)
ORACLE(getsockname4, "cgroup/getsockname4", ADDRESS_4, NOTHING, NOTHING, 1)
ORACLE(getsockname6, "cgroup/getsockname6", ADDRESS_6, NOTHING, NOTHING, 1)
