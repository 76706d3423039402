"""What bpfunit itself costs: the same runs by its API, by a C program, and by today's ways.

All of it in one guest. In exact mode the figures are guest instructions, and what is left of them
after the raw system call is taken away is what user space does for one run.
"""

from __future__ import annotations

import ctypes
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bpfunit
from bpfunit._sys import bpf
from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import Cmd, TestRunAttr

RUNS = 2_000
BULK_RUNS = 20_000  # in one call, which has a fixed cost of its own
ROUNDS = 5
DESTINATION = ("10.96.0.1", 80)


@dataclass(frozen=True)
class Yardstick:
    """What the C program measured, per run."""

    libbpf: int
    raw: int

    @property
    def user_space(self) -> int:
        """What libbpf and the crafting cost beside the system call."""
        return self.libbpf - self.raw


def c_program(built: Path, obj: Path, program: str) -> Yardstick:
    """Run the C program and return the least of its figures."""
    command = [built / "test_run_loop", obj, program, str(RUNS)]
    figures = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    return Yardstick(*(min(figure[key] for figure in figures) for key in ("libbpf", "raw")))


def per_run(work: Callable[[], object], runs: int) -> list[int]:
    """Return what one run takes when ``work`` makes ``runs`` of them, for each of some rounds."""
    work()
    figures = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        work()
        figures.append((time.perf_counter_ns() - start) // runs)
    return figures


@pytest.fixture
def program(bpf_load: Any, built: Path) -> Any:
    """A program that does nothing, so that all there is to see is what surrounds it."""
    return bpf_load(built / "empty.bpf.o").programs.empty_connect4


@pytest.fixture
def yardstick(built: Path) -> Yardstick:
    """The C program's figures, taken in this guest."""
    return c_program(built, built / "empty.bpf.o", "empty_connect4")


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    """One socket for all runs, as the C program has."""
    with socket.socket() as opened:
        yield opened


@pytest.fixture
def report(bpf_benchmark: Any, yardstick: Yardstick) -> Callable[[list[int]], None]:
    """Record figures beside the C program's."""

    def record(figures: list[int]) -> None:
        own = min(figures) - yardstick.raw
        bpf_benchmark.fixture.extra_info.update(
            user_space_ns=own,
            c_user_space_ns=yardstick.user_space,
            system_call_ns=yardstick.raw,
            ratio_of_user_space=round(own / max(yardstick.user_space, 1), 2),
        )
        bpf_benchmark.record(figures)

    return record


@pytest.mark.benchmark(group="the framework's own overhead, per crafted run")
class TestOverhead:
    def test_c_program(self, bpf_benchmark: Any, yardstick: Yardstick):
        bpf_benchmark.fixture.extra_info.update(
            user_space_ns=yardstick.user_space, system_call_ns=yardstick.raw
        )
        bpf_benchmark.record([yardstick.libbpf])

    def test_single_run_api(self, report: Any, program: Any, sock: socket.socket):
        def work() -> None:
            for _ in range(100):
                program.run(dst=DESTINATION, sock=sock)

        report(per_run(work, 100))

    def test_bulk_api(self, report: Any, program: Any, sock: socket.socket):
        contexts = (bpfunit.BpfSockAddr * BULK_RUNS)(*[program.craft(DESTINATION)] * BULK_RUNS)

        report(per_run(lambda: program.run_many(contexts, sock=sock), BULK_RUNS))

    def test_floor_of_python(self, report: Any, program: Any, sock: socket.socket):
        """The bare system call through ctypes, all prepared, nothing read: no API can be below."""
        context = program.craft(DESTINATION)
        context.sk = sock.fileno()
        out = bpfunit.BpfSockAddr()
        attr = TestRunAttr(prog_fd=program.fd)
        attr.ctx_in, attr.ctx_size_in = ctypes.addressof(context), ctypes.sizeof(context)
        attr.ctx_out, attr.ctx_size_out = ctypes.addressof(out), ctypes.sizeof(out)

        def work() -> None:
            for _ in range(100):
                bpf.call(Cmd.PROG_TEST_RUN, attr)

        report(per_run(work, 100))

    def test_bpftool_for_each_case(self, bpf_benchmark: Any, program: Any, tmp_path: Path):
        context = tmp_path / "ctx"
        context.write_bytes(bytes(program.craft(DESTINATION)))
        command = ["bpftool", "prog", "run", "id", str(program.id), "ctx_in", str(context)]
        command += ["ctx_out", "/dev/null", "repeat", "1"]
        bpf_benchmark.record(
            per_run(lambda: subprocess.run(command, check=True, capture_output=True), 1)
        )

    def test_real_connect_for_each_case(self, bpf_benchmark: Any, program: Any):
        with socket.socket() as server, Cgroup("overhead") as cgroup:
            server.bind(("127.0.0.1", 0))
            server.listen(4 * ROUNDS)
            cgroup.enter()

            def work() -> None:
                with cgroup.attached(program.attach_type, program.fd), socket.socket() as client:
                    client.connect(server.getsockname())
                    client.getpeername()

            bpf_benchmark.record(per_run(work, 1))
