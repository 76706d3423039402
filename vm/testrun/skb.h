/* SPDX-License-Identifier: GPL-2.0 */
/* Where an sk_skb program leaves its redirection: 5.13 moved it. */
#ifndef BPFUNIT_TESTRUN_SKB_H
#define BPFUNIT_TESTRUN_SKB_H

#include <linux/skbuff.h>
#include <linux/skmsg.h>
#include <net/tcp.h>

#ifdef HAVE_SKB_BPF_REDIRECT

static inline void skb_end_of_linear(struct sk_buff *skb)
{
}

static inline struct sock *skb_redirect_target(struct sk_buff *skb)
{
	return skb_bpf_redirect_fetch(skb);
}

static inline bool skb_redirect_ingress(const struct sk_buff *skb)
{
	return skb_bpf_ingress(skb);
}

static inline void skb_redirect_forget(struct sk_buff *skb)
{
	skb_bpf_redirect_clear(skb);
}

#else

/* The program finds the end of its data in the control block. */
static inline void skb_end_of_linear(struct sk_buff *skb)
{
	bpf_compute_data_end_sk_skb(skb);
}

static inline struct sock *skb_redirect_target(struct sk_buff *skb)
{
	return tcp_skb_bpf_redirect_fetch(skb);
}

static inline bool skb_redirect_ingress(const struct sk_buff *skb)
{
	return tcp_skb_bpf_ingress(skb);
}

static inline void skb_redirect_forget(struct sk_buff *skb)
{
	tcp_skb_bpf_redirect_clear(skb);
}

#endif

static inline u32 skb_tc_index(const struct sk_buff *skb)
{
#ifdef CONFIG_NET_SCHED
	return skb->tc_index;
#else
	return 0;
#endif
}

/*
 * 7.2 at the latest: a parser that can change the data is not attached. Kernels before it
 * attach one.
 */
static inline bool parser_may_attach(const struct bpf_prog *prog)
{
#ifdef HAVE_LOCKED_TCP_SOCK
	return !prog->aux->changes_pkt_data;
#else
	return true;
#endif
}

#endif
