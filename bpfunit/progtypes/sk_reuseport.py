"""``sk_reuseport`` programs: which socket of a group gets a packet (Linux 4.19), run by the module.

A program of ``sk_reuseport`` is attached to a group of sockets that are bound to one port, and
chooses among them by the packet. One of ``sk_reuseport/migrate`` (5.14) also says which listener
gets the connections of one that goes away. The engine ``live`` sends the packet, or closes a
listener (:mod:`bpfunit.progtypes.sk_reuseport_live`).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.sockets import reuseport_group
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.objects.maps import Map
from bpfunit.progtypes.base import (
    ContextError,
    LiveCalls,
    ProgramRef,
    RawOutcome,
    Request,
    register,
)
from bpfunit.progtypes.headed import VERSION, HeadedType
from bpfunit.progtypes.sk_reuseport_live import Crafted, ReuseportCalls, Seen
from bpfunit.progtypes.sock_addr.arrange import checksum
from bpfunit.progtypes.sockmap import cookie_of_inode
from bpfunit.runs.bulk import BulkRun
from bpfunit.runs.program import Program
from bpfunit.runs.result import Result
from bpfunit.values.net import Endpoint, EndpointLike

# struct bpfunit_sk_reuseport, bpfunit_sk_reuseport_result of vm/testrun/bpfunit_testrun.h
_HEADER, _RESULT = struct.Struct("=8I"), struct.Struct("=iIQQ")
_HASH_WORD = 5
_MIGRATE = 1  # BPFUNIT_SK_REUSEPORT_MIGRATE
_VERDICTS = ("drop", "hash", "select")  # enum bpfunit_sk_reuseport_verdict
_MAX = 4096 - 60  # BPFUNIT_SK_REUSEPORT_MAX, less what goes in front
_SYN = 2
_ID = 1  # of an IPv4 packet; the kernel puts another number in the place of 0
_HEADER_SIZE = {socket.IPPROTO_TCP: 20, socket.IPPROTO_UDP: 8}


class _Answer(NamedTuple):
    """``struct bpfunit_sk_reuseport_result``."""

    err: int
    verdict: int
    cookie: int
    inode: int

    def is_socket(self, where: socket.socket | Map, key: object) -> bool:
        """Tell whether this is the socket, or the one of a map's entry."""
        if _VERDICTS[self.verdict] != "select":
            return False
        if isinstance(where, Map):
            raw = where.lookup(key)
            cookie = self.cookie or cookie_of_inode(self.inode)
            return raw is not None and int.from_bytes(raw, sys.byteorder) == cookie
        return self.inode == os.fstat(where.fileno()).st_ino


def _answer(data: bytes) -> _Answer:
    return _Answer(*_RESULT.unpack_from(data))


class ReuseportResult(Result):
    """The outcome of a run of an sk_reuseport program.

    ``errno`` is ECONNREFUSED for a drop: nobody gets the packet.
    """

    def __init__(
        self, program: ProgramRef, engine: str, outcome: RawOutcome, ctx_in: Any = None
    ) -> None:
        super().__init__(program, engine, outcome, ctx_in)
        self._answer = _answer(outcome.data)

    @property
    def verdict(self) -> str:
        """What the kernel makes of the run: "select", "drop", or "hash".

        That is not the return value alone: a program that returns SK_PASS without a selection
        leaves it to the kernel, which goes by the packet's hash.
        """
        return _VERDICTS[self._answer.verdict]

    def selected(self, where: socket.socket | Map, key: object = ...) -> bool:
        """Tell whether the program selected this socket, or that of a map's entry.

        Args:
            where: a socket, or a map of sockets with 8-byte values: the kernel tells whose socket
                an entry is only where a cookie fits.
            key: the entry's key, where ``where`` is a map. The map is asked now.
        """
        return self._answer.is_socket(where, key)

    def describe(self) -> list[str]:
        """Return what came out as lines for the report of a failing test."""
        chosen = f", socket:[{self._answer.inode}]" if self.verdict == "select" else ""
        return [f"verdict {self.verdict}{chosen}"]


class ReuseportRun(BulkRun):
    """One run of a bulk call of an sk_reuseport program."""

    __slots__ = ()

    @property
    def verdict(self) -> str:
        """As :attr:`ReuseportResult.verdict`; "" for a run that was refused."""
        answer = self.data
        return _VERDICTS[_answer(answer).verdict] if answer else ""

    def selected(self, where: socket.socket | Map, key: object = ...) -> bool:
        """As :meth:`ReuseportResult.selected`."""
        answer = self.data
        return bool(answer) and _answer(answer).is_socket(where, key)


