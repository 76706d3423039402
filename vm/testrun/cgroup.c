// SPDX-License-Identifier: GPL-2.0
/* The run context of programs that are attached to a cgroup. */
#include <linux/bpf.h>
#include <linux/bpf-cgroup.h>
#include <linux/err.h>
#include <linux/filter.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>

#include "cgroup.h"

#ifdef HAVE_CG_RUN_RETVAL

/*
 * The value that a map has for the cgroup that its program is attached to, and whether it
 * has more than one. The key of the last entry has a next one that is none of the map's:
 * cgroup_storage_get_next_key() does not see the end. A value per processor is a pointer
 * of another kind, at the same place. On the RCU read side.
 */
static struct bpf_storage_buffer *attached_value(struct bpf_map *map, bool *more)
{
	struct bpf_cgroup_storage_key key = {}, next = {};
	void *value = NULL, *other = NULL;

	if (!map->ops->map_get_next_key(map, NULL, &key))
		value = map->ops->map_lookup_elem(map, &key);
	if (value && !map->ops->map_get_next_key(map, &key, &next))
		other = map->ops->map_lookup_elem(map, &next);
	*more = other && other != value;
	return value ? container_of(value, struct bpf_storage_buffer, data[0]) : NULL;
}

static int make_own(struct cgroup_run *run, enum bpf_cgroup_storage_type type, u32 size)
{
	if (type == BPF_CGROUP_STORAGE_SHARED) {
		run->shared = kzalloc(sizeof(*run->shared) + size, GFP_KERNEL_ACCOUNT);
		return run->shared ? 0 : -ENOMEM;
	}
	run->percpu = __alloc_percpu(round_up(size, 8), 8);
	return run->percpu ? 0 : -ENOMEM;
}

/* Which values the program is to find; they may have changed since the slice before. */
static void choose_values(struct cgroup_run *run, const struct bpf_prog *prog)
{
	enum bpf_cgroup_storage_type type;
	bool more;

	for_each_cgroup_storage_type(type)
	{
		struct bpf_cgroup_storage *storage = &run->storage[type];
		struct bpf_map *map = prog->aux->cgroup_storage[type];

		if (!map)
			continue;
		storage->buf = attached_value(map, &more);
		if (!storage->buf && type == BPF_CGROUP_STORAGE_SHARED)
			storage->buf = run->shared;
		else if (!storage->buf)
			storage->percpu_buf = run->percpu;
		run->item.cgroup_storage[type] = storage;
	}
}

static int begin_storage(struct cgroup_run *run, int type, struct bpf_map *map)
{
	bool more;

	rcu_read_lock();
	attached_value(map, &more);
	rcu_read_unlock();
	return more ? -ENOTUNIQ : make_own(run, type, map->value_size);
}

#else

/* The kernel keeps the values where a module cannot put its own. */
static int begin_storage(struct cgroup_run *run, int type, struct bpf_map *map)
{
	return -EOPNOTSUPP;
}

#endif

/*
 * What a program with cgroup-local storage needs, if it has any: the value of the cgroup
 * that it is attached to, or one of zeroes that ends with the request. Of several values
 * nobody could say which one is meant.
 */
int cgroup_begin(struct cgroup_run *run, const struct bpf_prog *prog)
{
	int i, err = 0;

	for (i = 0; i < ARRAY_SIZE(prog->aux->cgroup_storage) && !err; i++) {
		struct bpf_map *map = prog->aux->cgroup_storage[i];

		if (map)
			err = begin_storage(run, i, map);
	}
	return err;
}

void cgroup_end(struct cgroup_run *run)
{
#ifdef HAVE_CG_RUN_RETVAL
	kfree(run->shared);
	free_percpu(run->percpu);
#endif
}

/* Entered for a slice of runs, since it belongs to the task that runs them. */
void cgroup_enter(struct cgroup_run *run, struct bpf_prog *prog)
{
#ifdef HAVE_CG_RUN_RETVAL
	run->item.prog = prog;
	choose_values(run, prog);
	run->cg.prog_item = &run->item;
	run->outer = bpf_set_run_ctx(&run->cg.run_ctx);
#endif
}

void cgroup_leave(struct cgroup_run *run)
{
#ifdef HAVE_CG_RUN_RETVAL
	bpf_reset_run_ctx(run->outer);
#endif
}

/*
 * What the hook hands to the system call, 0 or a negative errno: what
 * bpf_prog_run_array_cg() makes of a program's verdict and of bpf_set_retval().
 */
int cgroup_errno(const struct cgroup_run *run, bool allowed)
{
#ifdef HAVE_CG_RUN_RETVAL
	if (allowed || IS_ERR_VALUE((long)run->cg.retval))
		return run->cg.retval;
#else
	if (allowed)
		return 0;
#endif
	return -EPERM;
}
