// SPDX-License-Identifier: GPL-2.0
/*
 * A sample of an ordinary size for bpfunit.explore(): the gateway of a network, in TC. Of packets
 * that leave it follows connections through their states, asks a policy, reads DNS questions,
 * translates addresses, marks and shapes, and writes events.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define SECOND 1000000000ull
#define PORT_TRIES 4
#define FIRST_PORT 32768
#define LABELS 5
#define ETH_SIZE sizeof(struct ethhdr)
#define FLAG_FIN 0x01
#define FLAG_SYN 0x02
#define FLAG_RST 0x04
#define FLAG_ACK 0x10

enum state { ABSENT, SYN_SENT, ESTABLISHED, CLOSING, CLOSED, REPLIED, STATES };
enum action { ALLOW = 1, DENY, REDIRECT, INSPECT };
enum { OPTION_NAT = 1, OPTION_LOG = 2, OPTION_DSCP = 4, OPTION_ONCE = 8 };
enum event_kind { EVENT_NEW = 1, EVENT_DENIED, EVENT_CLOSED, EVENT_NO_PORT, EVENT_NAME };

struct tuple {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};

struct connection {
	__u64 seen;
	__u32 packets;
	__u8 state;
	__u8 pad;
	__be16 nat_port;
};

struct policy_key {
	__u32 identity;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct policy {
	__u8 action;
	__u8 options;
	__u8 dscp;
	__u8 pad;
	__u32 target; /* an interface to redirect to */
	__u32 limit; /* packets of a connection, 0 for any number */
};

struct tenant {
	__u32 identity;
	__be32 nat_addr;
	__u32 rate; /* bytes in a second, 0 for any number */
	__u32 flags;
};

struct shaper {
	__u64 next; /* when a packet may leave */
	__u64 late;
};

struct event {
	__u32 kind;
	__u32 identity;
	struct tuple tuple;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __be32); /* the network, 24 bits */
	__type(value, struct tenant);
} tenants SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct policy_key);
	__type(value, struct policy);
} policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tuple);
	__type(value, struct connection);
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tuple); /* as the answers have it */
	__type(value, struct tuple);
} translated SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct shaper);
} shapers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32); /* a hash of the last labels of a name */
	__type(value, __u8);
} names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} events SEC(".maps");

volatile __u8 enforcing = 1;
volatile __u8 log_level;
volatile __be32 own_addr = 0x0100000a;
volatile __u64 idle_seconds = 300;

static __always_inline void report(__u32 kind, __u32 identity, const struct tuple *tuple)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event)
		return;
	event->kind = kind;
	event->identity = identity;
	event->tuple = *tuple;
	bpf_ringbuf_submit(event, 0);
}

/* Returns the state that a segment leads to, 0 for one that belongs to no connection. */
static __always_inline int next_state(int state, __u8 flags)
{
	if (flags & FLAG_RST)
		return state ? CLOSED : 0;
	switch (state) {
	case ABSENT:
	case CLOSED:
		if ((flags & (FLAG_SYN | FLAG_ACK)) == FLAG_SYN)
			return SYN_SENT;
		return 0;
	case SYN_SENT:
		if (flags & FLAG_SYN)
			return flags & FLAG_ACK ? 0 : SYN_SENT;
		return flags & FLAG_ACK ? ESTABLISHED : 0;
	case ESTABLISHED:
		if (flags & FLAG_SYN)
			return 0;
		return flags & FLAG_FIN ? CLOSING : ESTABLISHED;
	case CLOSING:
		return flags & FLAG_FIN ? CLOSED : CLOSING;
	case REPLIED:
		return ESTABLISHED;
	default:
		return 0;
	}
}

