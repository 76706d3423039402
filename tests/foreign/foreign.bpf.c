// SPDX-License-Identifier: GPL-2.0
/*
 * A second hook with the interface of the first and nothing else in common: the tests must not
 * know how a hook is written. Subprograms in place of inlining, loops in place of unrolling, one
 * body for both families, a destination that is rewritten field by field, log texts of its own. Its
 * BTF has none of the types of keys and values: maps declare sizes, functions take no pointers to
 * them.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/types.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct ip_addr {
	union {
		__u32 ip4;
		__u32 ip6[4];
	};
};

struct manager_key {
	union {
		__u64 netns_cookie;
		struct ip_addr addr;
	};
};

#define PACKED __attribute__((packed))
typedef struct {
	struct ip_addr addr;
} PACKED frontend_key;
typedef struct {
	__u32 upstream_id;
} PACKED frontend_value;
typedef struct {
	__u32 service_id;
} PACKED service_key;
typedef struct {
	__u32 service_id, prio, backend_index;
} PACKED endpoint_key;
typedef struct {
	__u32 backend_uid;
} PACKED endpoint_value;
typedef struct {
	__u32 backend_uid;
} PACKED backend_key;

typedef struct {
	__u32 prio_endpoint_count[7];
	__u32 lb_policy;
	__u32 service_port[10];
	__u32 target_port[10];
	struct ip_addr wp_addr;
	__u32 waypoint_port;
} PACKED service_value;

typedef struct {
	struct ip_addr addr;
	__u32 service_count;
	__u32 service[10];
	struct ip_addr wp_addr;
	__u32 waypoint_port;
} PACKED backend_value;

struct sock_storage_data {
	__u64 connect_ns;
	__u64 last_report_ns;
	__u8 direction;
	__u8 connect_success;
	bool via_waypoint;
	bool has_encoded;
	bool has_set_ip;
	struct bpf_sock_tuple sk_tuple;
};

#define HASH(name, key, value, entries)               \
	struct {                                      \
		__uint(type, BPF_MAP_TYPE_HASH);      \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__uint(max_entries, entries);         \
		__uint(key_size, sizeof(key));        \
		__uint(value_size, sizeof(value));    \
	} name SEC(".maps")

#define PROG_ARRAY(name)                               \
	struct {                                       \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY); \
		__uint(max_entries, 8);                \
		__uint(key_size, 4);                   \
		__uint(value_size, 4);                 \
	} name SEC(".maps")

HASH(km_backend, backend_key, backend_value, 100000);
HASH(km_endpoint, endpoint_key, endpoint_value, 105000);
HASH(km_service, service_key, service_value, 5000);
HASH(km_frontend, frontend_key, frontend_value, 105000);
HASH(km_manage, struct manager_key, __u32, 8192);
PROG_ARRAY(km_cgr_tail6);
PROG_ARRAY(km_cgr_tailcall);

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sock_storage_data);
} km_sockstorage SEC(".maps");

struct record {
	__u32 ret;
	char msg[255];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} km_log_event SEC(".maps");

volatile __u32 bpf_log_level = 2;

static __attribute__((noinline)) int complain(__u32 code)
{
	struct record *r = bpf_ringbuf_reserve(&km_log_event, sizeof(*r), 0);

	if (!r)
		return 0;
	r->ret = 4;
	r->msg[0] = 'E';
	r->msg[1] = '0' + code / 10;
	r->msg[2] = '0' + code % 10;
	r->msg[3] = 0;
	bpf_ringbuf_submit(r, 0);
	return 0;
}

struct flow {
	__u32 from[4]; /* as in the context; IPv4 in the first word */
	__u32 to[4];
	__u32 from_port;
	__u32 to_port;
	__u32 six;
	__u32 way; /* via the waypoint */
};

/* 0: not ours, 1: ours and unchanged, 2: ours and changed */
static __attribute__((noinline)) int detour(struct flow *f, const struct ip_addr *a, __u32 port)
{
	if (!f || !a)
		return 0;
	for (int i = 0; i < 4; i++)
		f->to[i] = a->ip6[i];
	f->to_port = port;
	f->way = 1;
	return 2;
}

