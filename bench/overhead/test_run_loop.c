// SPDX-License-Identifier: GPL-2.0
/*
 * The yardstick for bpfunit's own overhead: a C program that runs a crafted context N times through
 * libbpf, as a careful person would write it, and says what one run cost.
 *
 *   test_run_loop OBJECT PROGRAM RUNS
 *
 * prints three numbers, nanoseconds per run (under -icount shift=0: instructions):
 *   libbpf  craft the context, bpf_prog_test_run_opts(), read the rewritten address back
 *   raw     only the system call, with everything prepared: what the kernel costs
 *   clock   one call of the clock, to be subtracted by who measures single runs
 */
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

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

static unsigned int craft_and_run(int prog_fd, int sock, unsigned int address, unsigned short port)
{
	struct bpf_sock_addr ctx = {
		.user_family = AF_INET,
		.user_ip4 = address,
		.user_port = port,
		.family = AF_INET,
		.type = SOCK_STREAM,
		.protocol = IPPROTO_TCP,
	};
	struct bpf_sock_addr seen;
	LIBBPF_OPTS(bpf_test_run_opts, opts, .ctx_in = &ctx, .ctx_size_in = sizeof(ctx),
		    .ctx_out = &seen, .ctx_size_out = sizeof(seen));

	ctx.sk = (struct bpf_sock *)(long)sock;
	if (bpf_prog_test_run_opts(prog_fd, &opts))
		die("run the program");
	return seen.user_ip4 ^ seen.user_port ^ opts.retval;
}

int main(int argc, char **argv)
{
	unsigned long long start, clock, libbpf, raw;
	struct bpf_sock_addr ctx = {.user_family = AF_INET}, seen;
	struct bpf_program *program;
	struct bpf_object *object;
	volatile unsigned int sink = 0;
	union bpf_attr attr = {};
	unsigned int address;
	int fd, sock;
	long runs;

	if (argc != 4 || (runs = atol(argv[3])) <= 0) {
		fprintf(stderr, "usage: %s OBJECT PROGRAM RUNS\n", argv[0]);
		return 2;
	}
	object = bpf_object__open_file(argv[1], NULL);
	if (!object || bpf_object__load(object))
		die("load the object");
	program = bpf_object__find_program_by_name(object, argv[2]);
	if (!program)
		die("find the program");
	fd = bpf_program__fd(program);
	sock = socket(AF_INET, SOCK_STREAM, 0);
	if (sock < 0)
		die("make a socket");
	address = inet_addr("10.96.0.1");

	start = now_ns();
	for (long i = 0; i < runs; i++)
		now_ns();
	clock = (now_ns() - start) / runs;

	sink ^= craft_and_run(fd, sock, address, htons(80));
	start = now_ns();
	for (long i = 0; i < runs; i++)
		sink ^= craft_and_run(fd, sock, address, htons(80));
	libbpf = (now_ns() - start) / runs;

	ctx.user_ip4 = address;
	ctx.user_port = htons(80);
	ctx.sk = (struct bpf_sock *)(long)sock;
	attr.test.prog_fd = fd;
	attr.test.ctx_in = (unsigned long)&ctx;
	attr.test.ctx_size_in = sizeof(ctx);
	attr.test.ctx_out = (unsigned long)&seen;
	attr.test.ctx_size_out = sizeof(seen);
	start = now_ns();
	for (long i = 0; i < runs; i++)
		if (syscall(__NR_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr)))
			die("run the program");
	raw = (now_ns() - start) / runs;

	printf("{\"runs\": %ld, \"libbpf\": %llu, \"raw\": %llu, \"clock\": %llu}\n", runs, libbpf,
	       raw, clock);
	return 0;
}
