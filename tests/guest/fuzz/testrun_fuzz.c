// SPDX-License-Identifier: GPL-2.0
/*
 * Hostile hands on the test run of cgroup_sock_addr programs.
 *
 *   testrun_fuzz --seed 1 --requests 1000000 --seconds 600 --threads 3
 *
 * Worker threads make requests, most of them nearly right, on sockets and programs that
 * they share. Meanwhile they, and one thread that does nothing else, close, connect, turn
 * and replace those sockets and programs, one thread sends signals, and a process whose
 * runs never end is killed over and over.
 *
 * What each worker asks for follows from the seed; how the threads interleave does not.
 * It prints «name value» lines and exits 0, or 1 when the kernel gave an answer that it
 * must not give. What the kernel is like afterwards is for the caller to see.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

enum { MAX_THREADS = 16, ERRNOS = 600 };

static uint64_t seed = 1, requests = 1000000, seconds = 600;
static int threads = 3;
static volatile int stop;
static pthread_t workers[MAX_THREADS];
static struct tally {
	uint64_t made, stirred, by_errno[ERRNOS], ok_by_type[ATTACH_TYPES];
} tallies[MAX_THREADS];

/* What a request may be answered with; anything else is a finding. */
static const int allowed[] = {
	0,	E2BIG,	  EAFNOSUPPORT, EBADF,	    EFAULT, EINTR,	     EINVAL,
	ENOSPC, ENOTCONN, ENOTSOCK,	EOPNOTSUPP, EPERM,  EPROTONOSUPPORT, EPROTOTYPE,
	ENOMEM, ENOBUFS,  ENFILE,	EMFILE,	    EACCES, ESOCKTNOSUPPORT, EADDRNOTAVAIL,
};

void die(const char *what)
{
	perror(what);
	exit(2);
}

static void *work(void *argument)
{
	long self = (long)argument;
	struct tally *tally = &tallies[self];
	struct rng r = {seed * 1000003 + self};
	int type;

	while (!stop) {
		long err = make_request(&r, &type);

		tally->made++;
		tally->by_errno[err < ERRNOS ? err : ERRNOS - 1]++;
		if (!err)
			tally->ok_by_type[type]++;
		/* churn() goes by the clock, which lets hundreds of requests pass unchanged */
		if (!below(&r, 16)) {
			stir_pools(&r);
			tally->stirred++;
		}
	}
	return NULL;
}

static void *churn(void *argument)
{
	struct rng r = {seed ^ 0xc4u};

	(void)argument;
	while (!stop) {
		stir_pools(&r);
		fill_context(&r, &shared_ctx, below(&r, ATTACH_TYPES));
		usleep(below(&r, 4000));
	}
	return NULL;
}

static void *signals(void *argument)
{
	struct rng r = {seed ^ 0x51u};

	(void)argument;
	while (!stop) {
		pthread_kill(workers[below(&r, threads)], SIGUSR1);
		usleep(below(&r, 8000));
	}
	return NULL;
}

static void ignore(int number)
{
	(void)number;
}

/* A process that is inside a run whenever it is killed. */
static pid_t start_victims(void)
{
	pid_t keeper = fork(), victim;
	struct rng r = {seed ^ 0x1cu};

	if (keeper)
		return keeper;
	setpgid(0, 0);
	for (;;) {
		victim = fork();
		if (!victim) {
			struct bpf_sock_addr ctx;
			union bpf_attr attr = {.test = {.repeat = 0xffffffff}};
			int slot = below(&r, PROGRAMS);

			fill_context(&r, &ctx, slot % ATTACH_TYPES);
			attr.test.prog_fd = programs[slot];
			attr.test.ctx_in = (uintptr_t)&ctx;
			attr.test.ctx_size_in = sizeof(ctx);
			bpf(BPF_PROG_TEST_RUN, &attr, sizeof(attr));
			_exit(0);
		}
		usleep(1000 + below(&r, 30000));
		kill(victim, SIGKILL);
		waitpid(victim, NULL, 0);
		usleep(below(&r, 200000));
	}
}

static void end_group(pid_t keeper)
{
	if (keeper <= 0)
		return;
	kill(-keeper, SIGKILL);
	waitpid(keeper, NULL, 0);
}

static void set_up(void)
{
	struct sigaction action = {.sa_handler = ignore}; /* without SA_RESTART */
	struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};
	struct rng r = {seed};

	setrlimit(RLIMIT_MEMLOCK, &unlimited);
	sigaction(SIGUSR1, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	fill_pools(&r);
	prepare_requests(&r);
}

static int report(double took)
{
	uint64_t made = 0, stirred = 0, sum;
	int i, t, findings = 0;
	size_t a;

	for (t = 0; t < threads; t++) {
		made += tallies[t].made;
		stirred += tallies[t].stirred;
	}
	printf("requests %lu\nseconds %.1f\nstirred %lu\n", made, took, stirred);
	for (i = 0; i < ERRNOS; i++) {
		for (sum = 0, t = 0; t < threads; t++)
			sum += tallies[t].by_errno[i];
		if (!sum)
			continue;
		printf("errno_%d %lu %s\n", i, sum, i ? strerror(i) : "ran");
		for (a = 0; a < sizeof(allowed) / sizeof(*allowed) && allowed[a] != i; a++)
			;
		findings += a == sizeof(allowed) / sizeof(*allowed);
	}
	for (i = 0; i < ATTACH_TYPES; i++) {
		for (sum = 0, t = 0; t < threads; t++)
			sum += tallies[t].ok_by_type[i];
		printf("ran_attach_type_%d %lu\n", attach_types[i], sum);
	}
	printf("findings %d\n", findings);
	return findings ? 1 : 0;
}

static void parse_options(int argc, char **argv)
{
	static const struct option options[] = {
		{"seed", 1, NULL, 's'},	   {"requests", 1, NULL, 'r'}, {"seconds", 1, NULL, 't'},
		{"threads", 1, NULL, 'n'}, {NULL, 0, NULL, 0},
	};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 's':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 'r':
			requests = strtoull(optarg, NULL, 0);
			break;
		case 't':
			seconds = strtoull(optarg, NULL, 0);
			break;
		case 'n':
			threads = atoi(optarg);
			break;
		default:
			exit(2);
		}
	}
	if (threads < 1 || threads > MAX_THREADS) {
		fprintf(stderr, "testrun_fuzz: --threads is 1 to %d\n", MAX_THREADS);
		exit(2);
	}
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	pthread_t churner, signaller;
	pid_t victims;
	double started = now();
	long i;

	parse_options(argc, argv);
	set_up();
	victims = start_victims();
	for (i = 0; i < threads; i++)
		if (pthread_create(&workers[i], NULL, work, (void *)i))
			die("start worker");
	pthread_create(&churner, NULL, churn, NULL);
	pthread_create(&signaller, NULL, signals, NULL);

	for (;;) {
		uint64_t made = 0;

		usleep(100000);
		for (i = 0; i < threads; i++)
			made += tallies[i].made;
		if (made >= requests || now() - started > seconds)
			break;
	}
	stop = 1;
	/* a worker may be inside a run that only a signal ends, so signals go on until all are out
	 */
	for (i = 0; i < threads; i++)
		while (pthread_tryjoin_np(workers[i], NULL)) {
			pthread_kill(workers[i], SIGUSR1);
			usleep(1000);
		}
	pthread_join(churner, NULL);
	pthread_join(signaller, NULL);
	end_group(victims);
	return report(now() - started);
}
