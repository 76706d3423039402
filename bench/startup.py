"""Time from the command to the first test, against a bare ``vng --run KERNEL --exec true``.

    python bench/startup.py [--kernel 6.12] [--rounds 5] [--against COMMIT]

Both run by turns, so that what else the machine does hits both. With ``--against`` the other one is
bpfunit as it was at a commit, from a checkout of its own. Before the first round each runs once to
warm the caches. The first test's start is taken on the host, when its report of having
started arrives. Beside wall time stands processor time of all processes, which a busy machine
stretches less.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bpfunit.guest.accel import probe_kvm
from bpfunit.kernels import resolve

HERE = Path(__file__).resolve().parent.parent
FIRST_TEST = """
import pytest

@pytest.mark.guest
def test_first():
    pass
"""


class RunFailedError(Exception):
    """A measured command did not do what is measured."""


def processor_seconds() -> float:
    """Return the processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def vng(image: Path, *arguments: str, command: str = "true") -> float:
    """Return the seconds that vng takes to run a command.

    Its status is not looked at: without udev on the machine it is 255 whatever the command said,
    since the status comes back over a port that udev names. :func:`check_vng` looks instead.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    line = [shutil.which("vng", path=path) or "vng", "--run", str(image), *arguments]
    if not probe_kvm().usable:
        line.append("--disable-kvm")
    started = time.monotonic()
    # vng wants pipes: it opens its standard streams by path
    subprocess.run(
        [*line, "--exec", command],
        env=dict(os.environ, PATH=path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return time.monotonic() - started


def check_vng(image: Path, directory: Path) -> None:
    """Make sure that vng runs commands on this machine, or what it takes means nothing."""
    vng(image, "--rwdir", str(directory), command=f"touch {directory}/ran")
    if not (directory / "ran").exists():
        raise RunFailedError("vng did not run its command; run it by hand to see why")


def first_test(kernel: str, directory: Path, tree: Path = HERE) -> float:
    """Return the seconds from the command to the first test's start.

    Args:
        kernel: of the guest.
        directory: of the test.
        tree: where bpfunit is.
    """
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--kernel", kernel]
    environment = dict(os.environ, PYTHONUNBUFFERED="1", PYTHONPATH=str(tree))
    started = time.monotonic()
    seconds = 0.0
    with subprocess.Popen(
        [*command, "test_startup.py"],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if not seconds and line.startswith("test_startup.py::test_first"):
                seconds = time.monotonic() - started
    if process.returncode != 0 or not seconds:
        raise RunFailedError("".join(lines))
    return seconds


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Have the tree of a commit in a directory of its own."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", metavar="COMMIT", help="instead of vng")
    options = parser.parse_args()
    image = resolve(options.kernel).image
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (directory / "test_startup.py").write_text(FIRST_TEST)
        (directory / "pytest.ini").write_text("[pytest]\n")
        if options.against:
            tree = stack.enter_context(checkout(options.against))
            other, wanted = options.against, 0.5
            compared = functools.partial(first_test, options.kernel, directory, tree)
        else:
            check_vng(image, directory)
            other, wanted = "bare vng", 1.0
            compared = functools.partial(vng, image)
        runs = {
            other: compared,
            "first test": functools.partial(first_test, options.kernel, directory),
        }
        measured: dict[str, list[tuple[float, float]]] = {what: [] for what in runs}
        for number in range(options.rounds + 1):
            for what, run in runs.items():
                before = processor_seconds()
                wall = run()
                used = processor_seconds() - before
                if number:  # the first is for the caches
                    measured[what].append((wall, used))
                    print(
                        f"{number}: {what:10}  {wall:6.2f} s  (processor {used:6.2f} s)", flush=True
                    )
    medians = [
        {what: statistics.median(pair[index] for pair in all_) for what, all_ in measured.items()}
        for index in (0, 1)
    ]
    for what in measured:
        print(
            f"median: {what:10}  {medians[0][what]:6.2f} s  (processor {medians[1][what]:6.2f} s)"
        )
    ratios = [of["first test"] / of[other] for of in medians]
    print(f"ratio: {ratios[0]:.2f} (at most {wanted} is wanted), of processor time {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
