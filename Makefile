# The same variables for every target:
#   KERNELS      kernels to run on: "6.12", "5.10 7.3", all
#   OBJECT       BPF object under test in place of bpf/build/hook.bpf.o
#   PYTEST_ARGS  further arguments for pytest
#   BENCH_ARGS   further arguments for the benchmarks
#   BENCH_ACCEL  icount (exact), kvm or tcg
#   SUITE        Debian suite for `make fresh`: bookworm, trixie, forky, sid
#   V=1          show the commands

KERNELS ?= 6.12
OBJECT ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
# Debian's own interpreter where there is one: its bcc bindings are built for it.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV ?= .venv
SUITE ?= bookworm
V ?=

export PYTHON VENV V
Q := $(if $(V),,@)
QUIET := $(if $(V),,--no-print-directory -s)
# icount counts instructions; kvm or tcg take the guest's clock.
BENCH_ACCEL ?= icount
# Where the benchmarks' JSON goes: BENCH_ARGS may name another file, in either form of the option.
SPACE := $(subst ,, )
BENCH_FILES := $(subst --benchmark-json$(SPACE),--benchmark-json=,$(BENCH_ARGS))
BENCH_JSON := $(lastword build/bench/results.json \
	$(patsubst --benchmark-json=%,%,$(filter --benchmark-json=%,$(BENCH_FILES))))
BIN := $(abspath $(VENV))/bin
PYTEST := PATH="$(BIN):$$PATH" $(BIN)/python -m pytest
KERNEL_ARGS := $(foreach kernel,$(KERNELS),--kernel $(kernel))
FOREIGN := $(foreach kernel,$(KERNELS),$(if $(findstring /,$(kernel)),$(filter-out all/%,$(kernel))))
BIG_ENDIAN := $(if $(findstring /s390x,$(KERNELS)),yes)
OBJECT_ARGS := $(if $(OBJECT),--bpf-object $(abspath $(OBJECT)))

.DELETE_ON_ERROR:
.PHONY: help vmtest test test-arch test-long fresh check bench explore-table coverage facts types stacks mutants diff-mutants docs findings kmod bpf clean setup setup-test

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18
	@echo; sed -n '/^# The same/,/^$$/s/^# \?//p' $(MAKEFILE_LIST)

setup:
	$(Q)tools/bootstrap vmtest

setup-test:
	$(Q)tools/bootstrap test

# The programs under test, and where a kernel of KERNELS is big-endian theirs, too.
bpf: setup ## build the programs under test
	$(Q)$(MAKE) $(QUIET) -C bpf all $(BIG_ENDIAN:%=big-endian)
	$(Q)$(BIN)/python -m tests.objects $(BIG_ENDIAN:%=bpfeb) $(FOREIGN) >/dev/null

kmod: setup ## build the kernel module for KERNELS
	$(Q)PATH="$(BIN):$$PATH" $(BIN)/python -m bpfunit.kernels build $(KERNELS)

vmtest: bpf ## the tests of the connect hook and its neighbours, in guests of KERNELS
	$(Q)$(PYTEST) $(KERNEL_ARGS) $(OBJECT_ARGS) tests/hook tests/mesh $(PYTEST_ARGS)

check: setup-test ## linters, types, formats, without running anything
	$(Q)tools/check

test: check bpf ## everything: checks, host tests, guests, the matrix, the ways a guest dies
	$(Q)$(MAKE) $(QUIET) -C bench
	$(Q)tools/test

test-long: check bpf ## what takes hours: every kernel with everything, long fuzzing, each mutant
	$(Q)$(MAKE) $(QUIET) -C bench
	$(Q)tools/test --long host guests foreign everywhere stacks compilers fuzz mutants e2e

test-arch: bpf ## some of the hook's tests on arm64 and s390x, emulated; fetches what that takes
	$(Q)tools/test architectures

fresh: ## the two commands of the README in an empty root of SUITE, as root and as a user with sudo
	$(Q)tools/fresh $(SUITE)

bench: bpf ## what each path of the hook costs, instruction-exact, on KERNELS
	$(Q)$(MAKE) $(QUIET) -C bench
	$(Q)mkdir -p build/bench
	$(Q)$(PYTEST) $(KERNEL_ARGS) $(OBJECT_ARGS) --guest-accel $(BENCH_ACCEL) bench \
		--benchmark-columns=min,max,rounds --benchmark-sort=name \
		--benchmark-json=build/bench/results.json $(BENCH_ARGS)
	$(Q)$(BIN)/python -m bpfunit.bench.report "$(BENCH_JSON)" --markdown build/bench/results.md

explore-table: bpf ## branch edges that explore reaches, beside search by chance, on the first of KERNELS
	$(Q)PATH="$(BIN):$$PATH" $(BIN)/python -m bench.explore_table \
		--kernel $(firstword $(KERNELS)) $(BENCH_ARGS)

coverage: bpf ## branch coverage of the programs under test; HTML in build/coverage
	$(Q)$(PYTEST) $(KERNEL_ARGS) $(OBJECT_ARGS) tests/hook tests/mesh --bpf-cov \
		--bpf-cov-report=term-missing --bpf-cov-report=html:build/coverage $(PYTEST_ARGS)

facts: bpf ## measure docs/kernel-facts.md anew on KERNELS, one after another
	$(Q)PATH="$(BIN):$$PATH" $(BIN)/python -m tests.facts $(KERNELS)

types: bpf ## measure docs/program-types.md anew on KERNELS: how programs of each type run
	$(Q)PATH="$(BIN):$$PATH" $(BIN)/python -m tests.facts --types $(KERNELS)

stacks: bpf ## every libbpf and every compiler of Debian's suites, unpacked into the cache: a table
	$(Q)PATH="$(BIN):$$PATH" $(BIN)/python -m tests.stacks --kernel $(firstword $(KERNELS))

mutants: bpf ## break the programs in many small ways; every one has to be noticed
	$(Q)PATH="$(BIN):$$PATH" $(BIN)/python -m tests.mutants $(KERNEL_ARGS) $(PYTEST_ARGS)

diff-mutants: bpf ## the same by `bpfunit diff` alone: an input for each mutant, no test written by hand
	$(Q)PATH="$(BIN):$$PATH" $(BIN)/python -m tests.mutants.compared $(KERNEL_ARGS) $(PYTEST_ARGS)

docs: setup-test ## build the documentation into build/docs and check its links
	$(Q)$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs
	$(Q)$(BIN)/python docs/check_links.py build/docs

findings: ## run what surprised us in other tools again (fetches their packages; not part of test)
	$(Q)failed=; for one in findings/*.sh; do echo "== $$one =="; bash "$$one" || failed="$$failed $$one"; done; \
		[ -z "$$failed" ] || { echo "no longer so:$$failed"; exit 1; }

clean: ## remove what was built (the cache of kernels stays)
	$(Q)rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	$(Q)$(MAKE) -s -C bpf clean
