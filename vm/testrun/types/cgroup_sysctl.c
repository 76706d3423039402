// SPDX-License-Identifier: GPL-2.0
/* cgroup_sysctl: a file below /proc/sys that is read or written. */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/filter.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/sysctl.h>

#include "../bpfunit_testrun.h"
#include "../cgroup.h"
#include "../compat.h"
#include "../loop.h"
#include "../request.h"
#include "types.h"

/*
 * The file and the directories above it, made up, as bpf_sysctl_get_name() looks at them.
 * The root is a directory with an empty name.
 */
struct entry {
	struct ctl_dir dirs[BPFUNIT_SYSCTL_DEPTH_MAX];
	struct ctl_table dir_tables[BPFUNIT_SYSCTL_DEPTH_MAX];
	struct ctl_table_header header;
	struct ctl_table table;
	char name[BPFUNIT_SYSCTL_NAME_MAX + 1];
};

struct run {
	struct bpf_prog *prog;
	struct bpfunit_sysctl in;
	struct payload payload;
	struct entry *entry;
	struct bpf_sysctl_kern kern;
	const char *new_value; /* as crafted */
	loff_t position;
	struct cgroup_run cgroup;
	struct loop loop;
	u32 retval;
	struct bpfunit_sysctl_result *result; /* the new value that the program works on follows */
};

/* Take the name apart; every directory hangs below the one before it. */
static int make_entry(struct entry *entry, const char *name, u32 size)
{
	struct ctl_dir *dir = NULL;
	char *rest, *part;
	int depth = 0;

	memcpy(entry->name, name, size);
	if (strlen(entry->name) != size)
		return -EINVAL;
	rest = entry->name;
	part = ""; /* the root's */
	do {
		if (depth == ARRAY_SIZE(entry->dirs))
			return -E2BIG;
		entry->dir_tables[depth].procname = part;
		entry->dirs[depth].header.ctl_table = &entry->dir_tables[depth];
		entry->dirs[depth].header.parent = dir;
		dir = &entry->dirs[depth++];
		part = strsep(&rest, "/");
		if (!*part || !strcmp(part, ".") || !strcmp(part, ".."))
			return -EINVAL;
	} while (rest);
	if (depth == 1) /* all files are in directories */
		return -EINVAL;
	entry->table.procname = part;
	entry->header.ctl_table = &entry->table;
	entry->header.parent = dir;
	return 0;
}

static __always_inline void rewind(void *data)
{
	struct run *run = data;
	struct bpf_sysctl_kern *kern = &run->kern;

	kern->new_len = run->in.new_size;
	kern->new_updated = 0;
	if (kern->new_val)
		memcpy(kern->new_val, run->new_value, kern->new_len);
	run->position = run->in.position;
	cgroup_rewind(&run->cgroup, 0);
}

static void run_slice(struct loop *loop, void *data)
{
	struct run *run = data;

	cgroup_enter(&run->cgroup, run->prog);
	run->retval = loop_slice(loop, run->prog, &run->kern, rewind, run);
	cgroup_leave(&run->cgroup);
}

static const struct loop_ops loop_ops = {.slice = run_slice, .pause = loop_rest};

static int check_request(const struct run *run)
{
	const struct bpfunit_sysctl *in = &run->in;
	u64 size = (u64)in->name_size + in->current_size + in->new_size;
	bool write = in->head.flags & BPFUNIT_SYSCTL_WRITE;

	if (in->head.flags & ~BPFUNIT_SYSCTL_WRITE || in->head.sock || in->reserved)
		return -EINVAL;
	if (in->name_size > BPFUNIT_SYSCTL_NAME_MAX ||
	    in->current_size > BPFUNIT_SYSCTL_VALUE_MAX || in->new_size > BPFUNIT_SYSCTL_VALUE_MAX)
		return -E2BIG;
	if (size != run->payload.size || in->position < 0 || (in->new_size && !write))
		return -EINVAL;
	return 0;
}

/* What __cgroup_bpf_run_filter_sysctl() makes of the call. */
static void craft(struct run *run)
{
	const struct bpfunit_sysctl *in = &run->in;
	char *value = run->payload.bytes + in->name_size;

	run->kern.head = &run->entry->header;
	run->kern.table = &run->entry->table;
	run->kern.cur_val = value;
	run->kern.cur_len = in->current_size;
	run->kern.write = in->head.flags & BPFUNIT_SYSCTL_WRITE;
	run->kern.ppos = &run->position;
	run->new_value = value + in->current_size;
	if (in->new_size) /* a write of nothing has none */
		run->kern.new_val = run->result + 1;
}

static int run_with_buffers(struct run *run, const struct test_request *request)
{
	struct bpfunit_sysctl_result *result = run->result;
	int err;

	err = make_entry(run->entry, run->payload.bytes, run->in.name_size);
	if (err)
		return err;
	craft(run);
	err = loop_run(&run->loop, &loop_ops, run);
	if (err)
		return err;
	result->err = cgroup_errno(&run->cgroup, run->retval);
	result->updated = run->kern.new_updated;
	result->size = run->kern.new_len;
	result->position = run->position;
	return request_answer(request, &(const struct answer){
					       .retval = run->retval,
					       .duration = loop_duration(&run->loop),
					       .data = {result, sizeof(*result) + result->size},
				       });
}

static int run_request(struct run *run, const struct test_request *request)
{
	int err = check_request(run);

	if (err)
		return err;
	run->entry = kzalloc(sizeof(*run->entry), GFP_KERNEL_ACCOUNT);
	/* a program may put up to a page in place of the new value */
	run->result = kzalloc(sizeof(*run->result) + PAGE_SIZE, GFP_KERNEL_ACCOUNT);
	err = run->entry && run->result ? run_with_buffers(run, request) : -ENOMEM;
	kfree(run->result);
	kfree(run->entry);
	return err;
}

int cgroup_sysctl_test_run(struct bpf_prog *prog, const union bpf_attr *kattr,
			   union bpf_attr __user *uattr)
{
	const struct test_request request = {kattr, uattr};
	struct run run = {.prog = prog, .loop.repeat = request_repeat(&request)};
	int err;

	err = request_read(&request, &run.in, sizeof(run.in), &run.payload,
			   BPFUNIT_SYSCTL_NAME_MAX + 2 * BPFUNIT_SYSCTL_VALUE_MAX);
	if (err)
		return err;
	err = cgroup_begin(&run.cgroup, prog) ?: run_request(&run, &request);
	cgroup_end(&run.cgroup);
	kvfree(run.payload.bytes);
	return err;
}
