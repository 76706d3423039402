"""What the module refuses, held against real calls: it runs what they show a hook, and no more.

Every type of socket makes every call, with every family written into the address, while a program
of each attach type looks on. A hook that saw such a socket and such a family is one that the module
runs; one that did not is refused.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bpfunit._sys import sockets
from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType
from bpfunit.errors import SyscallError
from bpfunit.progtypes.sock_addr import HOOKS
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun
from .rawrun import BpfSockAddr, Cells, RawProgram

pytestmark = pytest.mark.guest

V4, V6 = socket.AF_INET, socket.AF_INET6
WRITTEN = (0, 1, V4, V6, 99, 0xFFFF)  # families that callers write into an address
_SO_COOKIE, _GET_SOCKET_COOKIE, _IPV6_TCLASS = 57, 46, 67
_PING_GROUPS = Path("/proc/sys/net/ipv4/ping_group_range")
_ECHO = {V4: struct.pack("!BBHHH", 8, 0, 0xF7FE, 0, 1), V6: struct.pack("!BBHHH", 128, 0, 0, 0, 1)}


class Endpoint(NamedTuple):
    """A socket's family, type and protocol."""

    family: int
    type: int
    protocol: int
    only: bool = False  # IPV6_V6ONLY

    def make(self) -> socket.socket:
        made = socket.socket(*self[:3])
        if self.only:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return made

    @property
    def loopback(self) -> str:
        return "127.0.0.1" if self.family == V4 else "::1"


