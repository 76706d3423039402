# The same variables for every target:
#   KERNELS      kernels to run on: "6.12", "5.10 7.3", all
#   OBJECT       BPF object under test in place of bpf/build/hook.bpf.o
#   PYTEST_ARGS  further arguments for pytest
#   BENCH_ARGS   further arguments for the benchmarks
#   V=1          show the commands

KERNELS ?= 6.12
OBJECT ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
# Debian's own interpreter where there is one: its bcc bindings are built for it.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV ?= .venv
V ?=

export PYTHON VENV V
Q := $(if $(V),,@)
BIN := $(abspath $(VENV))/bin
PYTEST := PATH="$(BIN):$$PATH" $(BIN)/python -m pytest
KERNEL_ARGS := $(foreach kernel,$(KERNELS),--kernel $(kernel))
OBJECT_ARGS := $(if $(OBJECT),--bpf-object $(abspath $(OBJECT)))

.DELETE_ON_ERROR:
.PHONY: help vmtest test check bench coverage mutants docs kmod bpf clean setup setup-test

help:
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18
	@echo; sed -n '/^# The same/,/^$$/s/^# \?//p' $(MAKEFILE_LIST)

setup:
	$(Q)tools/bootstrap vmtest

setup-test:
	$(Q)tools/bootstrap test

bpf: setup ## build the programs under test
	$(Q)$(MAKE) $(if $(V),,--no-print-directory -s) -C bpf
	$(Q)$(BIN)/python -m tests.objects >/dev/null

kmod: setup ## build the kernel module for KERNELS
	$(Q)PATH="$(BIN):$$PATH" $(BIN)/python -m bpfunit.kernels build $(KERNELS)

vmtest: bpf ## the tests of the connect hook, in guests of KERNELS
	$(Q)$(PYTEST) $(KERNEL_ARGS) $(OBJECT_ARGS) tests/hook $(PYTEST_ARGS)

clean: ## remove what was built (the cache of kernels stays)
	$(Q)rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	$(Q)$(MAKE) -s -C bpf clean
