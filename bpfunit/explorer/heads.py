"""Types that the module runs by a header and a payload: what to begin with, and how tests say it.

A search sees such an input as a context, the header, and data, the payload. Where the header has a
descriptor stands what kind of socket `_native/explore.c` makes for it: its role, family and type.
The sockets of a connection have the same addresses in every run, so that a program finds again what
it keeps by them.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from bpfunit._sys.sockets import reuseport_group
from bpfunit._sys.uapi import AttachType
from bpfunit.progtypes.headed import VERSION, HeadedType
from bpfunit.progtypes.sock_ops import CB_FLAGS, OPS, STATES, tcp_header

Pair = tuple[bytes, bytes]

SOCK_AT = 8  # offset of the descriptor in struct bpfunit_head
_FLAGS_AT = 4
CLIENT, SERVER, LISTENER, FRESH, BOUND, GROUP = range(1, 7)  # enum role of _native/explore.c
_PORTS = {SERVER: 20080, CLIENT: 20081}
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_TYPES = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
_HEADROOM = 256  # that of sk_msg and sk_skb by default
_HTTP = b"GET /index.html HTTP/1.1\r\nHost: a.example\r\n\r\n".ljust(64, b"\0")
_MESSAGES = (_HTTP, bytes(64), _HTTP[:20], _HTTP[:8], b"\0", bytes(range(1, 201)), bytes(1024))
_OPTIONS = b"\x02\x04\x05\xb4\xfd\x04\xeb\x9f\x01\x03\x03\x07"  # MSS, an experiment, window scale
_ENDED = b"\xfe\x04\x12\x34\x00"


_LONG_TAIL = 9  # of zeroes


def text_of(raw: bytes) -> str:
    """Return bytes as Python text, zeroes at the end short."""
    tail = len(raw) - len(raw.rstrip(b"\0"))
    if tail < _LONG_TAIL:
        return repr(raw)
    return f"bytes({tail})" if tail == len(raw) else f"{raw[:-tail]!r} + bytes({tail})"


def kind(role: int, family: int = socket.AF_INET, type: int = socket.SOCK_STREAM) -> int:
    """Return the number of a kind of socket."""
    return role | family << 8 | type << 16


class Head(ABC):
    """What the explorer knows of one such type.

    Attributes:
        words: (offset, bytes) of what an input may choose in the header.
        shown: bytes of the answer that are compared; the rest names sockets.
    """

    words: Sequence[tuple[int, int]] = ()
    shown: int = 0

    def __init__(self, program: Any) -> None:
        self.program = program
        self.type: HeadedType = program.program_type
        self.size = self.type.headers[0]

    def pairs(self) -> list[Pair]:
        """Return header and payload of inputs to begin with."""
        return list(dict.fromkeys(self._pairs()))

    def contexts(self) -> list[bytes]:
        """Return the headers that another one may be tried in place of."""
        return list(dict.fromkeys(head for head, _ in self.pairs()))

    @abstractmethod
    def _pairs(self) -> Iterator[Pair]:
        """Yield header and payload of inputs to begin with, some of them more than once."""

    def _pair(self, given: Any, sock: int) -> Pair:
        """Return a run as the program's own ``as_request`` crafts it, on a kind of socket."""
        data = self.program.as_request(given).data
        return _with(data[: self.size], SOCK_AT, sock), data[self.size :]

    @abstractmethod
    def call(self, head: bytes, data: bytes, grown: int = 0) -> str:
        """Return the arguments of ``program.run`` but for the socket.

        Args:
            head: the header.
            data: the payload.
            grown: bytes by which the payload was longer after the run.
        """

    @abstractmethod
    def told(self, answer: bytes, data: bytes) -> Iterator[str]:
        """Yield assertions of an answer and the payload after the run."""


def _with(head: bytes, offset: int, number: int) -> bytes:
    """Return a header with another word."""
    return head[:offset] + struct.pack("=I", number) + head[offset + 4 :]


def words_of(head: bytes) -> tuple[int, int, int]:
    """Return role, family and type of the socket that a header asks for."""
    (number,) = struct.unpack_from("=I", head, SOCK_AT)
    return number & 0xFF, number >> 8 & 0xFF, number >> 16 & 0xFF


