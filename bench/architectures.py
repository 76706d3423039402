"""What guests of other architectures take against those of this machine, side by side.

    python -m bench.architectures [--kernel K ...] [--rounds 5] [--tests PYTEST_ARG ...]

From the command to the first test, each kernel by turns, so that what else the machine does hits
all; before the first round each runs once, for what is fetched, built and kept. Then the tests,
once for each kernel. Beside wall time stands processor time of all processes, which a busy machine
stretches less. The first kernel is what the others are compared with.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.startup import FIRST_TEST, RunFailedError, first_test, processor_seconds
from bpfunit.kernels.catalogue import split_spec

KERNELS = ("6.12", "6.12/arm64", "6.12/s390x")
TESTS = ("-m", "not slow", "tests/hook")
#: At most so many times the first kernel's wall time: to the first test, and for the tests.
LIMITS = {"arm64": (1.2, 1.5), "s390x": (2.5, None)}

Taken = tuple[float, float]  # wall, processor


def starts(kernels: list[str], rounds: int) -> dict[str, list[Taken]]:
    """Return what each kernel took to its first test."""
    taken: dict[str, list[Taken]] = {kernel: [] for kernel in kernels}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "test_startup.py").write_text(FIRST_TEST)
        (directory / "pytest.ini").write_text("[pytest]\n")
        for number in range(rounds + 1):
            for kernel in kernels:
                before = processor_seconds()
                wall = first_test(kernel, directory)
                if number:
                    taken[kernel].append((wall, processor_seconds() - before))
    return taken


def tests_of(kernel: str, arguments: list[str]) -> Taken:
    """Return what the tests take on a kernel.

    Raises:
        RunFailedError: one of them fails.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    before, started = processor_seconds(), time.monotonic()
    done = subprocess.run([*command, "--kernel", kernel], capture_output=True, text=True)
    if done.returncode != 0:
        raise RunFailedError(f"run the tests on {kernel}: {done.returncode}\n{done.stdout}")
    return time.monotonic() - started, processor_seconds() - before


def report(what: str, taken: dict[str, Taken], index: int) -> bool:
    """Print what each kernel took, and return whether all are within their limits."""
    first = next(iter(taken.values()))
    within = True
    for kernel, (wall, used) in taken.items():
        ratio = wall / first[0]
        limit = LIMITS.get(split_spec(kernel)[1].debian, (None, None))[index]
        wanted = f" (at most {limit})" if limit else ""
        within &= limit is None or ratio <= limit
        print(
            f"{what}: {kernel:12} {wall:7.2f} s {ratio:5.2f}{wanted}, "
            f"processor {used:7.2f} s {used / first[1]:5.2f}",
            flush=True,
        )
    return within


def main() -> int:
    """Measure, and return 1 when a limit is passed."""
    parser = argparse.ArgumentParser(prog="python -m bench.architectures", description=__doc__)
    parser.add_argument("--kernel", action="append", help=f"default: {', '.join(KERNELS)}")
    parser.add_argument("--rounds", type=int, default=5, help="of starts; 0 leaves them out")
    parser.add_argument(
        "--tests", nargs="*", default=TESTS, help="for pytest; none leaves them out"
    )
    options = parser.parse_args()
    kernels = list(options.kernel or KERNELS)
    within = True
    if options.rounds:
        medians = {
            kernel: (statistics.median(w for w, _ in each), statistics.median(p for _, p in each))
            for kernel, each in starts(kernels, options.rounds).items()
        }
        within &= report("to the first test", medians, 0)
    if options.tests:
        taken = {kernel: tests_of(kernel, list(options.tests)) for kernel in kernels}
        within &= report("tests", taken, 1)
    return int(not within)


if __name__ == "__main__":
    sys.exit(main())
