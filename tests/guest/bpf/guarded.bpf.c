// SPDX-License-Identifier: GPL-2.0
/* A variable that a lock guards, and one beside it without: the kernel maps the lock's section for
 * nobody. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct bpf_spin_lock lock SEC(".data.guarded");
volatile int guarded SEC(".data.guarded");
volatile int beside = 4;

SEC("cgroup/connect4")
int count(struct bpf_sock_addr *ctx)
{
	struct bpf_spin_lock *held = &lock;

	/* one address for both calls: the verifier before Linux 6.2 tells two loads of it apart */
	asm volatile("" : "+r"(held));
	bpf_spin_lock(held);
	guarded++;
	bpf_spin_unlock(held);
	beside += 3;
	return ctx->user_port != 0;
}
