"""The module under hostile hands: what fuzz/ does to it leaves the kernel as it was.

Short by default. The long form is the same with more requests (docs/module.md):
``BPFUNIT_FUZZ_REQUESTS=1000000 BPFUNIT_FUZZ_SEED=7 pytest --kernel 6.12 ...``.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from .. import objects
from . import rawrun
from .test_module_leaks import sockets

pytestmark = pytest.mark.guest

SOURCES = Path(__file__).parent / "fuzz"
REQUESTS = int(os.environ.get("BPFUNIT_FUZZ_REQUESTS", "60000"))
SEED = os.environ.get("BPFUNIT_FUZZ_SEED", "1")
SECONDS = max(90, REQUESTS // 1000)  # a limit, not the duration: 20 times slower than seen
MODPROBE = Path("/proc/sys/kernel/modprobe")

# What the kernel says when something is wrong with it, which the OOM killer's report is not.
SPLAT = re.compile(
    r"\bBUG\b|\bWARNING:|Oops|general protection|stack-protector|refcount_t|KASAN|UBSAN"
    r"|blocked for more than|soft lockup|hard LOCKUP|rcu.*stall|scheduling while atomic"
    r"|sleeping function|suspicious RCU|possible .*deadlock|bad unlock|leaked|double free"
)
# Bits of /proc/sys/kernel/tainted: 128 oops, 512 warning, 16384 soft lockup
# (Documentation/admin-guide/tainted-kernels.rst).
TAINTED_BY_A_SPLAT = 128 | 512 | 16384


KERNEL = f"{os.uname().release.partition('-')[0]}/{os.environ.get('BPFUNIT_FOREIGN', '')}"
# In guests of another architecture, which have no compiler, the fuzzer is a library.
STARTER = """#!{python} -IS
import ctypes, sys
words = [word.encode() for word in sys.argv]
sys.exit(ctypes.CDLL("{library}").main(len(words), (ctypes.c_char_p * (len(words) + 1))(*words)))
"""


@dataclass(frozen=True)
class State:
    """What the kernel holds, of the kinds of things that a test run could leak."""

    sockets: dict[str, int]
    programs: int
    unreclaimable_kib: int
    socket_inodes: int

    @classmethod
    def now(cls) -> State:
        slabs = Path("/proc/slabinfo").read_text()
        inodes = re.search(r"^sock_inode_cache\s+(\d+)", slabs, re.MULTILINE)
        memory = re.search(r"^SUnreclaim:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
        assert inodes is not None
        assert memory is not None
        return cls(sockets(), rawrun.loaded_programs(), int(memory[1]), int(inodes[1]))

    def leaks_since(self, before: State) -> list[str]:
        """What there is more of than before; caches may keep a little."""
        found = [
            f"{count - before.sockets[name]} sockets of {name}"
            for name, count in self.sockets.items()
            if count > before.sockets[name]
        ]
        if self.programs > before.programs:
            found.append(f"{self.programs - before.programs} BPF programs")
        if self.socket_inodes > before.socket_inodes + 300:
            found.append(f"{self.socket_inodes - before.socket_inodes} inodes of sockets")
        if self.unreclaimable_kib > before.unreclaimable_kib + 16 * 1024:
            found.append(f"{self.unreclaimable_kib - before.unreclaimable_kib} KiB of slabs")
        return found


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("fuzz") / "testrun_fuzz"
    if "BPFUNIT_FOREIGN" in os.environ:
        library = objects.fuzzer(platform.machine())
        assert library.is_file(), f"the fuzzer is compiled on the host: make bpf KERNELS={KERNEL}"
        program.write_text(STARTER.format(python=sys.executable, library=library))
        program.chmod(0o755)
        return program
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "build the fuzzer: no C compiler; install gcc"
    sources = sorted(SOURCES.glob("*.c"))
    command: list[str | Path] = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    command += ["-o", program, *sources]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return program


@pytest.fixture(autouse=True)
def no_modules_on_demand() -> Iterator[None]:
    """Unknown protocols would start modprobe each time, which takes longer than 1,000 requests."""
    before = MODPROBE.read_text()
    MODPROBE.write_text("\n")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    yield
    MODPROBE.write_text(before)


@contextmanager
def kernel_log() -> Iterator[Callable[[], list[str]]]:
    """Give a function that returns what the kernel has said since."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(fd, 0, os.SEEK_END)

    def read() -> list[str]:
        lines: list[str] = []
        while True:
            try:
                record = os.read(fd, 8192)
            except BlockingIOError:
                return lines
            except BrokenPipeError:  # the ring overtook us: go on with what is left
                continue
            lines.append(record.decode(errors="replace").partition(";")[2].split("\n")[0])

    yield read
    os.close(fd)


