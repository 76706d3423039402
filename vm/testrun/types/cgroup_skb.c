// SPDX-License-Identifier: GPL-2.0
/*
 * cgroup_skb: the kernel's own test run, with the end of the packet put right.
 *
 * The hook tells a program where the packet ends (bpf_compute_and_save_data_end() in
 * __cgroup_bpf_run_filter_skb()). Up to 6.15 the test run does not: data_end is NULL, and a
 * program that reads the packet where it lies takes it for too short, whatever it is.
 * All else of that test run is as it should be, so it is what runs, on a stand-in for
 * the program whose code begins with what the hook does.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/filter.h>
#include <linux/skbuff.h>
#include <linux/slab.h>

#include "types.h"

struct stand_in {
	const struct bpf_prog *real;
	struct bpf_prog prog; /* without the instructions, which nobody reads */
};

static test_run_fn *stock_test_run;

/* Called for each program on its way into the kernel, always with the same function. */
void cgroup_skb_keep_stock(test_run_fn *stock)
{
	WRITE_ONCE(stock_test_run, stock);
}

static unsigned int run_with_packet_end(const void *ctx, const struct bpf_insn *insns)
{
	const struct stand_in *stand_in = container_of(insns, struct stand_in, prog.insnsi[0]);
	const struct sk_buff *skb = ctx;
	struct bpf_skb_data_end *cb = (struct bpf_skb_data_end *)skb->cb;

	if (!cb->data_end)
		cb->data_end = skb->data + skb_headlen(skb);
	return stand_in->real->bpf_func(ctx, stand_in->real->insnsi);
}

int cgroup_skb_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
			union bpf_attr __user *uattr)
{
	test_run_fn *stock = READ_ONCE(stock_test_run);
	struct stand_in *stand_in = kmalloc(sizeof(*stand_in), GFP_KERNEL);
	int err;

	if (!stand_in)
		return -ENOMEM;
	stand_in->real = prog;
	memcpy(&stand_in->prog, prog, sizeof(*prog));
	stand_in->prog.bpf_func = run_with_packet_end;
	err = stock(&stand_in->prog, kattr, uattr);
	kfree(stand_in);
	return err;
}
