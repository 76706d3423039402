// SPDX-License-Identifier: GPL-2.0
/* Attributes in and out, the same for every type of program. */
#include <linux/bpf.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "bpfunit_testrun.h"
#include "compat.h"
#include "request.h"

/* What no type takes. */
int request_check(const struct test_request *request)
{
	const union bpf_attr *kattr = request->kattr;

	if (kattr->test.flags || kattr->test.cpu || test_batch_size(kattr))
		return -EINVAL;
	if (!kattr->test.data_out && kattr->test.data_size_out)
		return -EINVAL;
	return 0;
}

/* For types whose whole input is the context. */
int request_refuse_data(const struct test_request *request)
{
	return request->kattr->test.data_in || request->kattr->test.data_size_in ? -EINVAL : 0;
}

/* Shorter is extended with zeroes; longer has to be zero past the end. */
int request_read_ctx(const struct test_request *request, void *ctx, size_t size)
{
	void __user *ctx_in = u64_to_user_ptr(request->kattr->test.ctx_in);
	u32 given = request->kattr->test.ctx_size_in;

	if (!ctx_in)
		return -EINVAL;
	if (given > PAGE_SIZE)
		return -E2BIG;
	return copy_struct_from_user(ctx, size, ctx_in, given);
}

static int refuse_ctx(const struct test_request *request)
{
	const union bpf_attr *kattr = request->kattr;

	return kattr->test.ctx_in || kattr->test.ctx_size_in || kattr->test.ctx_out ||
			       kattr->test.ctx_size_out
		       ? -EINVAL
		       : 0;
}

/*
 * The type's header, which begins with struct bpfunit_head, and a payload of up to max
 * bytes behind it.
 */
int request_read_data(const struct test_request *request, void *header, u32 size,
		      struct payload *payload, u32 max)
{
	const char __user *data_in = u64_to_user_ptr(request->kattr->test.data_in);
	u32 given = request->kattr->test.data_size_in;
	const struct bpfunit_head *head = header;

	if (!data_in || given < size)
		return -EINVAL;
	if (given - size > max)
		return -E2BIG;
	if (copy_from_user(header, data_in, size))
		return -EFAULT;
	if (head->version != BPFUNIT_TESTRUN_VERSION || head->reserved)
		return -EINVAL;

	payload->size = given - size;
	payload->bytes = kvzalloc(max_t(u32, payload->size, 64), GFP_KERNEL_ACCOUNT);
	if (!payload->bytes)
		return -ENOMEM;
	if (copy_from_user(payload->bytes, data_in + size, payload->size)) {
		kvfree(payload->bytes);
		return -EFAULT;
	}
	return 0;
}

/* For types whose whole input is data_in. */
int request_read(const struct test_request *request, void *header, u32 size,
		 struct payload *payload, u32 max)
{
	return request_check(request)
		       ?: refuse_ctx(request)
				  ?: request_read_data(request, header, size, payload, max);
}

/* How much of an answer can be written to data_out. */
u32 request_data_room(const struct test_request *request)
{
	return request->kattr->test.data_out ? request->kattr->test.data_size_out : 0;
}

/*
 * One of the two output buffers, as the kernel's own test runs fill theirs: what fits
 * is copied, the whole size is reported, and ENOSPC says that it did not fit.
 */
static int write_part(u64 to, u32 room, const struct answer_part *part, u32 __user *size_out)
{
	if (!to)
		return 0;
	if (copy_to_user(u64_to_user_ptr(to), part->from, min(room, part->size)) ||
	    copy_to_user(size_out, &part->size, sizeof(part->size)))
		return -EFAULT;
	return room < part->size ? -ENOSPC : 0;
}

int request_answer(const struct test_request *request, const struct answer *answer)
{
	const union bpf_attr *kattr = request->kattr;
	union bpf_attr __user *uattr = request->uattr;
	int ctx_err, data_err;

	if (copy_to_user(&uattr->test.retval, &answer->retval, sizeof(answer->retval)) ||
	    copy_to_user(&uattr->test.duration, &answer->duration, sizeof(answer->duration)))
		return -EFAULT;
	data_err = write_part(kattr->test.data_out, kattr->test.data_size_out, &answer->data,
			      &uattr->test.data_size_out);
	ctx_err = write_part(kattr->test.ctx_out, kattr->test.ctx_size_out, &answer->ctx,
			     &uattr->test.ctx_size_out);
	return ctx_err ?: data_err;
}