def socket_lines(head: bytes) -> list[str]:
    """Return the ``with`` that makes ``sock`` and, of a pair, ``peer``, and what follows it."""
    role, family, of_type = words_of(head)
    if not role:
        return []
    name = f"socket.{socket.AddressFamily(family).name}"
    stream = f"socket.{socket.SocketKind(of_type).name}"
    host = _LOOPBACK.get(socket.AddressFamily(family), "")
    server, client = ((host, _PORTS[one]) for one in (SERVER, CLIENT))
    if role in (CLIENT, SERVER):
        ends = "(sock, peer)" if role == CLIENT else "(peer, sock)"
        of_family = f"{name}, " if family == socket.AF_INET6 else ""
        return [
            f"with tcp_pair({of_family}client={_text(client)}, server={_text(server)}) as {ends}:"
        ]
    if role == GROUP:
        made = f"reuseport_group(1, family={name}, type={stream}, address={_text(server)})"
        return [f"with {made} as (sock,):"]
    lines = [f"with socket.socket({name}, {stream}) as sock:"]
    if role in (BOUND, LISTENER):
        lines.append(f"    sock.bind({_text(server)})")
    if role == LISTENER:
        lines.append("    sock.listen()")
    return lines


class SockOps(Head):
    """Ops, on the sockets on which kernels call them."""

    words = tuple((offset, 4) for offset in (20, 24, 28, 32))
    shown = 32
    _layout = struct.Struct("=4I7I20x")
    _answer = struct.Struct("=i4IIII")

    def _pairs(self) -> Iterator[Pair]:
        packet = tcp_header("A", _OPTIONS + _ENDED)
        for family in _FAMILIES:
            for op in OPS:
                ends = [LISTENER] if op == "tcp_listen" else [CLIENT, SERVER]
                for role in ends[:1] if op == "active_established" else ends[::-1][:2]:
                    for more in self._variants(op, packet):
                        yield self._pair((op, {"cb_flags": [], **more}), kind(role, family))

    @staticmethod
    def _variants(op: str, packet: bytes) -> list[dict[str, Any]]:
        if op == "state":
            return [{"args": args} for args in (["established", "close"], ["established", 4])]
        if op == "parse_hdr_opt":
            return [{"skb": packet}, {"skb": tcp_header("A")}]
        if op in ("hdr_opt_len", "write_hdr_opt"):
            return [{}, {"option_room": 4}]
        if op in ("active_established", "passive_established"):
            return [{}, {"skb": packet}, {"skb": tcp_header("SA", _OPTIONS)}]
        if op in ("rto", "retrans", "rtt"):
            return [{"args": [1, 2]}]
        return [{}]

    def call(self, head: bytes, data: bytes, grown: int = 0) -> str:
        """Return the op and what goes with it."""
        _, flags, _, _, number, *args, bits, room = self._layout.unpack(head)
        op = next((name for name, one in OPS.items() if one == number), str(number))
        parts = [f'"{op}"']
        if op == "state":
            names = {one: name for name, one in STATES.items()}
            parts.append(f"args={[names.get(one, one) for one in args[:2]]}")
        elif any(args):
            last = max(n for n, one in enumerate(args) if one)
            parts.append(f"args={args[: last + 1]}")
        if data:
            parts.append(f"skb={text_of(data)}")
        if flags:
            parts.append(f"cb_flags={[name for name, bit in CB_FLAGS.items() if bits & bit]}")
        if room:
            parts.append(f"option_room={room}")
        return ", ".join(parts)

    def told(self, answer: bytes, data: bytes) -> Iterator[str]:
        """Yield the reply, the callbacks, the options."""
        err, *reply, bits, room, _ = self._answer.unpack(answer)
        signed = -1 if err else reply[0] - (1 << 32) if reply[0] >> 31 else reply[0]
        yield f"assert run.reply == {signed}"
        if any(reply[1:]):
            yield f"assert run.replylong == {tuple(reply)}"
        flags = sorted(name for name, bit in CB_FLAGS.items() if bits & bit)
        yield f"assert sorted(run.cb_flags) == {flags}"
        if room:
            yield f"assert run.option_room == {room}"
        if data:
            yield f"assert run.data == {text_of(data)}"


class _Redirecting(Head):
    """Data of a connection, with a verdict."""

    shown = 24
    _verdicts: Sequence[str] = ()

    def _messages(self, usual: int, other: int) -> Iterator[Pair]:
        """Yield all messages on the end that is the usual one, and one on the other."""
        for family in _FAMILIES:
            for message in _MESSAGES:
                yield self._pair(message, kind(usual, family))
            yield self._pair(_MESSAGES[0], kind(other, family))

    def told(self, answer: bytes, data: bytes) -> Iterator[str]:
        """Yield the verdict, the error, the bytes."""
        err, verdict = struct.unpack_from("=iI", answer)
        yield f'assert (run.verdict, run.errno) == ("{self._verdicts[verdict]}", {-min(err, 0)})'
        yield f"assert run.data == {text_of(data)}"


