// SPDX-License-Identifier: GPL-2.0
/*
 * Files below /proc/sys: nobody writes below net/ but for tcp_mem, whose value may only grow;
 * what is written to kernel/domainname becomes "example.org".
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, char[32]);
	__type(value, __u32);
} asked SEC(".maps"); /* how often, by name */

static __always_inline int equal(const char *one, const char *other, int size)
{
	for (int i = 0; i < size; i++)
		if (one[i] != other[i])
			return 0;
	return 1;
}

static __always_inline __u64 number(long (*get)(struct bpf_sysctl *, char *, unsigned long),
				    struct bpf_sysctl *ctx)
{
	char value[64] = {};
	unsigned long parsed = 0;

	if (get(ctx, value, sizeof(value)) < 0 || bpf_strtoul(value, sizeof(value), 0, &parsed) < 0)
		return 0;
	return parsed;
}

SEC("cgroup/sysctl")
int guard(struct bpf_sysctl *ctx)
{
	static const char fixed[] = "example.org\n";
	char name[32] = {};
	__u32 one = 1, *count;

	if (bpf_sysctl_get_name(ctx, name, sizeof(name), 0) < 0)
		return 0;
	count = bpf_map_lookup_elem(&asked, name);
	if (count)
		(*count)++;
	else
		bpf_map_update_elem(&asked, name, &one, BPF_ANY);
	if (!ctx->write)
		return 1;
	if (equal(name, "kernel/domainname", 18)) {
		bpf_sysctl_set_new_value(ctx, fixed, sizeof(fixed) - 1);
		return 1;
	}
	if (equal(name, "net/ipv4/tcp_mem", 17))
		return number(bpf_sysctl_get_new_value, ctx) >=
		       number(bpf_sysctl_get_current_value, ctx);
	return !equal(name, "net/", 4);
}