static __always_inline int track(struct tuple *tuple, __u8 flags, struct connection **found)
{
	struct connection *connection, fresh = {};
	__u64 now = bpf_ktime_get_ns();
	int state;

	connection = bpf_map_lookup_elem(&connections, tuple);
	if (connection && now > connection->seen + idle_seconds * SECOND) {
		bpf_map_delete_elem(&connections, tuple);
		connection = NULL;
	}
	state = connection ? connection->state : ABSENT;
	if (tuple->proto == IPPROTO_TCP) {
		state = next_state(state, flags);
		if (!state)
			return -1;
	} else if (!connection) {
		state = SYN_SENT;
	} else if (connection->packets > 2 && state == SYN_SENT) {
		state = ESTABLISHED;
	}
	if (connection) {
		connection->state = state;
		connection->seen = now;
		connection->packets++;
		*found = connection;
		return 0;
	}
	fresh.state = state;
	fresh.seen = now;
	fresh.packets = 1;
	if (bpf_map_update_elem(&connections, tuple, &fresh, BPF_NOEXIST))
		return -1;
	*found = bpf_map_lookup_elem(&connections, tuple);
	return 1;
}

static __always_inline struct policy *policy_of(__u32 identity, const struct tuple *tuple)
{
	struct policy_key key = {.identity = identity, .port = tuple->dport, .proto = tuple->proto};
	struct policy *policy;

	policy = bpf_map_lookup_elem(&policies, &key);
	if (policy)
		return policy;
	key.port = 0;
	policy = bpf_map_lookup_elem(&policies, &key);
	if (policy)
		return policy;
	key.proto = 0;
	return bpf_map_lookup_elem(&policies, &key);
}

/* Looks a DNS question up by its last labels; 1 for a name that is not wanted. */
static __always_inline int unwanted_name(struct __sk_buff *skb, __u32 offset, __u32 identity,
					 const struct tuple *tuple)
{
	__u32 hash = 0, size, at = offset;
	__u8 head[12], label[8], *verdict;

	if (bpf_skb_load_bytes(skb, at, head, sizeof(head)))
		return 0;
	if (head[2] & 0x80) /* an answer */
		return 0;
	if (head[4] || head[5] != 1)
		return 1;
	at += sizeof(head);
#pragma unroll
	for (int n = 0; n < LABELS; n++) {
		if (bpf_skb_load_bytes(skb, at, label, 4))
			return 1;
		size = label[0];
		if (!size)
			break;
		if (size > 63)
			return 1;
		hash = hash * 31 + (label[1] | label[2] << 8);
		at += size + 1;
	}
	verdict = bpf_map_lookup_elem(&names, &hash);
	if (!verdict)
		return 0;
	if (*verdict == 2)
		report(EVENT_NAME, identity, tuple);
	return *verdict != 0;
}

static __always_inline int translate(struct __sk_buff *skb, struct tuple *tuple,
				     struct connection *connection, const struct tenant *tenant,
				     __u32 l4)
{
	struct tuple answer = {.saddr = tuple->daddr, .sport = tuple->dport, .proto = tuple->proto};
	__u32 check = l4 + (tuple->proto == IPPROTO_TCP ? offsetof(struct tcphdr, check)
							: offsetof(struct udphdr, check));
	__u64 flags = tuple->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__be32 addr = tenant->nat_addr ? tenant->nat_addr : own_addr;
	__be16 port = connection->nat_port;

	answer.daddr = addr;
	if (!port) {
		__u32 start = bpf_get_prandom_u32();
		int n;

#pragma unroll
		for (n = 0; n < PORT_TRIES; n++) {
			port = bpf_htons(FIRST_PORT + ((start + n * 7) & 0x7fff));
			answer.dport = port;
			if (!bpf_map_update_elem(&translated, &answer, tuple, BPF_NOEXIST))
				break;
		}
		if (n == PORT_TRIES) {
			report(EVENT_NO_PORT, tenant->identity, tuple);
			return -1;
		}
		connection->nat_port = port;
	}
	if (bpf_l4_csum_replace(skb, check, tuple->saddr, addr, flags | BPF_F_PSEUDO_HDR | 4))
		return -1;
	if (bpf_l4_csum_replace(skb, check, tuple->sport, port, flags | 2))
		return -1;
	if (bpf_l3_csum_replace(skb, ETH_SIZE + offsetof(struct iphdr, check), tuple->saddr, addr,
				4))
		return -1;
	if (bpf_skb_store_bytes(skb, ETH_SIZE + offsetof(struct iphdr, saddr), &addr, 4, 0))
		return -1;
	return bpf_skb_store_bytes(skb, l4, &port, 2, 0) ? -1 : 0;
}