static __attribute__((noinline)) int serve(struct flow *f, __u32 id)
{
	service_key sk = {id};
	service_value *s = bpf_map_lookup_elem(&km_service, &sk);
	endpoint_key ek = {id, 0, 0};
	backend_key bk = {};
	endpoint_value *e;
	backend_value *b;
	__u32 n;

	if (!s || !f)
		return 0;
	if (s->waypoint_port != 0 && s->wp_addr.ip6[0] != 0)
		return detour(f, &s->wp_addr, s->waypoint_port);
	if (s->lb_policy > 2) {
		complain(10);
		return 0;
	}
	n = s->prio_endpoint_count[0];
	if (s->lb_policy == 2) {
		for (__u32 p = 0; p < 7; p++) {
			n = s->prio_endpoint_count[p];
			ek.prio = p;
			if (n)
				break;
		}
	}
	if (n == 0) {
		if (s->lb_policy == 0)
			return 1;
		complain(11);
		return 0;
	}
	ek.backend_index = 1 + bpf_get_prandom_u32() % n;
	e = bpf_map_lookup_elem(&km_endpoint, &ek);
	if (e)
		bk.backend_uid = e->backend_uid;
	b = e ? bpf_map_lookup_elem(&km_backend, &bk) : NULL;
	if (!b) {
		complain(12);
		return 0;
	}
	if (b->waypoint_port)
		return detour(f, &b->wp_addr, b->waypoint_port);
	for (int i = 0; i < 10; i++) {
		if (s->service_port[i] != f->from_port)
			continue;
		for (int w = 0; w < 4; w++)
			f->to[w] = b->addr.ip6[w];
		f->to_port = s->target_port[i];
		return 2;
	}
	complain(13);
	return 0;
}

static __attribute__((noinline)) int steer(struct flow *f)
{
	frontend_key fk = {};
	frontend_value *v;
	service_key sk = {};
	backend_key bk = {};
	backend_value *b;

	if (!f)
		return 0;
	if (f->six && !f->from[0] && !f->from[1] && f->from[2] == bpf_htonl(0xffff)) {
		fk.addr.ip4 = f->from[3];
	} else {
		for (int i = 0; i < 4; i++)
			fk.addr.ip6[i] = f->from[i];
	}
	v = bpf_map_lookup_elem(&km_frontend, &fk);
	if (!v)
		return 0;
	sk.service_id = v->upstream_id;
	if (bpf_map_lookup_elem(&km_service, &sk))
		return serve(f, sk.service_id);
	bk.backend_uid = v->upstream_id;
	b = bpf_map_lookup_elem(&km_backend, &bk);
	if (!b) {
		complain(14);
		return 0;
	}
	return b->waypoint_port ? detour(f, &b->wp_addr, b->waypoint_port) : 1;
}

/* 1: go on, 0: the connection is none of ours */
static __always_inline int admit(struct bpf_sock_addr *ctx, struct flow *f)
{
	struct manager_key k = {};
	__u32 nought = 0;
	bool control;

	k.netns_cookie = bpf_get_netns_cookie(ctx);
	control = f->six ? !(f->from[0] | f->from[1] | f->from[2]) && f->from[3] == bpf_htonl(2)
			 : f->from[0] == bpf_htonl(2);
	if (control && f->from_port == bpf_htons(929)) {
		if (bpf_map_update_elem(&km_manage, &k, &nought, 0) < 0)
			complain(20);
		return 0;
	}
	if (control && f->from_port == bpf_htons(930)) {
		bpf_map_delete_elem(&km_manage, &k);
		return 0;
	}
	return bpf_map_lookup_elem(&km_manage, &k) ? 1 : 0;
}

static __always_inline void note(struct bpf_sock_addr *ctx, struct flow *f)
{
	struct sock_storage_data *d = bpf_sk_storage_get(&km_sockstorage, ctx->sk, 0, 1);

	if (!d) {
		complain(21);
		return;
	}
	d->via_waypoint |= !!f->way;
	if (!d->has_set_ip) {
		d->has_set_ip = true;
		if (f->six) {
			__builtin_memcpy(d->sk_tuple.ipv6.daddr, f->from, 16);
			d->sk_tuple.ipv6.dport = f->from_port;
		} else {
			d->sk_tuple.ipv4.daddr = f->from[0];
			d->sk_tuple.ipv4.dport = f->from_port;
		}
	}
}

