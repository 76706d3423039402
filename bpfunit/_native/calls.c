/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What every test does many times, as one call of Python each: a crafted run with all that is
 * observed of it, an entry of a map written, a value of Python put into the bytes of a C type.
 *
 * A Python extension of the stable ABI, compiled on first use. Without a compiler the same is done
 * in Python, some ten times slower: bpfunit/runs/program.py, bpfunit/objects/maps.py and
 * bpfunit/values/encoders.py, which also do whatever is refused here.
 * The structures are mirrored in bpfunit/_native/__init__.py.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "python_abi.h"

#define ROOM_ON_STACK 4096

#define NO_SOCKET (-1) /* the run has none, or the kernel makes it */
#define OWN_SOCKET (-2) /* one made for this run, of the context's family, type and protocol */

struct stored {
	int32_t map_fd;
	uint32_t value_size;
};

struct ring {
	uint64_t *consumer;
	uint64_t *producer;
	const uint8_t *data;
	uint64_t mask;
	uint64_t until; /* how far the last look at it came */
};

struct probes {
	uint8_t *memory;
	uint64_t *earlier; /* one for each probe: what was counted before the last run */
	uint32_t size; /* of the memory, in bytes */
	uint32_t width; /* of one probe in the memory: 1 or 8 bytes */
	uint32_t was_hit; /* by the last look at it */
	uint32_t number; /* by which an answer names the program */
};

struct probed {
	uint64_t count;
	struct probes *programs;
};

struct run {
	int32_t prog_fd;
	uint32_t flags;
	int32_t fd_offset; /* of a u64 for the socket's descriptor in the context, -1 for none */
	int32_t made_of_offset; /* of three u32: family, type, protocol */
	uint32_t has_ctx_out; /* else the context comes back where it came in */
	uint32_t asks_for_engine; /* whether $BPFUNIT_ENGINE may say that it runs another way */
	uint32_t storages, rings, recorders;
	struct stored *storage;
	struct ring *ring;
	uint64_t **recorder; /* each a count with records behind it; the first is this program's */
	uint32_t record_size;
	uint32_t recorder_capacity;
	struct probed *probed; /* NULL where nobody observes the branches */
};

/* what a run answers: these words, then the parts that they give the sizes of */
struct answer {
	uint32_t retval;
	uint32_t duration;
	uint32_t ctx;
	uint32_t data;
	uint32_t
		storages; /* for each map a u32 that says whether there is a value, and the value */
	uint32_t calls; /* records that were written, more than there was room for */
	uint32_t events; /* of each a u32 for the ring, one for the size, and the record */
	uint32_t probes; /* of each program that ran a u32 for its number, one for the size, memory
			  */
	uint32_t has_socket;
};

static PyObject *none(void)
{
	Py_IncRef(Py_None);
	return Py_None;
}

static long bpf(int cmd, union bpf_attr *attr)
{
	return syscall(SYS_bpf, cmd, attr, sizeof(*attr));
}

/* ---- ring buffers: the layout of kernel/bpf/ringbuf.c ---- */

/* Return the bytes that the records there are take in an answer, and note where they end. */
static size_t look(struct ring *ring)
{
	uint64_t at = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);
	uint64_t end = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
	size_t used = 0;

	while (at < end) {
		const uint8_t *record = ring->data + (at & ring->mask);
		uint32_t length = __atomic_load_n((const uint32_t *)record, __ATOMIC_ACQUIRE);
		uint32_t size = length & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);

		if (length & BPF_RINGBUF_BUSY_BIT)
			break;
		if (!(length & BPF_RINGBUF_DISCARD_BIT))
			used += 8 + (size_t)size;
		at += (size + BPF_RINGBUF_HDR_SZ + 7) & ~7ULL;
	}
	ring->until = at;
	return used;
}