class SkMsg(_Redirecting):
    """Messages, whole and of somebody else's pages."""

    _verdicts = ("drop", "pass", "redirect")

    def _pairs(self) -> Iterator[Pair]:
        for head, data in self._messages(CLIENT, SERVER):
            yield head, data
            yield _with(head, _FLAGS_AT, 1), data  # the pages are somebody else's

    def call(self, head: bytes, data: bytes, grown: int = 0) -> str:
        """Return the message."""
        shared = ", shared=True" if struct.unpack_from("=I", head, _FLAGS_AT)[0] else ""
        return f"{text_of(data)}{shared}{_headroom(grown)}"

    def told(self, answer: bytes, data: bytes) -> Iterator[str]:
        """Yield what is told of all, and for how many bytes."""
        yield from super().told(answer, data)
        apply_bytes, cork_bytes = struct.unpack_from("=II", answer, 12)
        if apply_bytes or cork_bytes:
            yield f"assert (run.apply_bytes, run.cork_bytes) == ({apply_bytes}, {cork_bytes})"


class SkSkb(_Redirecting):
    """What came in: seen at once, or only after a pull."""

    words = ((24, 4),)  # the priority
    _verdicts = ("drop", "pass", "redirect", "parsed")

    def _pairs(self) -> Iterator[Pair]:
        for head, data in self._messages(SERVER, CLIENT):
            yield _with(head, 20, len(data)), data  # all of it lies in front
            yield head, data

    def call(self, head: bytes, data: bytes, grown: int = 0) -> str:
        """Return the bytes, and how many lie in front."""
        hook, linear, priority = struct.unpack_from("=III", head, 16)
        parts = [text_of(data)]
        if self.program.section == "sk_skb":
            parts.append(f'hook="{("", "parser", "verdict")[hook]}"')
        parts += [f"{name}={n}" for name, n in (("linear", linear), ("priority", priority)) if n]
        return ", ".join(parts) + _headroom(grown)

    def told(self, answer: bytes, data: bytes) -> Iterator[str]:
        """Yield what is told of all, and the priority."""
        yield from super().told(answer, data)
        priority, index = struct.unpack_from("=II", answer, 16)
        if priority or index:
            yield f"assert (run.priority, run.tc_index) == ({priority}, {index})"


class Sockopt(Head):
    """Options, as the caller sets them or the kernel answered."""

    words = ((16, 4), (20, 4))
    shown = 28
    _answer = struct.Struct("=5iII")

    def _pairs(self) -> Iterator[Pair]:
        values = (struct.pack("=i", 1), bytes(4), b"cubic".ljust(16, b"\0"), bytes(64), b"\1")
        options = (
            *((socket.SOL_SOCKET, one) for one in (socket.SO_SNDBUF, socket.SO_MARK)),
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            *((socket.IPPROTO_IP, socket.IP_TOS), (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)),
        )
        call = self.program.call or "setsockopt"
        for family in _FAMILIES:
            for of_type in _TYPES:
                sock = kind(FRESH, family, of_type)
                for option in options:
                    for value in values if of_type == socket.SOCK_STREAM else values[:1]:
                        yield self._pair((call, *option, value), sock)
        if call == "getsockopt":
            for failure in (errno.ENOPROTOOPT, errno.EPERM):
                yield self._pair((call, *options[0], None, 4, failure), kind(FRESH))
            yield self._pair((call, *options[0], values[0], 4096), kind(FRESH))
        else:
            yield self._pair((call, *options[0], b""), kind(FRESH))
            yield self._pair((call, *options[0], bytes(4096)), kind(FRESH))

    def call(self, head: bytes, data: bytes, grown: int = 0) -> str:
        """Return the call."""
        level, optname, room, failure = struct.unpack_from("=iiIi", head, 16)
        call = self.program.call or "setsockopt"
        parts = [f'"{call}"', str(level), str(optname)]
        parts += [text_of(data)] if data or call == "setsockopt" else []
        if call == "getsockopt":
            parts += [f"room={room}"] + ([f"failure={-failure}"] if failure else [])
        return ", ".join(parts)

    def told(self, answer: bytes, data: bytes) -> Iterator[str]:
        """Yield what the caller and the kernel see."""
        err, level, optname, optlen, retval, action, size = self._answer.unpack(answer)
        yield f"assert (run.errno, run.level, run.optname) == ({-min(err, 0)}, {level}, {optname})"
        yield f"assert (run.ctx_optlen, run.ctx_retval) == ({optlen}, {retval})"
        if action == 1 and not err:
            yield f"assert run.optval == {text_of(data[:size][:optlen])}"