static __always_inline int shape(struct __sk_buff *skb, const struct tenant *tenant)
{
	__u32 identity = tenant->identity;
	struct shaper *shaper, fresh = {};
	__u64 now, cost;

	if (!tenant->rate)
		return 0;
	now = bpf_ktime_get_ns();
	cost = skb->len * SECOND / tenant->rate;
	shaper = bpf_map_lookup_elem(&shapers, &identity);
	if (!shaper) {
		fresh.next = now + cost;
		bpf_map_update_elem(&shapers, &identity, &fresh, BPF_ANY);
		return 0;
	}
	if (shaper->next < now) {
		shaper->next = now + cost;
		return 0;
	}
	if (shaper->next - now > SECOND / 10) {
		shaper->late++;
		return -1;
	}
	shaper->next += cost;
	return 0;
}

static __always_inline void set_dscp(struct __sk_buff *skb, __u8 old, __u8 dscp)
{
	__u8 tos = dscp << 2 | (old & 3);

	if (tos == old)
		return;
	bpf_l3_csum_replace(skb, ETH_SIZE + offsetof(struct iphdr, check), bpf_htons(old),
			    bpf_htons(tos), 2);
	bpf_skb_store_bytes(skb, ETH_SIZE + offsetof(struct iphdr, tos), &tos, 1, 0);
}

static __always_inline int leave_ip6(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + ETH_SIZE;
	__u8 *icmp = (__u8 *)(ip + 1);

	if ((void *)(ip + 1) > end)
		return TC_ACT_SHOT;
	if (ip->version != 6)
		return TC_ACT_SHOT;
	/* neighbours are looked for; all else is not yet routed */
	if (ip->nexthdr != IPPROTO_ICMPV6)
		return enforcing ? TC_ACT_SHOT : TC_ACT_OK;
	if ((void *)(icmp + 4) > end)
		return TC_ACT_SHOT;
	if (icmp[0] < 133 || icmp[0] > 136)
		return TC_ACT_SHOT;
	if (ip->hop_limit != 255)
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

static __always_inline int read_ports(struct __sk_buff *skb, struct tuple *tuple, __u32 l4,
				      __u8 *flags)
{
	__u8 head[16];

	switch (tuple->proto) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(skb, l4, head, sizeof(head)))
			return -1;
		if (head[12] >> 4 < 5)
			return -1;
		*flags = head[13];
		if ((*flags & (FLAG_SYN | FLAG_FIN)) == (FLAG_SYN | FLAG_FIN))
			return -1;
		break;
	case IPPROTO_UDP:
		if (bpf_skb_load_bytes(skb, l4, head, 8))
			return -1;
		if (!(head[4] | head[5]))
			return -1;
		break;
	case IPPROTO_ICMP:
		if (bpf_skb_load_bytes(skb, l4, head, 8))
			return -1;
		if (head[0] != 8 && head[0] != 0)
			return -1;
		tuple->sport = *(__be16 *)&head[4];
		return 0;
	default:
		return -1;
	}
	tuple->sport = *(__be16 *)&head[0];
	tuple->dport = *(__be16 *)&head[2];
	return 0;
}

