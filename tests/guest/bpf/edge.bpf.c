// SPDX-License-Identifier: GPL-2.0
/*
 * A sample of an ordinary size for bpfunit.explore(): the edge of a network, in XDP. It parses
 * tags, IPv4 with options, IPv6 with extension headers, TCP with options and UDP, drops what is
 * malformed, spoofed, blocked or too much, and balances services over backends.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define VLAN_DEPTH 2
#define IP_OPTIONS 4
#define TCP_OPTIONS 5
#define EXTENSIONS 3
#define MAX_MSS 1400
#define BURST 16
#define REFILL_NS 1000000
#define FLAG_FIN 0x01
#define FLAG_SYN 0x02
#define FLAG_RST 0x04
#define FLAG_PSH 0x08
#define FLAG_ACK 0x10
#define FLAG_URG 0x20

enum reason {
	NONE,
	SHORT,
	BAD_MAC,
	BAD_VLAN,
	BAD_ARP,
	BAD_IP,
	BAD_OPTION,
	BAD_SOURCE,
	FRAGMENT,
	EXPIRED,
	BAD_FLAGS,
	BAD_PORT,
	BLOCKED,
	AMPLIFIED,
	TOO_MUCH,
	NO_BACKEND,
	NO_CONNECTION,
	HANDED_ON, /* reasons from here on are no reasons to drop */
	ANSWERED,
	BALANCED,
	REASONS,
};

enum { MODE_STRICT = 1, MODE_FRAGMENTS = 2, MODE_RECORD_ROUTE = 4, MODE_NO_PING = 8 };
enum { BACKEND_UP, BACKEND_DRAINING, BACKEND_DOWN };
enum { SERVICE_STICKY = 1, SERVICE_BY_PORT = 2 };

struct vlan_tag {
	__be16 tci;
	__be16 proto;
};

struct arp_request {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_size;
	__u8 protocol_size;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
};

struct extension {
	__u8 next;
	__u8 size; /* in 8 bytes, without the first */
	__be16 offset; /* of a fragment; the type of a routing header in its first byte */
	__u32 id;
};

struct icmp {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be32 rest;
};

struct blocked_key {
	__u32 prefixlen;
	__u8 addr[16];
};

struct service_key {
	__u8 addr[16];
	__be16 port;
	__u8 proto;
	__u8 family;
};

struct service {
	__u32 id;
	__u16 backends;
	__u16 flags;
};

struct backend_key {
	__u32 service_id;
	__u32 index;
};

struct backend {
	__u8 addr[16];
	__be16 port;
	__u8 state;
	__u8 mac[6];
};

struct flow {
	__u8 saddr[16];
	__u8 daddr[16];
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 family;
	__u16 pad;
};

struct bucket {
	__u64 stamp;
	__u32 tokens;
	__u32 dropped;
};

struct vlan {
	__u8 allowed;
	__u8 priority;
	__u16 tenant;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u16);
	__type(value, struct vlan);
} vlans SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __be32);
	__type(value, __u64);
} owners SEC(".maps"); /* who may claim an address by ARP */

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct blocked_key);
	__type(value, __u32);
} blocked SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u8[16]);
	__type(value, struct bucket);
} buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u8[16]);
	__type(value, __u8);
} resolvers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct backend_key);
	__type(value, struct backend);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct flow);
	__type(value, __u32);
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 32);
	__type(key, __u32);
	__type(value, __u64);
} reasons SEC(".maps");

volatile __u32 mode = MODE_FRAGMENTS;
volatile __u32 pings = 0x1809; /* ICMP types that pass, a bit each */

/* What was parsed of a packet. Pointers into it are kept apart: the verifier follows registers. */
struct frame {
	struct flow flow;
	__u16 tenant;
	__u8 flags; /* of TCP */
	__u8 hops;
};