ENDPOINTS = {
    "tcp4": Endpoint(V4, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "tcp6": Endpoint(V6, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "mptcp4": Endpoint(V4, socket.SOCK_STREAM, 262),
    "mptcp6": Endpoint(V6, socket.SOCK_STREAM, 262),
    "udp4": Endpoint(V4, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "udp6": Endpoint(V6, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "udp6 only": Endpoint(V6, socket.SOCK_DGRAM, socket.IPPROTO_UDP, only=True),
    "udplite4": Endpoint(V4, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE),
    "udplite6": Endpoint(V6, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE),
    "ping4": Endpoint(V4, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
    "ping6": Endpoint(V6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6),
    "raw4": Endpoint(V4, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "raw6": Endpoint(V6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
}


class Onlookers:
    """A program for each attach type, which notes the family that it sees of one socket."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._cgroup = self._stack.enter_context(Cgroup("census"))
        self._stack.enter_context(self._cgroup.entered())
        self._cells = self._stack.enter_context(closing(Cells(2 + 2 * (max(HOOKS) + 1))))
        self._programs = {
            attach_type: self._stack.enter_context(RawProgram(self._code(attach_type), attach_type))
            for attach_type in HOOKS
        }

    def _code(self, attach_type: int) -> list[Insn]:
        place = 8 * (1 + attach_type)
        note = [
            asm.load(4, 1, 8, place),
            asm.alu_imm(asm.ADD, 1, 1),
            asm.store(4, 8, place, 1),
            asm.load(4, 1, 6, rawrun.USER_FAMILY),
            asm.store(4, 8, place + 4, 1),
        ]
        return [
            asm.mov_reg(6, 1),
            rawrun.call(_GET_SOCKET_COOKIE),
            *asm.load_map_value(8, self._cells.fd, 0),
            asm.load(8, 1, 8, 0),
            Insn(asm.JMP | asm.JNE | asm.SRC_REG, 0, 1, len(note)),
            *note,
            *rawrun.ALLOW,
        ]

    def seen(self, sock: socket.socket, call: Callable[[], object]) -> set[tuple[int, int]]:
        """Make a call; return the attach types that saw the socket, each with ``user_family``."""
        cookie = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
        self._cells.write(cookie)
        with ExitStack() as attached:
            for attach_type, program in self._programs.items():
                attached.enter_context(self._cgroup.attached(attach_type, program.fd))
            call()
        cells = self._cells.read()
        return {(t, cells[2 * t + 3]) for t in self._programs if cells[2 * t + 2]}

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def onlookers() -> Iterator[Onlookers]:
    groups = _PING_GROUPS.read_text()
    _PING_GROUPS.write_text("0 0")  # so that root may make ping sockets
    with closing(Onlookers()) as made:
        yield made
    _PING_GROUPS.write_text(groups)


def address(family: int, endpoint: Endpoint) -> bytes:
    """An address with this family written into it, at the length of ``sockaddr_in6``."""
    if endpoint.family == V4 or family == V4:
        return struct.pack("=H2s4s20x", family, b"\x0f\xa0", socket.inet_aton("10.1.2.3"))
    if family == 0:
        return bytes(28)  # without address and port: the module takes no other for sendmsg6
    return struct.pack("=H2s4x16s4x", family, b"\x0f\xa0", socket.inet_pton(V6, "fd00::9"))


@contextmanager
def connected(endpoint: Endpoint) -> Iterator[socket.socket]:
    """A socket with a peer on loopback, which sends it something."""
    with endpoint.make() as sock, endpoint.make() as other:
        if endpoint.type == socket.SOCK_STREAM:
            other.bind((endpoint.loopback, 0))
            other.listen()
            sock.connect(other.getsockname()[:2])
            with other.accept()[0] as accepted:
                accepted.send(b"x")
                yield sock
            return
        if endpoint.protocol in (socket.IPPROTO_UDP, socket.IPPROTO_UDPLITE):
            other.bind((endpoint.loopback, 0))
            sock.connect(other.getsockname()[:2])
            other.sendto(b"x", sock.getsockname()[:2])
        else:
            sock.connect(
                (endpoint.loopback, 1)
            )  # a port, though it means nothing: getpeername asks
            sock.send(_ECHO[socket.AddressFamily(endpoint.family)])
        yield sock


@contextmanager
def _mapped(endpoint: Endpoint) -> Iterator[socket.socket]:
    """A dual-stack socket whose datagram came over IPv4."""
    with endpoint.make() as sock, Endpoint(V4, *endpoint[1:3]).make() as other:
        sock.bind(("::", 0))
        other.sendto(b"x", ("127.0.0.1", sock.getsockname()[1]))
        yield sock


def real(onlookers: Onlookers, endpoint: Endpoint) -> set[tuple[int, int]]:
    """Every hook that any call on such a socket runs, each with the family that it sees."""
    found = set[tuple[int, int]]()
    for family in WRITTEN:
        for call in (sockets.connect, sockets.bind, _send):
            with endpoint.make() as sock:
                sock.setblocking(False)
                where = address(family, endpoint)
                found |= onlookers.seen(sock, lambda: call(sock.fileno(), where))  # noqa: B023
    with connected(endpoint) as sock:
        sock.settimeout(2)
        found |= onlookers.seen(sock, sock.getpeername)
        if endpoint.type == socket.SOCK_DGRAM and endpoint.family == V6:
            # without an address, but not as a connected socket sends: with control data
            control = [(socket.IPPROTO_IPV6, _IPV6_TCLASS, struct.pack("=i", 0))]
            found |= onlookers.seen(sock, lambda: sock.sendmsg([_ECHO[V6]], control))
        found |= onlookers.seen(sock, lambda: sock.recvfrom(64))
        found |= onlookers.seen(sock, sock.getsockname)
    if endpoint.family == V6 and not endpoint.only and endpoint.protocol in (17, 136):
        with _mapped(endpoint) as sock:
            sock.settimeout(2)
            found |= onlookers.seen(sock, lambda: sock.recvfrom(64))
    return found


def _send(fd: int, where: bytes) -> int:
    return sockets.sendmsg(fd, b"x", where, b"", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def crafted(programs: dict[int, RawProgram], endpoint: Endpoint) -> set[tuple[int, int]]:
    """The contexts of the same grid that the module runs on such a socket."""
    found = set[tuple[int, int]]()
    for attach_type, program in programs.items():
        for family in WRITTEN:
            with endpoint.make() as sock:
                context = BpfSockAddr(user_family=family, sk=sock.fileno())
                try:
                    program.run(context)
                except SyscallError:
                    continue
                found.add((attach_type, family))
    return found


def _named(pairs: set[tuple[int, int]]) -> list[str]:
    return sorted(f"{AttachType(t).name.removeprefix('CGROUP_')} family {f}" for t, f in pairs)


@pytest.mark.parametrize("name", ENDPOINTS)
def test_module_runs_what_real_calls_show_and_no_more(onlookers: Onlookers, name: str) -> None:
    endpoint = ENDPOINTS[name]
    try:
        endpoint.make().close()
    except OSError as error:
        major, minor = (int(part) for part in os.uname().release.split(".")[:2])
        lacking = {"udplite": major >= 7, "mptcp": (major, minor) == (5, 10)}
        if not lacking.get(name[:-1]):  # those have it; a skip would hide that none can be made
            raise
        pytest.skip(f"{name}: {error}; Debian's 5.10 has no MPTCP, 7.2 and 7.3 have no UDP-Lite")
    with ExitStack() as stack:
        programs: dict[int, Any] = {
            attach_type: stack.enter_context(RawProgram(rawrun.ALLOW, attach_type))
            for attach_type in HOOKS
        }
        by_module = crafted(programs, endpoint)
    assert _named(by_module) == _named(real(onlookers, endpoint))
