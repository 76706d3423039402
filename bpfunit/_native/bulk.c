/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The loop of Program.run_many(): BPF_PROG_TEST_RUN once per context, with what belongs to each run
 * (its socket, its socket's storage, its tail calls) gathered before the next one starts.
 *
 * A shared library without dependencies, compiled on first use; bpfunit/runs/bulk.py has the same
 * loop in Python for machines without a C compiler. The structures are mirrored in
 * bpfunit/_native/__init__.py.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_CTX 512

struct storage {
	int32_t map_fd;
	uint32_t value_size;
	uint8_t *values; /* count * value_size */
	uint8_t *present; /* count */
};

struct job {
	int32_t prog_fd;
	uint32_t repeat;
	uint64_t count;
	uint32_t ctx_size; /* at most MAX_CTX; what the kernel has beyond it is cut */
	uint32_t answer_size; /* 4 for types that answer with struct bpfunit_result, else 0 */
	int32_t fd_offset; /* of a u64 for the socket's descriptor in the context, -1 for none */
	int32_t made_of_offset; /* of three u32: family, type, protocol; -1 for none */
	const uint8_t *in;
	uint8_t *out;
	uint32_t *retval;
	uint32_t *duration;
	int32_t *verdict; /* what the hook hands to its system call: 0 or a negative errno */
	int32_t *error; /* errno of the run itself, 0 when it ran */
	int32_t sock_fd; /* the socket of all runs; 0 for one made by the kernel; -1 for one each */
	uint32_t storages;
	struct storage *storage;
	/* tail calls: a u64 count and records behind it, mapped from the recorder's map */
	volatile uint64_t *recorder;
	uint32_t record_size;
	uint32_t recorder_capacity;
	uint8_t *calls;
	uint64_t calls_capacity; /* records */
	uint64_t calls_used;
	uint32_t *call_count; /* of each run */
};

static long bpf(int cmd, union bpf_attr *attr, size_t size)
{
	return syscall(SYS_bpf, cmd, attr, size);
}

static void read_storage(struct storage *s, uint64_t i, int32_t fd)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = s->map_fd;
	attr.key = (uint64_t)(uintptr_t)&fd;
	attr.value = (uint64_t)(uintptr_t)(s->values + i * s->value_size);
	s->present[i] = bpf(BPF_MAP_LOOKUP_ELEM, &attr, sizeof(attr)) == 0;
}

static void take_calls(struct job *job, uint64_t i)
{
	uint64_t n = *job->recorder;

	if (!n)
		return;
	if (n > job->recorder_capacity)
		n = job->recorder_capacity;
	memcpy(job->calls + job->calls_used * job->record_size, (const void *)(job->recorder + 1),
	       n * job->record_size);
	job->calls_used += n;
	job->call_count[i] = n;
	*job->recorder = 0;
}

/*
 * Run from context "from" on; return the number of the first context that was not run: "count" at
 * the end, less when a signal came or the buffer of tail calls is full. Call again to go on.
 */
uint64_t bpfunit_run_many(struct job *job, uint64_t from)
{
	union bpf_attr attr;
	uint64_t i;
	uint32_t s;

	memset(&attr, 0, sizeof(attr));
	for (i = from; i < job->count; i++) {
		uint8_t in[MAX_CTX] __attribute__((aligned(8)));
		uint8_t out[MAX_CTX];
		int32_t verdict = 0;
		int fd = job->sock_fd;

		if (job->recorder && job->calls_capacity - job->calls_used < job->recorder_capacity)
			break;
		memcpy(in, job->in + i * job->ctx_size, job->ctx_size);
		if (fd < 0) {
			uint32_t made_of[3];

			memcpy(made_of, in + job->made_of_offset, sizeof(made_of));
			fd = socket(made_of[0], made_of[1], made_of[2]);
			if (fd < 0)
				fd = 0; /* the kernel may make one, or say why not */
		}
		if (fd && job->fd_offset >= 0)
			memcpy(in + job->fd_offset, &(uint64_t){fd}, sizeof(uint64_t));

		attr.test.prog_fd = job->prog_fd;
		attr.test.repeat = job->repeat;
		attr.test.ctx_in = (uint64_t)(uintptr_t)in;
		attr.test.ctx_size_in = job->ctx_size;
		attr.test.ctx_out = (uint64_t)(uintptr_t)out;
		attr.test.ctx_size_out = sizeof(out);
		attr.test.data_out = job->answer_size ? (uint64_t)(uintptr_t)&verdict : 0;
		attr.test.data_size_out = job->answer_size;
		job->error[i] = bpf(BPF_PROG_TEST_RUN, &attr, sizeof(attr)) < 0 ? errno : 0;
		if (!job->error[i]) {
			job->retval[i] = attr.test.retval;
			job->duration[i] = attr.test.duration;
			job->verdict[i] = verdict;
			memcpy(job->out + i * job->ctx_size, out, job->ctx_size);
			if (fd)
				for (s = 0; s < job->storages; s++)
					read_storage(&job->storage[s], i, fd);
		}
		if (job->recorder)
			take_calls(job, i);
		if (fd && job->sock_fd < 0)
			close(fd);
		if (job->error[i] == EINTR)
			break;
	}
	return i;
}