/* Take the records that the last look found, into "out" unless that is NULL; return its end. */
static uint8_t *drain(struct ring *ring, uint32_t number, uint8_t *out)
{
	uint64_t at = *ring->consumer;

	while (out && at < ring->until) {
		const uint8_t *record = ring->data + (at & ring->mask);
		uint32_t length, size;

		memcpy(&length, record, 4);
		size = length & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
		if (!(length & BPF_RINGBUF_DISCARD_BIT)) {
			memcpy(out, &number, 4);
			memcpy(out + 4, &size, 4);
			memcpy(out + 8, record + BPF_RINGBUF_HDR_SZ, size);
			out += 8 + (size_t)size;
		}
		at += (size + BPF_RINGBUF_HDR_SZ + 7) & ~7ULL;
	}
	__atomic_store_n(ring->consumer, ring->until, __ATOMIC_RELEASE);
	return out;
}

/* ---- coverage's probes ---- */

static int is_zero(const uint8_t *memory, size_t size)
{
	uint64_t word;
	size_t n;

	for (n = 0; n + sizeof(word) <= size; n += sizeof(word)) {
		memcpy(&word, memory + n, sizeof(word));
		if (word)
			return 0;
	}
	for (; n < size; n++)
		if (memory[n])
			return 0;
	return 1;
}

static void set_aside(struct probed *probed)
{
	uint64_t n;

	for (n = 0; n < probed->count; n++) {
		struct probes *one = &probed->programs[n];
		uint32_t i;

		if (is_zero(one->memory, one->size))
			continue;
		for (i = 0; i < one->size / one->width; i++) {
			if (one->width == 1)
				one->earlier[i] += one->memory[i];
			else
				one->earlier[i] += ((uint64_t *)one->memory)[i];
		}
		memset(one->memory, 0, one->size);
	}
}

/* Return the bytes that the memory of the programs that ran takes in an answer, and note them. */
static size_t look_at_probes(struct probed *probed)
{
	size_t used = 0;
	uint64_t n;

	for (n = 0; n < probed->count; n++) {
		struct probes *one = &probed->programs[n];

		one->was_hit = !is_zero(one->memory, one->size);
		if (one->was_hit)
			used += 8 + (size_t)one->size;
	}
	return used;
}

static void copy_probes(struct probed *probed, uint8_t *out)
{
	uint32_t n;

	for (n = 0; n < probed->count; n++) {
		struct probes *one = &probed->programs[n];

		if (!one->was_hit)
			continue;
		memcpy(out, &one->number, 4);
		memcpy(out + 4, &one->size, 4);
		memcpy(out + 8, one->memory, one->size);
		out += 8 + (size_t)one->size;
	}
}

/* ---- one run ---- */

static void forget(struct run *run)
{
	uint32_t n;

	for (n = 0; n < run->rings; n++) {
		look(&run->ring[n]);
		drain(&run->ring[n], n, NULL);
	}
	for (n = 0; n < run->recorders; n++)
		*run->recorder[n] = 0;
	if (run->probed)
		set_aside(run->probed);
}

static size_t storage_size(struct run *run)
{
	size_t size = 0;
	uint32_t n;

	for (n = 0; n < run->storages; n++)
		size += 4 + (size_t)run->storage[n].value_size;
	return size;
}

static void read_storages(struct run *run, int fd, uint8_t *out)
{
	union bpf_attr attr;
	uint32_t n, there;

	for (n = 0; n < run->storages; n++) {
		memset(&attr, 0, sizeof(attr));
		attr.map_fd = run->storage[n].map_fd;
		attr.key = (uintptr_t)&fd;
		attr.value = (uintptr_t)(out + 4);
		there = bpf(BPF_MAP_LOOKUP_ELEM, &attr) == 0;
		if (!there) {
			if (errno != ENOENT)
				there = 2 + errno;
			memset(out + 4, 0, run->storage[n].value_size);
		}
		memcpy(out, &there, 4);
		out += 4 + run->storage[n].value_size;
	}
}

/* What one run needs and gives, while it is under way. */
struct passage {
	struct run *run;
	const uint8_t *ctx, *data;
	uint32_t ctx_size, data_size, ctx_room, data_room, repeat;
	int sock; /* a descriptor, or one of the numbers above */
	uint8_t *in, *ctx_out, *data_out, *stored;
	union bpf_attr attr;
	int error, has_socket;
};

