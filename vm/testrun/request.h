/* SPDX-License-Identifier: GPL-2.0 */
/* What comes in by union bpf_attr, and what goes out. */
#ifndef BPFUNIT_TESTRUN_REQUEST_H
#define BPFUNIT_TESTRUN_REQUEST_H

#include <linux/bpf.h>
#include <linux/types.h>

struct test_request {
	const union bpf_attr *kattr;
	union bpf_attr __user *uattr;
};

/* One of the two output buffers. */
struct answer_part {
	const void *from;
	u32 size;
};

struct answer {
	u32 retval; /* of the program, last run */
	u32 duration; /* nanoseconds a run */
	struct answer_part ctx;
	struct answer_part data;
};

/* The runs that are asked for, at least 1. */
static inline u32 request_repeat(const struct test_request *request)
{
	return request->kattr->test.repeat ?: 1;
}

/* What follows the header in data_in; freed by kvfree(). */
struct payload {
	void *bytes;
	u32 size;
};

int request_check(const struct test_request *request);
int request_refuse_data(const struct test_request *request);
int request_read_ctx(const struct test_request *request, void *ctx, size_t size);
int request_read_data(const struct test_request *request, void *header, u32 size,
		      struct payload *payload, u32 max);
int request_read(const struct test_request *request, void *header, u32 size,
		 struct payload *payload, u32 max);
u32 request_data_room(const struct test_request *request);
int request_answer(const struct test_request *request, const struct answer *answer);

#endif