def fuzzers_left() -> list[str]:
    """The processes of the fuzzer that did not end, with their state (D: stuck in the kernel)."""
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, name, state = stat.read_text().split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name == "(testrun_fuzz)" and state != "Z":
            left.append(f"{pid} {state}")
    return left


def fuzz(program: Path, requests: int, *more: str) -> dict[str, int]:
    """Run the fuzzer, assert that its answers were in order, and return its figures."""
    command = [program, "--seed", SEED, "--requests", requests, "--seconds", SECONDS, *more]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return {
        name: int(float(value))
        for name, value in (line.split()[:2] for line in done.stdout.splitlines())
    }


# Takes memory until it is killed for it; the kernel takes this process first.
EATER = """
open("/proc/self/oom_score_adj", "w").write("1000")
taken = []
while True:
    taken.append(b"x" * (1 << 20))
"""


@contextmanager
def memory_short() -> Iterator[list[int]]:
    """Let processes take all memory until they are killed, one after the other; gives the kills."""
    kills: list[int] = []
    stop = threading.Event()

    def eat() -> None:
        while not stop.is_set():
            eater = subprocess.Popen([sys.executable, "-S", "-c", EATER])
            while eater.poll() is None and not stop.wait(0.1):
                pass
            if eater.poll() is None:
                eater.kill()
            elif eater.returncode == -signal.SIGKILL:
                kills.append(eater.pid)
            eater.wait()

    keeper = threading.Thread(target=eat)
    keeper.start()
    try:
        yield kills
    finally:
        stop.set()
        keeper.join()


def settle(before: State) -> list[str]:
    """Return what has leaked; connections that the fuzzer left half closed go after a minute.

    TCP waits 60 seconds for the other side's FIN (net.ipv4.tcp_fin_timeout), MPTCP as long.
    """
    deadline = time.monotonic() + 90
    while (leaks := State.now().leaks_since(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return leaks


def assert_left_as_it_was(fuzzer: Path, requests: int, *, kills: list[int] | None = None) -> None:
    """Fuzz, and look at what the kernel said and kept; with ``kills``, until memory ran out."""
    fuzz(fuzzer, 3000)  # fills the kernel's caches
    tainted = int(Path("/proc/sys/kernel/tainted").read_text())
    before = State.now()
    with kernel_log() as said:
        figures = fuzz(fuzzer, requests)
        # where others keep the machine busy, memory fills slowly
        deadline = time.monotonic() + 2 * SECONDS
        while kills is not None and len(kills) < 2 and time.monotonic() < deadline:
            figures = fuzz(fuzzer, requests)
        leaks = settle(before)
        splats = [line for line in said() if SPLAT.search(line)]
    assert not splats
    assert int(Path("/proc/sys/kernel/tainted").read_text()) == tainted
    assert not tainted & TAINTED_BY_A_SPLAT
    assert not leaks
    assert not fuzzers_left()
    assert figures["requests"] >= requests, "the time limit ended it"
    assert kills is None or kills, "memory was not short"
    ran = [count for name, count in figures.items() if name.startswith("ran_attach_type")]
    assert len(ran) == 12
    assert min(ran) > requests // 200, "an attach type was hardly reached"


def test_hostile_requests_leave_the_kernel_as_it_was(fuzzer: Path) -> None:
    assert_left_as_it_was(fuzzer, REQUESTS)


def test_hostile_requests_while_memory_is_short(fuzzer: Path) -> None:
    with memory_short() as kills:
        assert_left_as_it_was(fuzzer, REQUESTS // 10, kills=kills)