static void go(struct passage *p)
{
	struct run *run = p->run;
	union bpf_attr *attr = &p->attr;
	int fd = p->sock;

	if (p->ctx)
		memcpy(p->in, p->ctx, p->ctx_size);
	if (fd == OWN_SOCKET) {
		uint32_t made_of[3];

		memcpy(made_of, p->in + run->made_of_offset, sizeof(made_of));
		fd = socket(made_of[0], made_of[1] | SOCK_CLOEXEC, made_of[2]);
		if (fd < 0)
			fd = NO_SOCKET; /* the kernel may make one, or say why not */
	}
	if (fd >= 0 && run->fd_offset >= 0 && run->fd_offset + sizeof(uint64_t) <= p->ctx_size)
		memcpy(p->in + run->fd_offset, &(uint64_t){fd}, sizeof(uint64_t));
	p->has_socket = fd >= 0;

	memset(attr, 0, sizeof(*attr));
	attr->test.prog_fd = run->prog_fd;
	attr->test.flags = run->flags;
	attr->test.repeat = p->repeat;
	if (p->ctx) {
		attr->test.ctx_in = (uintptr_t)p->in;
		attr->test.ctx_size_in = p->ctx_size;
		if (run->has_ctx_out) {
			attr->test.ctx_out = (uintptr_t)p->ctx_out;
			attr->test.ctx_size_out = p->ctx_room;
		}
	}
	if (p->data) {
		attr->test.data_in = (uintptr_t)p->data;
		attr->test.data_size_in = p->data_size;
	}
	if (p->data_room) {
		attr->test.data_out = (uintptr_t)p->data_out;
		attr->test.data_size_out = p->data_room;
	}
	p->error = bpf(BPF_PROG_TEST_RUN, attr) < 0 ? errno : 0;
	if (!p->error && p->has_socket)
		read_storages(run, fd, p->stored);
	if (p->has_socket && p->sock == OWN_SOCKET)
		close(fd);
}

static PyObject *answer_of(struct passage *p)
{
	struct run *run = p->run;
	struct answer answer = {
		.retval = p->attr.test.retval,
		.duration = p->attr.test.duration,
		.storages = p->has_socket ? storage_size(run) : 0,
		.has_socket = p->has_socket,
	};
	uint64_t calls = 0, kept = 0;
	size_t events = 0, probes = 0, total;
	const uint8_t *ctx = p->in;
	PyObject *made;
	uint8_t *out;
	uint32_t n;

	if (p->ctx) {
		answer.ctx = p->ctx_size;
		if (run->has_ctx_out) {
			ctx = p->ctx_out;
			answer.ctx = p->attr.test.ctx_size_out < p->ctx_room
					     ? p->attr.test.ctx_size_out
					     : p->ctx_room;
		}
	}
	if (p->data_room)
		answer.data = p->attr.test.data_size_out < p->data_room ? p->attr.test.data_size_out
									: p->data_room;
	if (run->recorders && run->record_size) {
		calls = *run->recorder[0];
		kept = calls < run->recorder_capacity ? calls : run->recorder_capacity;
	}
	for (n = 0; n < run->rings; n++)
		events += look(&run->ring[n]);
	if (run->probed)
		probes = look_at_probes(run->probed);
	answer.calls = calls > UINT32_MAX ? UINT32_MAX : calls;
	answer.events = events;
	answer.probes = probes;

	total = sizeof(answer) + answer.ctx + answer.data + answer.storages +
		kept * run->record_size + events + probes;
	made = PyBytes_FromStringAndSize(NULL, total);
	if (!made)
		return NULL;
	out = (uint8_t *)PyBytes_AsString(made);
	memcpy(out, &answer, sizeof(answer));
	out += sizeof(answer);
	if (answer.ctx)
		memcpy(out, ctx, answer.ctx);
	out += answer.ctx;
	if (answer.data)
		memcpy(out, p->data_out, answer.data);
	out += answer.data;
	if (answer.storages)
		memcpy(out, p->stored, answer.storages);
	out += answer.storages;
	if (kept) {
		memcpy(out, run->recorder[0] + 1, kept * run->record_size);
		*run->recorder[0] = 0;
		out += kept * run->record_size;
	}
	for (n = 0; n < run->rings; n++)
		out = drain(&run->ring[n], n, out);
	if (probes)
		copy_probes(run->probed, out);
	return made;
}

