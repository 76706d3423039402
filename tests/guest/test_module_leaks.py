"""What is left after many runs: nothing."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfunit._sys.uapi import AttachType
from bpfunit.errors import SyscallError

from . import rawrun
from .rawrun import BpfSockAddr, RawProgram

pytestmark = pytest.mark.guest

RUNS = 2000


def sockets() -> dict[str, int]:
    """The sockets that each protocol of the kernel counts, from /proc/net/protocols."""
    lines = Path("/proc/net/protocols").read_text().splitlines()[1:]
    return {line.split()[0]: int(line.split()[2]) for line in lines}


def open_descriptors() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def settled(measure: Callable[[], object], expected: object) -> object:
    """Measure until the expected is found, for five seconds: RCU frees late."""
    deadline = time.monotonic() + 5
    while (found := measure()) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("attach_type", "sock_type"),
    [
        (AttachType.CGROUP_INET4_CONNECT, socket.SOCK_STREAM),
        (AttachType.CGROUP_INET6_CONNECT, socket.SOCK_STREAM),
        (AttachType.CGROUP_UDP4_SENDMSG, socket.SOCK_DGRAM),
        (AttachType.CGROUP_INET6_BIND, socket.SOCK_DGRAM),
    ],
    ids=str,
)
def test_sockets_made_for_runs_are_released(attach_type: int, sock_type: int) -> None:
    with RawProgram(rawrun.ALLOW, attach_type) as program:
        crafted = program.craft(type=sock_type)
        before = sockets()
        for _ in range(RUNS):
            program.run(crafted)
        assert settled(sockets, before) == before


def test_refused_runs_release_their_sockets() -> None:
    """Refusals that come after the socket was made or taken."""
    with RawProgram(rawrun.ALLOW) as program, socket.socket(type=socket.SOCK_DGRAM) as sock:
        own = program.craft(type=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP)
        callers = program.craft()
        callers.sk = sock.fileno()
        before = sockets()
        for context in (own, callers):
            for _ in range(RUNS):
                with pytest.raises(SyscallError):
                    program.run(context)
        assert settled(sockets, before) == before


def test_callers_socket_is_gone_when_the_caller_closes_it() -> None:
    with RawProgram(rawrun.ALLOW) as program:
        before = sockets()
        for _ in range(RUNS):
            with socket.socket() as sock:
                context = BpfSockAddr(user_family=socket.AF_INET, sk=sock.fileno())
                program.run(context)
        assert settled(sockets, before) == before


def test_runs_open_no_descriptors() -> None:
    with RawProgram(rawrun.ALLOW) as program:
        before = open_descriptors()
        for _ in range(100):
            program.run(program.craft())
        assert open_descriptors() == before


def test_programs_go_when_their_last_descriptor_does() -> None:
    gc.collect()  # programs that other tests dropped would go while these are counted
    before = rawrun.loaded_programs()
    for _ in range(50):
        with RawProgram(rawrun.ALLOW) as program:
            program.run(program.craft())
    assert settled(rawrun.loaded_programs, before) == before