class ReuseportProgram(Program):
    """A program that chooses a socket of a group."""

    result_class = ReuseportResult
    run_class = ReuseportRun

    def run(
        self,
        data: bytes = b"",
        *,
        src: EndpointLike | None = None,
        dst: EndpointLike | None = None,
        sock: socket.socket | None = None,
        hash: int = 0,
        migrating: socket.socket | None = None,
        repeat: int = 1,
        observe: bool = True,
    ) -> ReuseportResult:
        """Run the program on a packet to a group of sockets and return what it chose.

        Args:
            data: what follows the UDP header, or that of TCP, whose packet is a SYN.
            src: where the packet comes from, by default port 40000 of the address it goes to.
            dst: where it goes to; by default the socket's own address, and loopback where that is
                none. Its port is the group's.
            sock: one of the group: a listener, or an unconnected UDP socket, with ``SO_REUSEPORT``.
                By default that of a group of one made for the run, in none of the object's maps.
            hash: of the packet's addresses and ports, as the program sees it. On the engines
                ``live`` and ``both`` 0 stands for the kernel's own, whatever that is.
            migrating: a connection of the listener that goes away (5.14, programs of
                ``sk_reuseport/migrate``). An accepted one stands in for those that nobody has
                accepted yet. There is no packet then.
            repeat: how often to run.
            observe: see :meth:`bpfunit.Program.run`.

        Raises:
            ContextError: an address that there is not, or data beside a connection that migrates.
            SyscallError: the module refused the run: ENOENT for a socket of no group, ENOTCONN for
                one that does not listen, EISCONN for a connected UDP socket, EPROTOTYPE or
                EAFNOSUPPORT for one that is neither TCP nor UDP, EADDRNOTAVAIL for a packet to
                somebody else, EOPNOTSUPP for ``migrating`` with a program that was not loaded for
                it; 524 (ENOTSUPP) without the module.
            NotApplicableError: no real packet shows this to the program: another hash than the
                kernel's, say.
        """
        self.check_open()
        with ExitStack() as stack:
            used = sock or stack.enter_context(reuseport_group(1))[0]
            request = self._request(used, data, src, dst, hash, migrating)
            result = self.execute(request._replace(repeat=repeat), observe=observe)
        return cast("ReuseportResult", result)

    def _request(
        self,
        sock: socket.socket,
        data: bytes = b"",
        src: EndpointLike | None = None,
        dst: EndpointLike | None = None,
        hash: int = 0,
        migrating: socket.socket | None = None,
    ) -> Request:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            self.refuse_input(data)
        if len(data) > _MAX:
            raise ContextError(f"run {self.name}: {len(data)} bytes; up to {_MAX} can be crafted")
        if not 0 <= hash < 1 << 32:
            raise ContextError(f"run {self.name}: hash={hash} has more than 32 bits")
        if migrating is not None:
            if data or src is not None or dst is not None:
                raise ContextError(
                    f"run {self.name}: a connection that migrates comes without a packet; leave out"
                    " data, src and dst"
                )
            header = _HEADER.pack(VERSION, _MIGRATE, 0, 0, 0, hash, migrating.fileno(), 0)
            return Request(None, sock, 1, header, _RESULT.size)
        try:
            transport, packet = _packet(sock, bytes(data), src, dst)
        except ValueError as error:
            raise ContextError(f"run {self.name}: {error}") from None
        header = _HEADER.pack(VERSION, 0, 0, 0, transport, hash, 0, 0)
        return Request(None, sock, 1, header + packet, _RESULT.size)

    def as_request(self, given: Any) -> Request:
        """Return the run on one input of :meth:`run_many`: the arguments of :meth:`run`, by name.

        ``sock`` is among them, since the packet goes to it.
        """
        if not isinstance(given, Mapping) or not isinstance(given.get("sock"), socket.socket):
            self.refuse_input(given)
        return self._request(**given)