static const char run_doc[] =
	"run(address, ctx, data, ctx_room, data_room, repeat, sock)\n--\n\n"
	"Run a program once; return the answer's bytes, or (errno, data_size_out).";

static int view_of(PyObject *object, const uint8_t **start, uint32_t *size)
{
	char *bytes;
	Py_ssize_t length;

	*start = NULL;
	*size = 0;
	if (object == Py_None)
		return 0;
	if (PyBytes_AsStringAndSize(object, &bytes, &length))
		return -1;
	*start = (const uint8_t *)bytes;
	*size = length;
	return 0;
}

static PyObject *run_once(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	uint8_t on_stack[ROOM_ON_STACK], *room = on_stack;
	struct passage p = {0};
	PyObject *result;
	size_t needed;
	void *thread;

	(void)module;
	if (count != 7) {
		PyErr_SetString(PyExc_TypeError, "run takes 7 arguments");
		return NULL;
	}
	p.run = PyLong_AsVoidPtr(args[0]);
	if (!p.run || view_of(args[1], &p.ctx, &p.ctx_size) ||
	    view_of(args[2], &p.data, &p.data_size))
		return NULL;
	p.ctx_room = PyLong_AsUnsignedLong(args[3]);
	p.data_room = PyLong_AsUnsignedLong(args[4]);
	p.repeat = PyLong_AsUnsignedLong(args[5]);
	p.sock = PyLong_AsLong(args[6]);
	if (PyErr_Occurred())
		return NULL;

	if (p.run->asks_for_engine) {
		/* os.environ keeps this current, and takes longer to ask than a run does */
		const char *engine = getenv("BPFUNIT_ENGINE");

		if (engine && *engine && strcmp(engine, "testrun"))
			return none();
	}
	needed = 4 * 8 + (size_t)p.ctx_size + p.ctx_room + p.data_room + storage_size(p.run);
	if (needed > sizeof(on_stack)) {
		room = malloc(needed);
		if (!room)
			return PyErr_NoMemory();
	}
	p.in = room;
	p.ctx_out = p.in + ((p.ctx_size + 7) & ~7U);
	p.data_out = p.ctx_out + ((p.ctx_room + 7) & ~7U);
	p.stored = p.data_out + ((p.data_room + 7) & ~7U);
	if (p.data_room)
		memset(p.data_out, 0, p.data_room);
	if (p.ctx_room)
		memset(p.ctx_out, 0, p.ctx_room);

	thread = PyEval_SaveThread();
	forget(p.run);
	go(&p);
	PyEval_RestoreThread(thread);

	if (p.error)
		result = Py_BuildValue("(iI)", p.error, p.attr.test.data_size_out);
	else
		result = answer_of(&p);
	if (room != on_stack)
		free(room);
	return result;
}

/* ---- maps ---- */

static const char put_doc[] =
	"put(fd, key, value, flags)\n--\n\nWrite an entry; return 0 or an errno.";

static PyObject *put_entry(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	union bpf_attr attr;
	const uint8_t *key, *value;
	uint32_t size;
	void *thread;
	int error;

	(void)module;
	if (count != 4) {
		PyErr_SetString(PyExc_TypeError, "put takes 4 arguments");
		return NULL;
	}
	if (view_of(args[1], &key, &size) || view_of(args[2], &value, &size))
		return NULL;
	memset(&attr, 0, sizeof(attr));
	attr.map_fd = PyLong_AsLong(args[0]);
	attr.key = (uintptr_t)key;
	attr.value = (uintptr_t)value;
	attr.flags = PyLong_AsUnsignedLongLong(args[3]);
	if (PyErr_Occurred())
		return NULL;
	thread = PyEval_SaveThread();
	error = bpf(BPF_MAP_UPDATE_ELEM, &attr) < 0 ? errno : 0;
	PyEval_RestoreThread(thread);
	return PyLong_FromLong(error);
}

