"""How long a matrix takes in one command, against the sum of its kernels one by one.

    python -m bench.matrix_time [--kernel K ...] [PYTEST_ARG ...]

Runs the same tests in guests of each kernel alone, one after another, and then on all of them in
one command. On two cores the one command shall take at most 0.7 times the sum.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

LIMIT = 0.7
KERNELS = ("5.10", "6.1", "6.12", "7.2", "7.3")
TESTS = ("tests/hook/test_protocol.py",)


def timed(kernels: tuple[str, ...], arguments: list[str]) -> float:
    """Return the seconds that pytest takes on some kernels; leave when its tests fail."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    command += [f"--kernel={kernel}" for kernel in kernels]
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.monotonic() - started
    print(f"{' '.join(kernels):30} {seconds:7.1f} s   load {os.getloadavg()[0]:.1f}", flush=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\ntime the matrix: pytest ends with {done.returncode}, expected 0")
    return seconds


def main() -> int:
    """Measure, and return 1 when the limit is passed."""
    parser = argparse.ArgumentParser(prog="python -m bench.matrix_time", description=__doc__)
    parser.add_argument("--kernel", action="append", help="default: the five with the module")
    parser.add_argument("pytest_args", nargs="*", default=TESTS, help="default: a few of the hook")
    arguments = parser.parse_args()
    kernels = tuple(arguments.kernel or KERNELS)
    tests = list(arguments.pytest_args)
    one_by_one = sum(timed((kernel,), tests) for kernel in kernels)
    together = timed(kernels, tests)
    ratio = together / one_by_one
    cores = len(os.sched_getaffinity(0))
    print(f"{together:.1f} s / {one_by_one:.1f} s = {ratio:.2f} on {cores} cores (at most {LIMIT})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
