"""How much of the host's memory a guest takes, and how much of the cache its snapshot.

    python -m bench.memory [--kernel 6.12] [PYTEST_ARG ...]

Runs the hook's suite, or other tests, in one guest and watches its QEMU: the most that was resident
(``VmHWM`` of /proc/PID/status), and what is at the end, with its share that no other process maps
(``Rss`` and ``Pss`` of smaps_rollup). Pages of the snapshot that the guest has only read are
resident in all guests and in memory once. The snapshot is measured by the blocks that its files
take.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

#: At most so many MiB, for a guest at its largest and for a snapshot.
GUEST_LIMIT, SNAPSHOT_LIMIT = 200, 120
TESTS = ("tests/hook",)
_EVERY = 0.25  # seconds


@dataclass
class Used:
    """What a guest takes, in KiB.

    Attributes:
        peak: the most that was resident.
        parts: what was resident when it was looked at last, by the names of smaps_rollup.
        slot: the directory of its snapshot; None where it booted.
    """

    peak: int
    parts: dict[str, int]
    slot: Path | None


def fields(path: Path) -> dict[str, int]:
    """Return the fields of a file of /proc that are in kB."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) for line in lines if line[-1] == "kB"}


def guests(process: psutil.Process) -> list[psutil.Process]:
    """Return the QEMUs below a process that start from a snapshot or boot, but make none."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                line = child.cmdline()
                if "-nodefaults" in line and not any("share=on" in word for word in line):
                    found.append(child)
    return found


def look(guest: psutil.Process, used: dict[int, Used]) -> None:
    """Note what a guest takes now."""
    proc = Path(f"/proc/{guest.pid}")
    with contextlib.suppress(OSError, KeyError, psutil.NoSuchProcess):
        peak, parts = fields(proc / "status")["VmHWM"], fields(proc / "smaps_rollup")
        paths = (word.partition("mem-path=")[2] for word in guest.cmdline())
        slot = next((Path(path.partition(",")[0]).parent for path in paths if path), None)
        if parts["Rss"]:
            used[guest.pid] = Used(peak, parts, slot)


def watched(kernel: str, arguments: list[str]) -> list[Used]:
    """Run tests in one guest and return what it and those after it took.

    Raises:
        SystemExit: the tests fail.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    used: dict[int, Used] = {}
    with subprocess.Popen([*command, "--kernel", kernel]) as run:
        process = psutil.Process(run.pid)
        while run.poll() is None:
            for guest in guests(process):
                look(guest, used)
            time.sleep(_EVERY)
    if run.returncode != 0:
        sys.exit(f"measure memory: pytest ends with {run.returncode}, expected 0")
    return list(used.values())


def blocks(slot: Path) -> dict[str, float]:
    """Return the MiB that each file of a snapshot takes."""
    return {path.name: path.stat().st_blocks / 2048 for path in sorted(slot.iterdir())}


def main() -> int:
    """Measure, and return 1 when a limit is passed."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("pytest_args", nargs="*", default=TESTS, help="default: the hook's suite")
    asked = parser.parse_args()
    over = False
    for used in watched(asked.kernel, list(asked.pytest_args)):
        parts = {name: used.parts[name] / 1024 for name in ("Rss", "Pss", "Anonymous")}
        over |= used.peak > GUEST_LIMIT * 1024
        print(f"guest of {asked.kernel}: at most {used.peak / 1024:.0f} MiB resident", end="")
        print(f" (at most {GUEST_LIMIT} wanted); at the end {parts['Rss']:.0f}, of which", end="")
        print(f" {parts['Anonymous']:.0f} its own, {parts['Pss']:.0f} with its share of the rest")
        if used.slot is not None:
            files = blocks(used.slot)
            over |= sum(files.values()) > SNAPSHOT_LIMIT
            large = ", ".join(f"{name} {size:.1f}" for name, size in files.items() if size >= 0.1)
            print(f"snapshot: {sum(files.values()):.0f} MiB ({large}; at most", end="")
            print(f" {SNAPSHOT_LIMIT} wanted)")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