static const char look_up_doc[] =
	"look_up(fd, key, size)\n--\n\nReturn a value of so many bytes, or an errno.";

static PyObject *look_up_entry(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	union bpf_attr attr;
	const uint8_t *key;
	PyObject *made;
	Py_ssize_t room;
	uint32_t size;
	void *thread;
	int error;

	(void)module;
	if (count != 3) {
		PyErr_SetString(PyExc_TypeError, "look_up takes 3 arguments");
		return NULL;
	}
	if (view_of(args[1], &key, &size))
		return NULL;
	room = PyLong_AsSsize_t(args[2]);
	if (PyErr_Occurred())
		return NULL;
	made = PyBytes_FromStringAndSize(NULL, room);
	if (!made)
		return NULL;
	memset(PyBytes_AsString(made), 0, room);
	memset(&attr, 0, sizeof(attr));
	attr.map_fd = PyLong_AsLong(args[0]);
	attr.key = (uintptr_t)key;
	attr.value = (uintptr_t)PyBytes_AsString(made);
	if (PyErr_Occurred()) {
		Py_DecRef(made);
		return NULL;
	}
	thread = PyEval_SaveThread();
	error = bpf(BPF_MAP_LOOKUP_ELEM, &attr) < 0 ? errno : 0;
	PyEval_RestoreThread(thread);
	if (!error)
		return made;
	Py_DecRef(made);
	return PyLong_FromLong(error);
}

/* ---- values: see bpfunit/values/encoders.py for what a plan is ---- */

enum kind {
	INTEGER, /* (kind, size, signed) */
	ARRAY, /* (kind, size, length, element's size, element's plan, addresses) */
	STRUCT, /* (kind, size, whether members overlap, {name: (offset, plan)}, addresses, only) */
	CHARS, /* (kind, size) */
	OTHER, /* (kind,) */
};

/* "addresses": the sizes of the addresses that may be put there, added up; "only": the place of a
 * struct's only member, which may stand for the struct, or None. */
static PyTypeObject *address_type; /* of values.net.IP */

/* Each returns 1 when the value is written, 0 when Python has to see to it, -1 for an error. */
static int fill(PyObject *plan, PyObject *value, uint8_t *out);

static long number(PyObject *plan, Py_ssize_t index)
{
	return PyLong_AsLong(PyTuple_GetItem(plan, index));
}

static int fill_address(PyObject *value, long sizes, uint8_t *out)
{
	PyObject *packed = PyObject_GetAttrString(value, "packed");
	Py_ssize_t size;
	char *bytes;
	int done;

	if (!packed)
		return -1;
	done = PyBytes_AsStringAndSize(packed, &bytes, &size) ? -1 : 0;
	if (!done && (size == 4 || size == 16) && (sizes & size)) {
		memcpy(out, bytes, size);
		done = 1;
	}
	Py_DecRef(packed);
	return done;
}

static int fill_integer(PyObject *plan, PyObject *value, uint8_t *out)
{
	long size = number(plan, 1), is_signed = number(plan, 2);
	unsigned long long bits;
	int overflow;
	long long one;

	if (value->ob_type == address_type)
		return fill_address(value, size == 4 && !is_signed ? 4 : 0, out);
	if (!IS_A(value, Long))
		return 0;
	one = PyLong_AsLongLongAndOverflow(value, &overflow);
	bits = one;
	if (overflow) {
		if (is_signed || size < 8 || overflow < 0)
			return 0;
		bits = PyLong_AsUnsignedLongLong(value);
		if (PyErr_Occurred()) {
			PyErr_Clear();
			return 0;
		}
	} else if (is_signed) {
		if (size < 8 && (one < -(1LL << (8 * size - 1)) || one >= 1LL << (8 * size - 1)))
			return 0;
	} else if (one < 0 || (size < 8 && one >> (8 * size))) {
		return 0;
	}
	switch (size) {
	case 1:
		*out = bits;
		return 1;
	case 2:
		memcpy(out, &(uint16_t){bits}, 2);
		return 1;
	case 4:
		memcpy(out, &(uint32_t){bits}, 4);
		return 1;
	case 8:
		memcpy(out, &(uint64_t){bits}, 8);
		return 1;
	}
	return 0;
}