static __always_inline int parse_vlan(void **at, void *end, __be16 *proto, struct frame *frame)
{
	struct vlan_tag *tag;
	struct vlan *vlan;
	__u16 id;

#pragma unroll
	for (int depth = 0; depth < VLAN_DEPTH; depth++) {
		if (*proto != bpf_htons(ETH_P_8021Q) && *proto != bpf_htons(ETH_P_8021AD))
			return NONE;
		tag = *at;
		if ((void *)(tag + 1) > end)
			return SHORT;
		id = bpf_ntohs(tag->tci) & 0xfff;
		if (id == 0xfff)
			return BAD_VLAN;
		vlan = bpf_map_lookup_elem(&vlans, &id);
		if (!vlan) {
			if (mode & MODE_STRICT)
				return BAD_VLAN;
		} else {
			if (!vlan->allowed)
				return BAD_VLAN;
			if (vlan->priority > bpf_ntohs(tag->tci) >> 13)
				return BAD_VLAN;
			frame->tenant = vlan->tenant;
		}
		*proto = tag->proto;
		*at = tag + 1;
	}
	return *proto == bpf_htons(ETH_P_8021Q) ? BAD_VLAN : NONE;
}

static __always_inline int handle_arp(void *at, void *end)
{
	struct arp_request *arp = at;
	__u64 mac = 0, *owner;
	__be32 addr;

	if ((void *)(arp + 1) > end)
		return SHORT;
	if (arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_size != 6)
		return BAD_ARP;
	if (arp->operation != bpf_htons(1) && arp->operation != bpf_htons(2))
		return BAD_ARP;
	__builtin_memcpy(&addr, arp->sender_ip, sizeof(addr));
	owner = bpf_map_lookup_elem(&owners, &addr);
	if (!owner)
		return HANDED_ON;
	__builtin_memcpy(&mac, arp->sender_mac, 6);
	return *owner == mac ? HANDED_ON : BAD_ARP;
}

static __always_inline int parse_ip_options(struct iphdr *ip, void *end)
{
	int size = ip->ihl * 4 - sizeof(*ip), offset = 0;
	__u8 *option, length;

	for (int n = 0; n < IP_OPTIONS; n++) {
		if (offset >= size)
			return NONE;
		option = (__u8 *)(ip + 1) + (offset & 0x3f);
		if ((void *)(option + 2) > end)
			return SHORT;
		if (option[0] == 0)
			return NONE;
		if (option[0] == 1) {
			offset++;
			continue;
		}
		if (option[0] == 131 || option[0] == 137) /* source routes */
			return BAD_OPTION;
		if (option[0] == 7 && !(mode & MODE_RECORD_ROUTE))
			return BAD_OPTION;
		length = option[1];
		if (length < 2 || length > 40)
			return BAD_OPTION;
		offset += length;
	}
	return NONE;
}

static __always_inline int parse_ip(void **at, void *end, struct frame *frame)
{
	struct iphdr *ip = *at;
	__u32 source;
	int reason;

	if ((void *)(ip + 1) > end)
		return SHORT;
	if (ip->version != 4 || ip->ihl < 5)
		return BAD_IP;
	if (bpf_ntohs(ip->tot_len) < ip->ihl * 4 || bpf_ntohs(ip->tot_len) > end - *at)
		return BAD_IP;
	reason = parse_ip_options(ip, end);
	if (reason)
		return reason;
	source = bpf_ntohl(ip->saddr);
	if (source >> 24 == 127 || source >> 28 == 14 || source == 0xffffffff)
		return BAD_SOURCE;
	if (ip->saddr == ip->daddr)
		return BAD_SOURCE;
	if (ip->frag_off & bpf_htons(0x1fff)) {
		if (!(mode & MODE_FRAGMENTS))
			return FRAGMENT;
		return bpf_ntohs(ip->frag_off) & 0x2000 ? HANDED_ON : NONE;
	}
	if (ip->ttl <= 1)
		return EXPIRED;
	frame->flow.family = 4;
	frame->flow.proto = ip->protocol;
	frame->hops = ip->ttl;
	__builtin_memcpy(frame->flow.saddr, &ip->saddr, 4);
	__builtin_memcpy(frame->flow.daddr, &ip->daddr, 4);
	*at += ip->ihl * 4;
	return NONE;
}

