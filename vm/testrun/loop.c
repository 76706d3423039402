// SPDX-License-Identifier: GPL-2.0
/*
 * Slices, signals and timing of a run that repeats. Neither RCU nor those who wait for
 * what the run holds notice how long the whole takes.
 */
#include <linux/filter.h>
#include <linux/math64.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>

#include "loop.h"

/* The pause of a type whose runs hold nothing that others could wait for. */
int loop_rest(void *data)
{
	cond_resched();
	return 0;
}

int loop_run(struct loop *loop, const struct loop_ops *ops, void *data)
{
	unsigned long tick = jiffies;
	int err = 0;

	for (;;) {
		if (ops->prepare)
			err = ops->prepare(data);
		if (err)
			return err;
		migrate_disable();
		rcu_read_lock();
		ops->slice(loop, data);
		rcu_read_unlock();
		migrate_enable();
		if (ops->finish)
			ops->finish(loop, data);

		if (loop_is_done(loop))
			return 0;
		if (signal_pending(current))
			return -EINTR;
		if (jiffies == tick && !need_resched())
			continue;
		err = ops->pause(data);
		tick = jiffies;
	}
}

/* Nanoseconds of one run, the mean. */
u32 loop_duration(const struct loop *loop)
{
	return min_t(u64, div_u64(loop->spent, loop->done), U32_MAX);
}