static int fill_array(PyObject *plan, PyObject *value, uint8_t *out)
{
	long length = number(plan, 2), size = number(plan, 3);
	PyObject *element = PyTuple_GetItem(plan, 4);
	int is_list = IS_A(value, List), done;
	Py_ssize_t count, n;

	if (value->ob_type == address_type)
		return fill_address(value, number(plan, 5), out);
	if (!is_list && !IS_A(value, Tuple))
		return 0;
	count = is_list ? PyList_Size(value) : PyTuple_Size(value);
	if (count > length)
		return 0;
	for (n = 0; n < count; n++) {
		PyObject *one = is_list ? PyList_GetItem(value, n) : PyTuple_GetItem(value, n);

		done = fill(element, one, out + n * size);
		if (done != 1)
			return done;
	}
	return 1;
}

static int fill_struct(PyObject *plan, PyObject *value, uint8_t *out)
{
	PyObject *places = PyTuple_GetItem(plan, 3), *name, *one;
	PyObject *only = PyTuple_GetItem(plan, 5);
	Py_ssize_t at = 0;
	long addresses;

	if (value->ob_type == address_type) {
		addresses = number(plan, 4);
		if (addresses)
			return fill_address(value, addresses, out);
	}
	if (only != Py_None && (IS_A(value, Long) || value->ob_type == address_type))
		return fill(PyTuple_GetItem(only, 1), value, out + number(only, 0));
	if (!IS_A(value, Dict) || (number(plan, 2) && PyDict_Size(value) != 1))
		return 0;
	while (PyDict_Next(value, &at, &name, &one)) {
		PyObject *place = PyDict_GetItemWithError(places, name);
		int done;

		if (!place)
			return PyErr_Occurred() ? -1 : 0;
		done = fill(PyTuple_GetItem(place, 1), one, out + number(place, 0));
		if (done != 1)
			return done;
	}
	return 1;
}

static int fill_chars(PyObject *plan, PyObject *value, uint8_t *out)
{
	Py_ssize_t size = 0;
	const char *text;

	if (IS_A(value, Bytes)) {
		size = PyBytes_Size(value);
		text = PyBytes_AsString(value);
	} else if (IS_A(value, Unicode)) {
		text = PyUnicode_AsUTF8AndSize(value, &size);
		if (!text) {
			PyErr_Clear();
			return 0;
		}
	} else {
		return 0;
	}
	if (size > number(plan, 1))
		return 0;
	memcpy(out, text, size);
	return 1;
}

static int fill(PyObject *plan, PyObject *value, uint8_t *out)
{
	switch (number(plan, 0)) {
	case INTEGER:
		return fill_integer(plan, value, out);
	case ARRAY:
		return fill_array(plan, value, out);
	case STRUCT:
		return fill_struct(plan, value, out);
	case CHARS:
		return fill_chars(plan, value, out);
	}
	return 0;
}

static const char addresses_doc[] =
	"addresses(type)\n--\n\nSay which type's ``packed`` bytes are an address.";

static PyObject *addresses(PyObject *module, PyObject *type)
{
	(void)module;
	address_type = (PyTypeObject *)type; /* a class of a module: there as long as this is */
	return none();
}

static const char encode_doc[] =
	"encode(plan, value)\n--\n\nReturn a value's bytes; None for Python's turn.";