static __always_inline int parse_ip6(void **at, void *end, struct frame *frame)
{
	struct ipv6hdr *ip = *at;
	struct extension *extension;
	__u8 next;

	if ((void *)(ip + 1) > end)
		return SHORT;
	if (ip->version != 6)
		return BAD_IP;
	if (ip->hop_limit <= 1)
		return EXPIRED;
	if (ip->saddr.in6_u.u6_addr8[0] == 0xff)
		return BAD_SOURCE;
	__builtin_memcpy(frame->flow.saddr, &ip->saddr, 16);
	__builtin_memcpy(frame->flow.daddr, &ip->daddr, 16);
	frame->hops = ip->hop_limit;
	frame->flow.family = 6;
	next = ip->nexthdr;
	*at = ip + 1;
#pragma unroll
	for (int n = 0; n < EXTENSIONS; n++) {
		if (next != 0 && next != 43 && next != 44 && next != 60)
			break;
		extension = *at;
		if ((void *)(extension + 1) > end)
			return SHORT;
		if (next == 0 && n > 0)
			return BAD_OPTION;
		if (next == 43 && *(__u8 *)&extension->offset == 0)
			return BAD_OPTION;
		if (next == 44 && bpf_ntohs(extension->offset) >> 3)
			return mode & MODE_FRAGMENTS ? HANDED_ON : FRAGMENT;
		*at += next == 44 ? 8 : 8 + (extension->size & 7) * 8;
		next = extension->next;
	}
	if (next == 59)
		return HANDED_ON;
	frame->flow.proto = next;
	return NONE;
}

static __always_inline int handle_icmp(void *at, void *end)
{
	struct icmp *icmp = at;

	if ((void *)(icmp + 1) > end)
		return SHORT;
	if (icmp->type == 8) {
		if (mode & MODE_NO_PING)
			return BLOCKED;
		if (icmp->code)
			return BAD_FLAGS;
		icmp->type = 0;
		icmp->check += bpf_htons(0x0800);
		return ANSWERED;
	}
	if (icmp->type < 32 && pings >> icmp->type & 1)
		return HANDED_ON;
	return BLOCKED;
}

static __always_inline int handle_icmp6(void *at, void *end, struct frame *frame)
{
	struct icmp *icmp = at;

	if ((void *)(icmp + 1) > end)
		return SHORT;
	if (icmp->type >= 133 && icmp->type <= 137)
		return frame->hops == 255 ? HANDED_ON : BAD_IP;
	if (icmp->type == 128 && mode & MODE_NO_PING)
		return BLOCKED;
	return icmp->type < 130 ? HANDED_ON : BLOCKED;
}

static __always_inline int clamp_mss(struct tcphdr *tcp, void *end)
{
	int size = tcp->doff * 4 - sizeof(*tcp), offset = 0;
	__u8 *option;

	for (int n = 0; n < TCP_OPTIONS; n++) {
		if (offset >= size)
			return NONE;
		option = (__u8 *)(tcp + 1) + (offset & 0x3f);
		if ((void *)(option + 4) > end)
			return NONE;
		if (option[0] == 0)
			return NONE;
		if (option[0] == 1) {
			offset++;
			continue;
		}
		if (option[0] == 19) /* signatures, which an edge cannot check */
			return BAD_OPTION;
		if (option[0] == 2) {
			if (option[1] != 4)
				return BAD_OPTION;
			if ((option[2] << 8 | option[3]) > MAX_MSS) {
				option[2] = MAX_MSS >> 8;
				option[3] = MAX_MSS & 0xff;
			}
			return NONE;
		}
		if (option[1] < 2)
			return BAD_OPTION;
		offset += option[1] & 0x3f;
	}
	return NONE;
}

