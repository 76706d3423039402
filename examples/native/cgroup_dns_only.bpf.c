// SPDX-License-Identifier: GPL-2.0
/* Lets a cgroup send nothing but DNS: UDP to port 53. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("cgroup_skb/egress")
int dns_only(struct __sk_buff *skb)
{
	struct udphdr udp;
	struct iphdr ip;

	/* the packet starts at the IP header here, there is no Ethernet one */
	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.version != 4)
		return 0;
	if (ip.protocol != IPPROTO_UDP || bpf_skb_load_bytes(skb, ip.ihl * 4, &udp, sizeof(udp)))
		return 0;
	return udp.dest == bpf_htons(53);
}