static PyObject *encode(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	Py_ssize_t size;
	PyObject *made;
	int done;

	(void)module;
	if (count != 2 || !IS_A(args[0], Tuple)) {
		PyErr_SetString(PyExc_TypeError, "encode takes a plan and a value");
		return NULL;
	}
	size = number(args[0], 1);
	made = PyBytes_FromStringAndSize(NULL, size);
	if (!made)
		return NULL;
	memset(PyBytes_AsString(made), 0, size);
	done = fill(args[0], args[1], (uint8_t *)PyBytes_AsString(made));
	if (done == 1)
		return made;
	Py_DecRef(made);
	if (done < 0)
		return NULL;
	return none();
}

/* ---- programs ---- */

static const char scan_doc[] =
	"scan(code)\n--\n\n"
	"Return the immediates of a program's map loads, of its calls of helpers, and of kfuncs.";

/* Which of the three an instruction is, -1 for another. */
static int kind_of(const struct bpf_insn *insn)
{
	if (insn->code == (BPF_LD | BPF_IMM | BPF_DW) && insn->src_reg == BPF_PSEUDO_MAP_FD)
		return 0;
	if (insn->code == (BPF_JMP | BPF_CALL) && !insn->src_reg)
		return 1;
	if (insn->code == (BPF_JMP | BPF_CALL) && insn->src_reg == BPF_PSEUDO_KFUNC_CALL)
		return 2;
	return -1;
}

static PyObject *scan(PyObject *module, PyObject *code)
{
	PyObject *found[3] = {PyList_New(0), PyList_New(0), PyList_New(0)}, *result = NULL;
	const struct bpf_insn *insn;
	Py_ssize_t size, n;
	char *bytes;
	int kind;

	(void)module;
	if (!found[0] || !found[1] || !found[2] || PyBytes_AsStringAndSize(code, &bytes, &size))
		goto out;
	for (n = 0; n < size / (Py_ssize_t)sizeof(*insn); n++) {
		PyObject *number;

		insn = (const struct bpf_insn *)bytes + n;
		kind = kind_of(insn);
		if (kind < 0)
			continue;
		number = PyLong_FromLong((uint32_t)insn->imm);
		if (!number || PyList_Append(found[kind], number))
			goto out;
		Py_DecRef(number);
	}
	result = Py_BuildValue("(OOO)", found[0], found[1], found[2]);
out:
	for (n = 0; n < 3; n++)
		if (found[n])
			Py_DecRef(found[n]);
	return result;
}

/* ---- what a worker tells: the form in which execnet sends plain values ---- */

#define MOST_DEPTH 50 /* as in bpfunit/plugin/carry.py */

struct text {
	uint8_t *bytes;
	size_t used, room;
};

static int append(struct text *text, const void *bytes, size_t size)
{
	if (text->room - text->used < size) {
		size_t room = 2 * (text->room + size);
		uint8_t *grown = realloc(text->bytes, room);

		if (!grown)
			return 0;
		text->bytes = grown;
		text->room = room;
	}
	memcpy(text->bytes + text->used, bytes, size);
	text->used += size;
	return 1;
}

static int append_number(struct text *text, char code, Py_ssize_t number)
{
	uint8_t bytes[5] = {code, number >> 24, number >> 16, number >> 8, number};

	return number <= INT32_MAX && append(text, bytes, sizeof(bytes));
}

static int append_string(struct text *text, char code, const char *bytes, Py_ssize_t size)
{
	return bytes && append_number(text, code, size) && append(text, bytes, size);
}

static int dump(struct text *text, PyObject *value, int depth);

static int dump_integer(struct text *text, PyObject *value)
{
	int overflow, done;
	long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
	const char *digits;
	PyObject *shown;
	Py_ssize_t size = 0;

	if (overflow < 0 || (!overflow && number < INT32_MIN))
		return 0;
	if (!overflow && number <= INT32_MAX)
		return append_number(text, 'F', number);
	shown = PyObject_Str(value);
	if (!shown)
		return 0;
	digits = PyUnicode_AsUTF8AndSize(shown, &size);
	done = append_string(text, 'H', digits, size);
	Py_DecRef(shown);
	return done;
}