static __always_inline int parse_tcp(void *at, void *end, struct frame *frame)
{
	struct tcphdr *tcp = at;
	__u8 flags;

	if ((void *)(tcp + 1) > end)
		return SHORT;
	if (tcp->doff < 5)
		return BAD_FLAGS;
	flags = ((__u8 *)tcp)[13] & 0x3f;
	if (!flags || (flags & (FLAG_SYN | FLAG_FIN)) == (FLAG_SYN | FLAG_FIN))
		return BAD_FLAGS;
	if ((flags & (FLAG_SYN | FLAG_RST)) == (FLAG_SYN | FLAG_RST))
		return BAD_FLAGS;
	if ((flags & (FLAG_FIN | FLAG_PSH | FLAG_URG)) == (FLAG_FIN | FLAG_PSH | FLAG_URG))
		return BAD_FLAGS;
	if (!(flags & (FLAG_SYN | FLAG_RST | FLAG_ACK)))
		return BAD_FLAGS;
	if (!tcp->source || !tcp->dest)
		return BAD_PORT;
	frame->flow.sport = tcp->source;
	frame->flow.dport = tcp->dest;
	frame->flags = flags;
	return flags & FLAG_SYN ? clamp_mss(tcp, end) : NONE;
}

static __always_inline int parse_udp(void *at, void *end, struct frame *frame)
{
	struct udphdr *udp = at;
	__u16 source;

	if ((void *)(udp + 1) > end)
		return SHORT;
	if (bpf_ntohs(udp->len) < sizeof(*udp) || bpf_ntohs(udp->len) > end - at)
		return BAD_IP;
	if (!udp->dest)
		return BAD_PORT;
	source = bpf_ntohs(udp->source);
	/* what amplifies answers only when it was asked */
	if (source == 53 || source == 123 || source == 389 || source == 1900 || source == 11211) {
		if (!bpf_map_lookup_elem(&resolvers, frame->flow.saddr))
			return AMPLIFIED;
	}
	frame->flow.sport = udp->source;
	frame->flow.dport = udp->dest;
	return NONE;
}

static __always_inline int police(struct frame *frame)
{
	struct blocked_key key = {.prefixlen = 128};
	struct bucket *bucket, fresh = {};
	__u64 now, filled;
	__u32 *until;

	__builtin_memcpy(key.addr, frame->flow.saddr, 16);
	now = bpf_ktime_get_ns();
	until = bpf_map_lookup_elem(&blocked, &key);
	if (until && (!*until || *until > now / 1000000000))
		return BLOCKED;
	bucket = bpf_map_lookup_elem(&buckets, frame->flow.saddr);
	if (!bucket) {
		fresh.stamp = now;
		fresh.tokens = BURST;
		if (bpf_map_update_elem(&buckets, frame->flow.saddr, &fresh, BPF_ANY))
			return mode & MODE_STRICT ? TOO_MUCH : NONE;
		return NONE;
	}
	filled = now < bucket->stamp ? 0 : (now - bucket->stamp) / REFILL_NS;
	if (filled) {
		bucket->tokens += filled > BURST ? BURST : filled;
		if (bucket->tokens > BURST)
			bucket->tokens = BURST;
		bucket->stamp = now;
	}
	if (!bucket->tokens) {
		bucket->dropped++;
		return TOO_MUCH;
	}
	bucket->tokens--;
	return NONE;
}

