// SPDX-License-Identifier: GPL-2.0
/* Programs on a function, its return and two events, which count what they see. */
#include <linux/bpf.h>
#include <linux/ptrace.h>

/* The registers of other machines, which the headers of this one have not: asm/ptrace.h of each. */
#if defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	__u64 regs[31], sp, pc, pstate;
};
#elif defined(__TARGET_ARCH_s390)
typedef struct {
	unsigned long args[1], psw[2], gprs[16];
} user_pt_regs;
#else
#define __TARGET_ARCH_x86
#endif

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u64);
	__type(value, __u64);
	__uint(max_entries, 64);
} seen SEC(".maps"); /* by what was seen, how often */

static void count(__u64 key)
{
	__u64 one = 1, *times = bpf_map_lookup_elem(&seen, &key);

	if (times)
		(*times)++;
	else
		bpf_map_update_elem(&seen, &key, &one, BPF_ANY);
}

SEC("kprobe/do_sys_openat2")
int opens(struct pt_regs *ctx)
{
	count(PT_REGS_PARM2(ctx));
	return (int)PT_REGS_PARM1(ctx) == -100; /* AT_FDCWD */
}

SEC("kretprobe/do_sys_openat2")
int opened(struct pt_regs *ctx)
{
	long fd = PT_REGS_RC(ctx);

	count(fd);
	return fd < 0;
}

/* The record of syscalls/sys_enter_openat, and that of sched/sched_process_exec. */
struct sys_enter_openat {
	__u64 common;
	long nr, dfd, filename, flags, mode;
};

SEC("tracepoint/syscalls/sys_enter_openat")
int enters(struct sys_enter_openat *ctx)
{
	count(ctx->flags);
	return ctx->dfd == -100;
}

struct process_exec {
	__u64 common;
	__u32 filename;
	int pid, old_pid;
};

SEC("tracepoint/sched/sched_process_exec")
int execs(struct process_exec *ctx)
{
	char name[8] = {};

	bpf_probe_read_kernel_str(name, sizeof(name), (void *)ctx + (ctx->filename & 0xffff));
	count(*(__u64 *)name);
	return ctx->pid == 7;
}