def _packet(
    sock: socket.socket, data: bytes, src: EndpointLike | None, dst: EndpointLike | None
) -> tuple[int, bytes]:
    """Return a packet from its IP header on, and the size of that header."""
    host, port = _own_address(sock)
    target = Endpoint(host, port) if dst is None else Endpoint.parse(dst)
    source = Endpoint(target.host, 40000) if src is None else Endpoint.parse(src)
    if source.ip.version != target.ip.version:
        raise ValueError(f"a packet from {source} to {target}; both are of IPv4, or both of IPv6")
    tcp = sock.type == socket.SOCK_STREAM
    protocol = socket.IPPROTO_TCP if tcp else sock.proto or socket.IPPROTO_UDP
    size = len(data) + _HEADER_SIZE.get(protocol, 8)
    ports = struct.pack("!HH", source.port, target.port)
    if tcp:
        above = ports + struct.pack("!IIBBHHH", 0, 0, 5 << 4, _SYN, 0xFFFF, 0, 0)
    else:
        above = ports + struct.pack("!HH", size, 0)
    if target.ip.version == 4:
        ends = [socket.inet_aton(one.host) for one in (source, target)]
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + size, _ID, 0, 64, protocol, 0, *ends)
        ip = ip[:10] + (checksum(ip) % 0xFFFF).to_bytes(2, "big") + ip[12:]
    else:
        ends = [socket.inet_pton(socket.AF_INET6, one.host) for one in (source, target)]
        ip = struct.pack("!IHBB16s16s", 6 << 28, size, protocol, 64, *ends)
    pseudo = b"".join(ends) + struct.pack("!II", size, protocol)
    total = checksum(pseudo + above + data).to_bytes(2, "big")
    at = 16 if tcp else 6
    return len(ip), ip + above[:at] + total + above[at + 2 :] + data


def _own_address(sock: socket.socket) -> tuple[str, int]:
    """Return the address that packets to a socket have, loopback where it is bound to any."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return "127.0.0.1", 0  # the module says why
    try:
        host, port = sock.getsockname()[:2]
    except OSError:
        return "127.0.0.1", 0
    any_address = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return any_address.get(host, host.partition("%")[0]), port


class ReuseportType(HeadedType):
    """What is known of ``BPF_PROG_TYPE_SK_REUSEPORT``."""

    sections: Mapping[str, int] = {
        "sk_reuseport": AttachType.SK_REUSEPORT_SELECT,
        "sk_reuseport/migrate": AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE,
    }
    takes = "a packet's data, and a socket of the group (sock=)"
    verdicts: Mapping[int, str] = {0: "SK_DROP", 1: "SK_PASS"}
    headers = (_HEADER.size, _RESULT.size)
    hints: Mapping[int, str] = {
        errno.ENOENT: "the socket is in no group; set SO_REUSEPORT before it is bound, or take one"
        " of bpfunit.reuseport_group()",
        errno.ENOTCONN: "the socket does not listen, or the one that migrates is not connected",
        errno.EISCONN: "a connected UDP socket gets its packets without being chosen",
        errno.EPROTOTYPE: "the socket is neither TCP nor UDP, or the packet is of another protocol",
        errno.EADDRNOTAVAIL: "the packet, or the connection, is of another address or port than"
        " the group",
        errno.EOPNOTSUPP: "the program was not loaded for migration (sk_reuseport/migrate, 5.14)",
    }
    program_class = ReuseportProgram
    example = 'b"hello"'
    live = True

    def call_leaves_traces(self, attach_type: int) -> bool:
        """Nobody gets the packet, and the connection that migrates is ours."""
        return False

    def make_live_calls(self, cgroup: Cgroup) -> LiveCalls:
        """Return packets to a group of sockets that belong to this cgroup."""
        return ReuseportCalls(cgroup, _crafted, _packed, _with_hash)


def _crafted(data: bytes) -> Crafted:
    """Read what a request is made of."""
    _, flags, _, _, transport, told, migrating, _ = _HEADER.unpack_from(data)
    migrates = flags & _MIGRATE
    return Crafted(data[_HEADER.size :], transport, told, migrating if migrates else -1)


def _packed(seen: Seen) -> bytes:
    """Make an answer in the layout of the module's."""
    error = -errno.ECONNREFUSED if seen.verdict == "drop" else 0
    return _RESULT.pack(error, _VERDICTS.index(seen.verdict), seen.cookie, seen.inode)


def _with_hash(data: bytes, told: int) -> bytes:
    """Return a request's data with another hash."""
    words = list(_HEADER.unpack_from(data))
    words[_HASH_WORD] = told
    return _HEADER.pack(*words) + data[_HEADER.size :]


register(ReuseportType(ProgType.SK_REUSEPORT))