class Sysctl(Head):
    """Names of /proc/sys, read and written."""

    words = ((32, 4),)  # the position
    shown = 24

    _names = (
        *("net/ipv4/tcp_mem", "net/ipv4/ip_local_port_range", "kernel/hostname"),
        *("net/core/somaxconn", "net/ipv4/route/mtu_expires", "net/ipv4/conf/all/forwarding"),
    )

    def _pairs(self) -> Iterator[Pair]:
        for name in self._names:
            for current in (b"1\n", b"100 200 300\n", b""):
                yield self._pair((name, None, current), 0)
                for new in (b"600", b"1 2 3"):
                    yield self._pair((name, new, current), 0)

    def contexts(self) -> list[bytes]:
        """Return one: the lengths in a header go with its payload alone."""
        return super().contexts()[:1]

    def call(self, head: bytes, data: bytes, grown: int = 0) -> str:
        """Return the name and the values."""
        flags = struct.unpack_from("=I", head, _FLAGS_AT)[0]
        sizes = struct.unpack_from("=3I", head, 16)
        (position,) = struct.unpack_from("=q", head, 32)
        name, current = data[: sizes[0]], data[sizes[0] : sizes[0] + sizes[1]]
        parts = [repr(os.fsdecode(name)), f"current={current!r}"]
        if flags:
            parts.append(f"write={data[sizes[0] + sizes[1] :]!r}")
        if position:
            parts.append(f"file_pos={position}")
        return ", ".join(parts)

    def told(self, answer: bytes, data: bytes) -> Iterator[str]:
        """Yield the error, the new value, the position."""
        (err,) = struct.unpack_from("=i", answer)
        (position,) = struct.unpack_from("=q", answer, 16)
        yield f"assert (run.errno, run.file_pos) == ({-min(err, 0)}, {position})"
        if data:
            yield f"assert run.new == {data!r}"


class Sock(Head):
    """Sockets, made or bound."""

    shown = 16

    def _pairs(self) -> Iterator[Pair]:
        wanted = {
            AttachType.CGROUP_INET4_POST_BIND: (BOUND, _FAMILIES[:1]),
            AttachType.CGROUP_INET6_POST_BIND: (BOUND, _FAMILIES[1:]),
        }
        role, families = wanted.get(self.program.attach_type, (FRESH, _FAMILIES))
        for family in families:
            for of_type in _TYPES:
                head = struct.pack("=4I", VERSION, 0, kind(role, family, of_type), 0)
                yield head, b""

    def call(self, head: bytes, data: bytes, grown: int = 0) -> str:
        """Return nothing: the socket is all."""
        return ""

    def told(self, answer: bytes, data: bytes) -> Iterator[str]:
        """Yield what the program left in the socket."""
        err, *fields = struct.unpack("=i3I", answer)
        yield f"assert (run.errno, *run.fields) == {(-min(err, 0), *fields)}"


class Reuseport(Head):
    """Packets to a group."""

    words = ((20, 4),)  # the hash
    shown = 8

    def _pairs(self) -> Iterator[Pair]:
        for family in _FAMILIES:
            for of_type in _TYPES[::-1]:
                address = (_LOOPBACK[family], _PORTS[SERVER])
                with reuseport_group(1, family=family, type=of_type, address=address) as (sock,):
                    for data in (_HTTP, b"", bytes(8)):
                        given = {"sock": sock, "data": data}
                        yield self._pair(given, kind(GROUP, family, of_type))

    def call(self, head: bytes, data: bytes, grown: int = 0) -> str:
        """Return what follows the packet's headers, and where it comes from."""
        transport, hashed = struct.unpack_from("=II", head, 16)
        _, family, of_type = words_of(head)
        size = transport + (20 if of_type == socket.SOCK_STREAM else 8)
        six = family == socket.AF_INET6
        address = data[8:24] if six else data[12:16]
        host = socket.inet_ntop(socket.AddressFamily(family), address)
        (port,) = struct.unpack_from("!H", data, transport)
        parts = [text_of(data[size:]), f'src="[{host}]:{port}"' if six else f'src="{host}:{port}"']
        return ", ".join(parts + ([f"hash={hashed}"] if hashed else []))

    def told(self, answer: bytes, data: bytes) -> Iterator[str]:
        """Yield the verdict."""
        verdict = ("drop", "hash", "select")[struct.unpack_from("=I", answer, 4)[0]]
        yield f'assert run.verdict == "{verdict}"'


def _headroom(grown: int) -> str:
    return f", headroom={grown}" if grown > _HEADROOM else ""


def _text(address: tuple[str, int]) -> str:
    return f'("{address[0]}", {address[1]})'


_HEADS: dict[str, type[Head]] = {
    "sock_ops": SockOps,
    "sk_msg": SkMsg,
    "sk_skb": SkSkb,
    "cgroup_sockopt": Sockopt,
    "cgroup_sysctl": Sysctl,
    "cgroup_sock": Sock,
    "sk_reuseport": Reuseport,
}


def head_of(program: Any) -> Head | None:
    """Return what is known of a program's type, None for one without a header."""
    found = _HEADS.get(program.program_type.name)
    return None if found is None else found(program)
