// SPDX-License-Identifier: GPL-2.0
/* One and the same program of every type: what it does its one setting says. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

enum { NOTHING, LOG, TAIL_CALL, CHANCE, REMEMBER, DAWDLE };

struct log_record {
	__u32 ret;
	char msg[12];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} setting SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 4);
} remembered SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} event_log SEC(".maps");

static __always_inline int log_a_line(void)
{
	struct log_record record = {7, "said so"};

	return !bpf_ringbuf_output(&event_log, &record, sizeof(record), 0);
}

static __always_inline int act(void *ctx, void *next)
{
	__u32 key = 0, *what = bpf_map_lookup_elem(&setting, &key);

	if (!what)
		return 0;
	switch (*what) {
	case LOG:
		return log_a_line();
	case TAIL_CALL:
#ifdef TAILLESS
		(void)ctx, (void)next;
#else
		bpf_tail_call(ctx, next, 0);
#endif
		return 0;
	case CHANCE:
		return bpf_get_prandom_u32() == 7;
	case REMEMBER:
		return !bpf_map_update_elem(&remembered, &key, &key, BPF_ANY);
	case DAWDLE:
		for (int i = 0; i < 64; i++)
			key += bpf_get_prandom_u32() & 1;
		return key < 65;
	}
	return 1;
}

#define COMFORTS(name, section, context)               \
	struct {                                       \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY); \
		__type(key, __u32);                    \
		__type(value, __u32);                  \
		__uint(max_entries, 1);                \
	} next_##name SEC(".maps");                    \
	SEC(section)                                   \
	int of_##name(context *ctx)                    \
	{                                              \
		return act(ctx, &next_##name);         \
	}

COMFORTS(sock_addr, "cgroup/connect4", struct bpf_sock_addr)
COMFORTS(sock_ops, "sockops", struct bpf_sock_ops)
COMFORTS(sk_msg, "sk_msg", struct sk_msg_md)
COMFORTS(setsockopt, "cgroup/setsockopt", struct bpf_sockopt)
COMFORTS(getsockopt, "cgroup/getsockopt", struct bpf_sockopt)
COMFORTS(sock_create, "cgroup/sock_create", struct bpf_sock)
COMFORTS(sock_release, "cgroup/sock_release", struct bpf_sock)
COMFORTS(post_bind, "cgroup/post_bind4", struct bpf_sock)
COMFORTS(device, "cgroup/dev", struct bpf_cgroup_dev_ctx)
COMFORTS(sysctl, "cgroup/sysctl", struct bpf_sysctl)
COMFORTS(reuseport, "sk_reuseport", struct sk_reuseport_md)
COMFORTS(parser, "sk_skb/stream_parser", struct __sk_buff)
COMFORTS(verdict, "sk_skb/stream_verdict", struct __sk_buff)
COMFORTS(kprobe, "kprobe/do_sys_openat2", void)
COMFORTS(kretprobe, "kretprobe/do_sys_openat2", void)
COMFORTS(tracepoint, "tracepoint/syscalls/sys_enter_openat", void)
COMFORTS(packet, "cgroup_skb/ingress", struct __sk_buff)
COMFORTS(xdp, "xdp", struct xdp_md)
COMFORTS(tc, "tc", struct __sk_buff)
