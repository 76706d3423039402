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

from . import rawrun, rawtcp
from . import test_module_reuseport as reuseport
from . import test_module_sock as sock_type
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


def test_runs_on_sockets_and_groups_hold_nothing_of_them() -> None:
    """cgroup_sock and sk_reuseport: what ran, what was refused, and wrong descriptors."""
    with (
        rawtcp.no_tcp_connections() as wrong,
        sock_type.load(rawrun.ALLOW, sock_type.RELEASE) as of_socket,
        reuseport.Program(reuseport.PASS) as of_group,
    ):
        before = sockets(), open_descriptors(), rawrun.loaded_programs()
        for _ in range(RUNS // 10):
            with reuseport.group() as members, socket.socket() as sock:
                end = reuseport.where(members[0])
                packet = reuseport.packet(("10.0.0.9", 5), end)
                elsewhere = reuseport.packet(("10.0.0.9", 5), (end[0], end[1] ^ 1))
                assert of_group.ask(members[0], packet).verdict == reuseport.HASH
                for body, fd in ((elsewhere, members[0].fileno()), (packet, sock.fileno())):
                    with pytest.raises(SyscallError):
                        of_group.request(data=reuseport.request(body, sock=fd), ctx_room=0)
                of_socket.request(data=rawtcp.head(sock.fileno()), ctx_room=0, data_room=64)
                for fd, _ in wrong.values():
                    with pytest.raises(SyscallError):
                        of_group.request(data=reuseport.request(packet, sock=fd), ctx_room=0)
        assert settled(sockets, before[0]) == before[0]
        assert (open_descriptors(), rawrun.loaded_programs()) == before[1:]


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
