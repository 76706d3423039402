// SPDX-License-Identifier: GPL-2.0
/*
 * The yardstick for a whole test: a C program that opens an object, loads it, runs one program of
 * it once and closes it, N times, and says what the cheapest time cost.
 *
 *   test_with_load OBJECT PROGRAM TIMES
 *
 * prints nanoseconds (under -icount shift=0: instructions).
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static unsigned long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static void test(const char *path, const char *name)
{
	struct bpf_sock_addr ctx = {
		.user_family = AF_INET,
		.user_ip4 = 0x0100600a,
		.user_port = 0x5000,
		.family = AF_INET,
		.type = SOCK_STREAM,
		.protocol = 6,
	};
	struct bpf_sock_addr seen;
	LIBBPF_OPTS(bpf_test_run_opts, opts, .ctx_in = &ctx, .ctx_size_in = sizeof(ctx),
		    .ctx_out = &seen, .ctx_size_out = sizeof(seen));
	struct bpf_object *object = bpf_object__open_file(path, NULL);
	struct bpf_program *program;

	if (!object || bpf_object__load(object))
		die("load the object");
	program = bpf_object__find_program_by_name(object, name);
	if (!program || bpf_prog_test_run_opts(bpf_program__fd(program), &opts))
		die("run the program");
	bpf_object__close(object);
}

int main(int argc, char **argv)
{
	unsigned long long least = -1ULL;
	int times;

	if (argc != 4 || (times = atoi(argv[3])) <= 0) {
		fprintf(stderr, "usage: %s OBJECT PROGRAM TIMES\n", argv[0]);
		return 2;
	}
	while (times--) {
		unsigned long long start = now_ns(), took;

		test(argv[1], argv[2]);
		took = now_ns() - start;
		least = took < least ? took : least;
	}
	printf("%llu\n", least);
	return 0;
}
