// SPDX-License-Identifier: GPL-2.0
/*
 * BPF_PROG_TEST_RUN for types of programs that Linux has none for.
 *
 * Linux answers ENOTSUPP, since such a type has no .test_run. This module gives one to
 * every program of the type that is loaded after it, so that any client of bpf(2) can
 * run the verified, JITed program with a crafted context.
 *
 * The contract (what is accepted, what the program sees, which error means what) is
 * docs/module.md of the bpfunit project. Differences between kernels are in compat.h.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/string.h>

#include "compat.h"
#include "types/types.h"

/* By type of program; a type without .test_run here is left alone. */
static const struct bpf_prog_ops equipment[] = {
	[BPF_PROG_TYPE_CGROUP_SOCK_ADDR] = {.test_run = sock_addr_test_run},
	[BPF_PROG_TYPE_CGROUP_DEVICE] = {.test_run = cgroup_device_test_run},
	[BPF_PROG_TYPE_CGROUP_SOCKOPT] = {.test_run = cgroup_sockopt_test_run},
	[BPF_PROG_TYPE_CGROUP_SOCK] = {.test_run = cgroup_sock_test_run},
#ifdef CONFIG_SYSCTL
	[BPF_PROG_TYPE_CGROUP_SYSCTL] = {.test_run = cgroup_sysctl_test_run},
#endif
	[BPF_PROG_TYPE_SK_REUSEPORT] = {.test_run = sk_reuseport_test_run},
	[BPF_PROG_TYPE_SOCK_OPS] = {.test_run = sock_ops_test_run},
#ifdef CONFIG_NET_SOCK_MSG
	[BPF_PROG_TYPE_SK_MSG] = {.test_run = sk_msg_test_run},
	[BPF_PROG_TYPE_SK_SKB] = {.test_run = sk_skb_test_run},
#endif
#ifdef CONFIG_BPF_EVENTS
	[BPF_PROG_TYPE_KPROBE] = {.test_run = kprobe_test_run},
	[BPF_PROG_TYPE_TRACEPOINT] = {.test_run = tracepoint_test_run},
#endif
	[BPF_PROG_TYPE_CGROUP_SKB] = {.test_run = cgroup_skb_test_run},
};

static atomic_long_t programs_equipped = ATOMIC_LONG_INIT(0);

/*
 * Whether a type's stock operations can be replaced without loss: they hold nothing at
 * all, or a test run that ours goes on to use. A kernel that has something else there is
 * not one that this module knows.
 */
static bool nothing_is_lost(const struct bpf_prog *prog)
{
	struct bpf_prog_ops stock = *prog->aux->ops;

	if (prog->type == BPF_PROG_TYPE_CGROUP_SKB) {
		if (!stock.test_run) /* nothing that could be put right */
			return false;
		cgroup_skb_keep_stock(stock.test_run);
		stock.test_run = NULL;
	}
	if (!memchr_inv(&stock, 0, sizeof(stock)))
		return true;
	pr_warn_once("this kernel has operations of its own for programs of type %d; "
		     "they are left as they are\n",
		     prog->type);
	return false;
}

/* A program cannot tell when it dies: the first one pins the module. */
static bool pin_module(void)
{
	static atomic_t pinned = ATOMIC_INIT(0);

	if (atomic_read(&pinned))
		return true;
	if (!try_module_get(THIS_MODULE)) /* on its way out */
		return false;
	if (atomic_xchg(&pinned, 1))
		module_put(THIS_MODULE); /* another processor was first */
	return true;
}

/*
 * The table of operations by program type is read-only and not exported. A program's
 * own pointer into it is neither, and each one passes through here before anyone can
 * have a descriptor of it.
 */
static int equip_program(struct kprobe *probe, struct pt_regs *regs)
{
	struct bpf_prog *prog = (void *)function_argument(regs, SELECT_RUNTIME_PROG_ARG);

	if (prog->type >= ARRAY_SIZE(equipment) || !equipment[prog->type].test_run)
		return 0;
	if (!nothing_is_lost(prog) || !pin_module())
		return 0;
	prog->aux->ops = &equipment[prog->type];
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

MODULE_DESCRIPTION("BPF_PROG_TEST_RUN for program types that Linux has none for");
MODULE_AUTHOR("The bpfunit authors");
MODULE_LICENSE("GPL");
MODULE_VERSION("2");
