/* SPDX-License-Identifier: GPL-2.0 */
/* Repetition: slices of a tick at most, signals, time. */
#ifndef BPFUNIT_TESTRUN_LOOP_H
#define BPFUNIT_TESTRUN_LOOP_H

#include <linux/filter.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/sched/signal.h>
#include <linux/types.h>

#include "compat.h"

struct loop {
	u32 repeat; /* runs that are asked for */
	u32 done;
	u64 spent; /* nanoseconds inside of runs */
};

/* What a type does around its runs; each gets the type's own data. */
struct loop_ops {
	/* Before a slice, where it may sleep: what its runs work on. Optional. */
	int (*prepare)(void *data);
	/* One slice, by loop_slice() or loop_once(); without migration, on the RCU read side. */
	void (*slice)(struct loop *loop, void *data);
	/* After a slice that was prepared for, where it may sleep. */
	void (*finish)(struct loop *loop, void *data);
	/* From time to time between slices, where it may sleep; an error ends the whole. */
	int (*pause)(void *data);
};

int loop_rest(void *data);
int loop_run(struct loop *loop, const struct loop_ops *ops, void *data);
u32 loop_duration(const struct loop *loop);

/*
 * The runs of one slice: all that are left, unless the processor is wanted, a signal
 * waits, or a tick has passed. Returns what the program returned the last time. It is
 * inlined, as rewind() is then, so that a run pays for no call but the program's.
 */
static __always_inline u32 loop_slice(struct loop *loop, const struct bpf_prog *prog,
				      const void *ctx, void (*rewind)(void *data), void *data)
{
	unsigned long tick = jiffies;
	u64 start = ktime_get_ns();
	u32 done = loop->done;
	u32 retval;

	do {
		rewind(data);
		retval = bpf_prog_run(prog, ctx);
		done++;
	} while (done < loop->repeat && !need_resched() && !signal_pending(current) &&
		 jiffies == tick);
	loop->spent += ktime_get_ns() - start;
	loop->done = done;
	return retval;
}

/* For a type whose input has to be made anew for each run: a slice of one. */
static __always_inline u32 loop_once(struct loop *loop, const struct bpf_prog *prog,
				     const void *ctx)
{
	u64 start = ktime_get_ns();
	u32 retval = bpf_prog_run(prog, ctx);

	loop->spent += ktime_get_ns() - start;
	loop->done++;
	return retval;
}

static inline bool loop_is_done(const struct loop *loop)
{
	return loop->done == loop->repeat;
}

#endif