static __always_inline struct backend *pick(struct frame *frame, struct service *service)
{
	struct backend_key key = {.service_id = service->id};
	struct backend *backend;
	__u32 hash, *known, index;

	known = bpf_map_lookup_elem(&connections, &frame->flow);
	if (known && service->flags & SERVICE_STICKY) {
		key.index = *known;
		backend = bpf_map_lookup_elem(&backends, &key);
		if (backend && backend->state != BACKEND_DOWN)
			return backend;
	}
	hash = *(__u32 *)&frame->flow.saddr[0] ^ *(__u32 *)&frame->flow.saddr[12];
	if (service->flags & SERVICE_BY_PORT)
		hash ^= frame->flow.sport;
#pragma unroll
	for (int attempt = 0; attempt < 3; attempt++) {
		index = (hash + attempt) % service->backends;
		key.index = index;
		backend = bpf_map_lookup_elem(&backends, &key);
		if (!backend || backend->state != BACKEND_UP)
			continue;
		if (bpf_map_update_elem(&connections, &frame->flow, &index, BPF_ANY))
			return NULL;
		return backend;
	}
	return NULL;
}

static __always_inline int balance(void *start, void *end, void *l4, struct frame *frame)
{
	struct service_key key = {.port = frame->flow.dport, .proto = frame->flow.proto};
	struct ethhdr *eth = start;
	struct service *service;
	struct backend *backend;

	key.family = frame->flow.family;
	__builtin_memcpy(key.addr, frame->flow.daddr, 16);
	service = bpf_map_lookup_elem(&services, &key);
	if (!service)
		return mode & MODE_STRICT ? BLOCKED : HANDED_ON;
	if (!service->backends)
		return NO_BACKEND;
	if (frame->flow.proto == IPPROTO_TCP && !(frame->flags & FLAG_SYN) && mode & MODE_STRICT &&
	    !bpf_map_lookup_elem(&connections, &frame->flow))
		return NO_CONNECTION;
	backend = pick(frame, service);
	if (!backend)
		return NO_BACKEND;
	if ((void *)(eth + 1) > end || l4 + 4 > end)
		return SHORT;
	__builtin_memcpy(eth->h_source, eth->h_dest, 6);
	__builtin_memcpy(eth->h_dest, backend->mac, 6);
	if (backend->port)
		((__be16 *)l4)[1] = backend->port;
	return BALANCED;
}

static __always_inline int handle(void *data, void *end)
{
	struct frame frame = {};
	struct ethhdr *eth = data;
	void *at = eth + 1;
	__be16 proto;
	int reason;

	if (at > end)
		return SHORT;
	if (eth->h_source[0] & 1)
		return BAD_MAC;
	proto = eth->h_proto;
	reason = parse_vlan(&at, end, &proto, &frame);
	if (reason)
		return reason;
	if (proto == bpf_htons(ETH_P_ARP))
		return handle_arp(at, end);
	if (proto == bpf_htons(ETH_P_IP))
		reason = parse_ip(&at, end, &frame);
	else if (proto == bpf_htons(ETH_P_IPV6))
		reason = parse_ip6(&at, end, &frame);
	else
		return mode & MODE_STRICT ? BLOCKED : HANDED_ON;
	if (!reason)
		reason = police(&frame);
	if (reason)
		return reason;
	if (frame.flow.proto == IPPROTO_ICMP && frame.flow.family == 4)
		return handle_icmp(at, end);
	if (frame.flow.proto == IPPROTO_ICMPV6 && frame.flow.family == 6)
		return handle_icmp6(at, end, &frame);
	if (frame.flow.proto == IPPROTO_TCP)
		reason = parse_tcp(at, end, &frame);
	else if (frame.flow.proto == IPPROTO_UDP)
		reason = parse_udp(at, end, &frame);
	else
		return frame.tenant ? HANDED_ON : BLOCKED;
	if (reason)
		return reason;
	return balance(data, end, at, &frame);
}

SEC("xdp")
int edge(struct xdp_md *ctx)
{
	__u32 reason = handle((void *)(long)ctx->data, (void *)(long)ctx->data_end);
	__u64 *counter = bpf_map_lookup_elem(&reasons, &reason);

	if (counter)
		++*counter;
	if (reason < HANDED_ON)
		return XDP_DROP;
	return reason == HANDED_ON ? XDP_PASS : XDP_TX;
}