static __always_inline int enforce(struct __sk_buff *skb, struct tuple *tuple,
				   struct connection *connection, const struct tenant *tenant,
				   int fresh, __u8 tos, __u32 l4)
{
	struct policy *policy = policy_of(tenant->identity, tuple);
	__u8 options;

	if (!policy)
		return enforcing ? TC_ACT_SHOT : TC_ACT_OK;
	options = policy->options;
	if (fresh && options & OPTION_LOG && log_level > 1)
		report(EVENT_NEW, tenant->identity, tuple);
	switch (policy->action) {
	case ALLOW:
		break;
	case DENY:
		if (log_level)
			report(EVENT_DENIED, tenant->identity, tuple);
		return enforcing ? TC_ACT_SHOT : TC_ACT_OK;
	case REDIRECT:
		if (!policy->target)
			return TC_ACT_SHOT;
		return bpf_redirect(policy->target, 0);
	case INSPECT:
		if (tuple->proto != IPPROTO_UDP || tuple->dport != bpf_htons(53))
			return TC_ACT_SHOT;
		if (unwanted_name(skb, l4 + 8, tenant->identity, tuple))
			return TC_ACT_SHOT;
		break;
	default:
		return TC_ACT_SHOT;
	}
	if (policy->limit && connection->packets > policy->limit)
		return TC_ACT_SHOT;
	if (options & OPTION_ONCE && !fresh && connection->state == SYN_SENT)
		return TC_ACT_SHOT;
	if (connection->state == CLOSED && log_level > 2)
		report(EVENT_CLOSED, tenant->identity, tuple);
	if (options & OPTION_DSCP)
		set_dscp(skb, tos, policy->dscp);
	if (options & OPTION_NAT && tuple->proto != IPPROTO_ICMP)
		if (translate(skb, tuple, connection, tenant, l4))
			return TC_ACT_SHOT;
	if (shape(skb, tenant))
		return TC_ACT_SHOT;
	skb->mark = tenant->identity;
	return TC_ACT_OK;
}

static __always_inline int leave_ip(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct connection *connection = NULL;
	struct iphdr *ip = data + ETH_SIZE;
	struct tuple tuple = {};
	struct tenant *tenant;
	__be32 network;
	__u8 flags = 0, tos;
	int fresh, l4;

	if ((void *)(ip + 1) > end)
		return TC_ACT_SHOT;
	if (ip->version != 4 || ip->ihl < 5 || ip->ttl <= 1)
		return TC_ACT_SHOT;
	if (ip->frag_off & bpf_htons(0x3fff))
		return TC_ACT_SHOT;
	if (ip->daddr == 0xffffffff || (bpf_ntohl(ip->daddr) & 0xf0000000) == 0xe0000000)
		return TC_ACT_OK;
	tuple.saddr = ip->saddr;
	tuple.daddr = ip->daddr;
	tuple.proto = ip->protocol;
	tos = ip->tos;
	l4 = ETH_SIZE + ip->ihl * 4;
	network = ip->saddr & bpf_htonl(0xffffff00);
	tenant = bpf_map_lookup_elem(&tenants, &network);
	if (!tenant)
		return enforcing ? TC_ACT_SHOT : TC_ACT_OK;
	if (tenant->identity != skb->mark && skb->mark && tenant->flags & 1)
		return TC_ACT_SHOT;
	if (skb->priority == 7) /* what the network itself has to say */
		return TC_ACT_OK;
	if (read_ports(skb, &tuple, l4, &flags))
		return TC_ACT_SHOT;
	fresh = track(&tuple, flags, &connection);
	if (fresh < 0 || !connection)
		return TC_ACT_SHOT;
	return enforce(skb, &tuple, connection, tenant, fresh, tos, l4);
}

SEC("tc")
int gateway(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return TC_ACT_SHOT;
	switch (eth->h_proto) {
	case bpf_htons(ETH_P_IP):
		return leave_ip(skb);
	case bpf_htons(ETH_P_IPV6):
		return leave_ip6(skb);
	case bpf_htons(ETH_P_ARP):
		return TC_ACT_OK;
	default:
		return enforcing ? TC_ACT_SHOT : TC_ACT_OK;
	}
}