static int dump_float(struct text *text, PyObject *value)
{
	double number = PyFloat_AsDouble(value);
	uint8_t bytes[9] = {'D'};
	uint64_t bits;
	int n;

	memcpy(&bits, &number, sizeof(bits));
	for (n = 0; n < 8; n++)
		bytes[1 + n] = bits >> (56 - 8 * n);
	return append(text, bytes, sizeof(bytes));
}

static int dump_container(struct text *text, PyObject *value, int depth)
{
	PyObject *key, *one;
	Py_ssize_t at = 0, n;

	if (depth >= MOST_DEPTH)
		return 0;
	if (IS_A(value, Dict)) {
		if (!append(text, "J", 1))
			return 0;
		while (PyDict_Next(value, &at, &key, &one))
			if (!dump(text, key, depth + 1) || !dump(text, one, depth + 1) ||
			    !append(text, "P", 1))
				return 0;
		return 1;
	}
	if (IS_A(value, List)) {
		if (!append_number(text, 'K', PyList_Size(value)))
			return 0;
		for (n = 0; n < PyList_Size(value); n++)
			if (!append_number(text, 'F', n) ||
			    !dump(text, PyList_GetItem(value, n), depth + 1) ||
			    !append(text, "P", 1))
				return 0;
		return 1;
	}
	if (IS_A(value, Tuple)) {
		for (n = 0; n < PyTuple_Size(value); n++)
			if (!dump(text, PyTuple_GetItem(value, n), depth + 1))
				return 0;
		return append_number(text, '@', PyTuple_Size(value));
	}
	return 0;
}

/* Append a value; return 0 for one that execnet does not take as it is, and on any error. */
static int dump(struct text *text, PyObject *value, int depth)
{
	const char *bytes;
	Py_ssize_t size = 0;

	if (value == Py_None)
		return append(text, "L", 1);
	if (value == Py_True)
		return append(text, "R", 1);
	if (value == Py_False)
		return append(text, "C", 1);
	if (IS_A(value, Unicode)) {
		bytes = PyUnicode_AsUTF8AndSize(value, &size); /* not of lone surrogates */
		return append_string(text, 'N', bytes, size);
	}
	if (IS_A(value, Long))
		return dump_integer(text, value);
	if (IS_A(value, Float))
		return dump_float(text, value);
	if (IS_A(value, Bytes))
		return append_string(text, 'A', PyBytes_AsString(value), PyBytes_Size(value));
	return dump_container(text, value, depth);
}

static const char dumps_doc[] =
	"dumps(value)\n--\n\n"
	"Return a plain value as execnet sends it; None for any other value.";

static PyObject *dumps(PyObject *module, PyObject *value)
{
	struct text text = {0};
	PyObject *made = NULL;

	(void)module;
	if (dump(&text, value, 0) && append(&text, "Q", 1)) {
		made = PyBytes_FromStringAndSize((const char *)text.bytes, text.used);
	} else {
		PyErr_Clear();
		made = none();
	}
	free(text.bytes);
	return made;
}

static PyMethodDef functions[] = {
	{"run", (PyCFunction)(void (*)(void))run_once, METH_FASTCALL, run_doc},
	{"put", (PyCFunction)(void (*)(void))put_entry, METH_FASTCALL, put_doc},
	{"look_up", (PyCFunction)(void (*)(void))look_up_entry, METH_FASTCALL, look_up_doc},
	{"encode", (PyCFunction)(void (*)(void))encode, METH_FASTCALL, encode_doc},
	{"addresses", addresses, METH_O, addresses_doc},
	{"scan", scan, METH_O, scan_doc},
	{"dumps", dumps, METH_O, dumps_doc},
	{0},
};

static PyModuleDef definition = {
	.ob_base.ob_refcnt = 1,
	.m_name = "bpfunit_calls",
	.m_size = -1,
	.m_methods = functions,
};

PyObject *PyInit_bpfunit_calls(void)
{
	return PyModule_Create2(&definition, PYTHON_ABI_VERSION);
}
