// SPDX-License-Identifier: GPL-2.0
/* A cgroup_device program: /dev/null and /dev/zero may be used and made, and nothing else. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 16);
} asked SEC(".maps"); /* by major number, how often */

SEC("cgroup/dev")
int only_memory(struct bpf_cgroup_dev_ctx *ctx)
{
	__u64 one = 1, *count;
	__u32 major = ctx->major;

	count = bpf_map_lookup_elem(&asked, &major);
	if (count)
		(*count)++;
	else
		bpf_map_update_elem(&asked, &major, &one, BPF_ANY);
	if ((ctx->access_type & 0xffff) != BPF_DEVCG_DEV_CHAR)
		return 0;
	return major == 1 && (ctx->minor == 3 || ctx->minor == 5);
}