static __always_inline int pass(struct bpf_sock_addr *ctx, struct flow *f)
{
	struct sock_storage_data *d;
	int verdict;

	d = bpf_sk_storage_get(&km_sockstorage, ctx->sk, 0, 1);
	if (d)
		d->connect_ns = bpf_ktime_get_ns();
	else
		complain(22);
	verdict = steer(f);
	if (verdict)
		note(ctx, f);
	return verdict;
}

static __always_inline void to_proxy(struct bpf_sock_addr *ctx, struct flow *f)
{
	backend_key bk = {0};
	backend_value *proxy = bpf_map_lookup_elem(&km_backend, &bk);

	if (!proxy)
		return;
	note(ctx, f);
	ctx->user_ip4 = proxy->addr.ip4;
}

SEC("cgroup/connect6")
int cgroup_connect6_prog(struct bpf_sock_addr *ctx)
{
	struct flow f = {.six = 1};

	f.from[0] = ctx->user_ip6[0];
	f.from[1] = ctx->user_ip6[1];
	f.from[2] = ctx->user_ip6[2];
	f.from[3] = ctx->user_ip6[3];
	f.from_port = ctx->user_port;
	if (!admit(ctx, &f) || ctx->protocol != IPPROTO_TCP || pass(ctx, &f) != 2)
		return 1;
	if (!f.from[0] && !f.from[1] && f.from[2] == bpf_htonl(0xffff) &&
	    (f.to[0] || f.to[1] || f.to[2] != bpf_htonl(0xffff))) {
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = bpf_htonl(0xffff);
		ctx->user_ip6[3] = f.to[0];
	} else {
		ctx->user_ip6[0] = f.to[0];
		ctx->user_ip6[1] = f.to[1];
		ctx->user_ip6[2] = f.to[2];
		ctx->user_ip6[3] = f.to[3];
	}
	ctx->user_port = f.to_port;
	if (f.way) {
		bpf_tail_call(ctx, &km_cgr_tail6, 1);
		complain(30);
	}
	return 1;
}

SEC("cgroup/connect4")
int cgroup_connect4_prog(struct bpf_sock_addr *ctx)
{
	struct flow f = {};

	f.from[0] = ctx->user_ip4;
	f.from_port = ctx->user_port;
	if (!admit(ctx, &f))
		return 1;
	if (f.from_port == bpf_htons(53)) {
		to_proxy(ctx, &f);
		return 1;
	}
	if (ctx->protocol != IPPROTO_TCP || pass(ctx, &f) != 2)
		return 1;
	ctx->user_port = f.to_port;
	ctx->user_ip4 = f.to[0];
	if (f.way) {
		bpf_tail_call(ctx, &km_cgr_tailcall, 0);
		complain(31);
	}
	return 1;
}

SEC("cgroup/sendmsg4")
int bpf_redirect_dns_send(struct bpf_sock_addr *ctx)
{
	struct flow f = {};

	f.from[0] = ctx->user_ip4;
	f.from_port = ctx->user_port;
	if (admit(ctx, &f) && f.from_port == bpf_htons(53))
		to_proxy(ctx, &f);
	return 1;
}

SEC("cgroup/recvmsg4")
int bpf_restore_dns_recv(struct bpf_sock_addr *ctx)
{
	struct sock_storage_data *d;
	struct flow f = {};
	backend_key bk = {0};

	f.from[0] = ctx->user_ip4;
	f.from_port = ctx->user_port;
	if (!admit(ctx, &f) || f.from_port != bpf_htons(53) ||
	    !bpf_map_lookup_elem(&km_backend, &bk))
		return 1;
	d = bpf_sk_storage_get(&km_sockstorage, ctx->sk, 0, 1);
	if (d)
		ctx->user_ip4 = d->sk_tuple.ipv4.daddr;
	else
		complain(23);
	return 1;
}
