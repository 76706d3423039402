// SPDX-License-Identifier: GPL-2.0
/* Global variables of every kind of section. Those of .data, .bss and .rodata are all static. */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

static volatile int runs;
static volatile int sum = 40;
static const volatile int ceiling = 3;

/* Names with two underscores are names like others. */
struct target {
	__u32 address;
};

const volatile struct target __target SEC(".rodata.target");
volatile int __seen SEC(".data.shared");

const volatile __u32 step SEC(".rodata.steps") = 2;

/* More than a page, more than a map of a few bytes: 4 MiB. */
#define SLOTS (1 << 19)
__u64 table[SLOTS] SEC(".bss.table");

volatile int first_calls SEC(".data.shared"), second_calls SEC(".data.shared");

static __noinline int first(void)
{
	static volatile int calls;

	first_calls = ++calls;
	return calls;
}

static __noinline int second(void)
{
	static volatile int calls;

	calls += 10;
	second_calls = calls;
	return calls;
}

/* Every program of the same section, each with functions that are not inlined. */
SEC("cgroup/connect4")
int count(struct bpf_sock_addr *ctx)
{
	runs++;
	sum += step;
	__seen++;
	table[SLOTS - 1] += first();
	if (__target.address)
		ctx->user_ip4 = __target.address;
	return runs <= ceiling;
}

SEC("cgroup/connect4")
int count_more(struct bpf_sock_addr *ctx)
{
	table[0] += second();
	return ctx->user_ip4 != 0;
}

SEC("cgroup/connect6")
int count_six(struct bpf_sock_addr *ctx)
{
	return ctx->user_ip6[0] != 0;
}
