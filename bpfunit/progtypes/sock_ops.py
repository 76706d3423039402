"""``sock_ops`` programs: the life of a TCP connection, op by op (Linux 4.13)."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.sockets import tcp_pair
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.progtypes.base import ContextError, LiveCalls, Request, register
from bpfunit.progtypes.headed import VERSION, HeadedType
from bpfunit.progtypes.packet import PacketResult
from bpfunit.progtypes.sock_ops_live import Crafted, Seen, SockOpsCalls
from bpfunit.runs.bulk import BulkRun
from bpfunit.runs.program import Program

# struct bpfunit_sock_ops, bpfunit_sock_ops_result of vm/testrun/bpfunit_testrun.h
_HEADER, _RESULT = struct.Struct("=4I7I20x"), struct.Struct("=i4IIII")
_OP_OFFSET = 16
_SET_CB_FLAGS = 1  # BPFUNIT_SOCK_OPS_SET_CB_FLAGS
_MAX = 2048  # BPFUNIT_SOCK_OPS_MAX
_MIN_TCP_HEADER = 20

# enum of include/uapi/linux/bpf.h: BPF_SOCK_OPS_*, without _CB
OPS = {
    name: number
    for number, name in enumerate(
        (
            *("timeout_init", "rwnd_init", "tcp_connect", "active_established"),
            *("passive_established", "needs_ecn", "base_rtt", "rto", "retrans", "state"),
            *("tcp_listen", "rtt", "parse_hdr_opt", "hdr_opt_len", "write_hdr_opt"),
        ),
        1,
    )
}
_NAMES = {number: name for name, number in OPS.items()}
# BPF_SOCK_OPS_*_CB_FLAG
CB_FLAGS = {
    name: 1 << bit
    for bit, name in enumerate(
        (
            *("rto", "retrans", "state", "rtt", "parse_all_hdr_opt", "parse_unknown_hdr_opt"),
            "write_hdr_opt",
        )
    )
}
# BPF_TCP_*
STATES = {
    name: number
    for number, name in enumerate(
        (
            *("established", "syn_sent", "syn_recv", "fin_wait1", "fin_wait2", "time_wait"),
            *("close", "close_wait", "last_ack", "listen", "closing", "new_syn_recv"),
        ),
        1,
    )
}
_STATE_NAMES = {number: name for name, number in STATES.items()}
_CONNECTED = "established, close_wait, fin_wait1, fin_wait2, closing or last_ack"
_SENDING = "established, close_wait, fin_wait1, closing, last_ack, syn_sent or syn_recv"
_WANTED = {
    **dict.fromkeys(
        ("timeout_init", "rwnd_init", "tcp_connect", "needs_ecn"), "syn_sent or established"
    ),
    "active_established": "established",
    "passive_established": "syn_recv or established",
    **dict.fromkeys(("base_rtt", "parse_hdr_opt"), _CONNECTED),
    **dict.fromkeys(("rto", "retrans"), _SENDING),
    "rtt": f"{_CONNECTED}, syn_sent or syn_recv",
    **dict.fromkeys(("hdr_opt_len", "write_hdr_opt"), f"{_CONNECTED} or syn_sent"),
    "tcp_listen": "listen",
}
_ARGS = {"rto": 3, "retrans": 3, "state": 2, "rtt": 2, "hdr_opt_len": 1, "write_hdr_opt": 1}
# ops that an ordinary call leads to: connect(2), listen(2), shutdown(2), a reset
_REAL = (
    *("timeout_init", "rwnd_init", "tcp_connect", "needs_ecn", "active_established"),
    *("passive_established", "tcp_listen", "state"),
)
_WITH_ROOM = ("hdr_opt_len", "write_hdr_opt")
_ROOM = 40  # MAX_TCP_OPTION_SPACE
_CURRENT_MSS = 1  # BPF_WRITE_HDR_TCP_CURRENT_MSS: no packet yet, the kernel asks for the MSS
_WITH_PACKET = ("active_established", "passive_established", "parse_hdr_opt", *_WITH_ROOM)
_TCP_FLAGS = {letter: 1 << bit for bit, letter in enumerate("FSRPAUEC")}


def tcp_header(flags: str = "A", options: bytes = b"", data: bytes = b"") -> bytes:
    """Return a TCP header for ``skb=``, with zeroes for ports, numbers and checksum.

    Args:
        flags: letters of "FSRPAUEC", "SA" for SYN and ACK.
        options: the bytes of the options; ended by zeroes up to a multiple of four. Up to 40.
        data: what follows.

    Raises:
        ContextError: an unknown flag, or too many options.
    """
    if not set(flags) <= set(_TCP_FLAGS):
        raise ContextError(f'craft a TCP header: flags={flags!r}; letters of "FSRPAUEC" are known')
    if len(options) > _ROOM:
        raise ContextError(
            f"craft a TCP header: {len(options)} bytes of options; there is room for {_ROOM}"
        )
    options += bytes(-len(options) % 4)
    bits = sum(_TCP_FLAGS[letter] for letter in set(flags))
    words = (_MIN_TCP_HEADER + len(options)) // 4
    return struct.pack("!HHIIBBHHH", 0, 0, 0, 0, words << 4, bits, 0, 0, 0) + options + data


def tcp_state(sock: socket.socket) -> str:
    """Return a TCP socket's state as the kernel names it: "established", "close_wait"."""
    number = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return _STATE_NAMES.get(number, str(number))


class _Answer(NamedTuple):
    """``struct bpfunit_sock_ops_result``."""

    err: int
    replylong: tuple[int, int, int, int]
    cb_flags: int
    option_room: int
    size: int


def _answer(data: bytes) -> _Answer:
    err, *reply, cb_flags, room, size = _RESULT.unpack_from(data)
    return _Answer(err, cast("tuple[int, int, int, int]", tuple(reply)), cb_flags, room, size)


def _reply(answer: _Answer) -> int:
    """What tcp_call_bpf() of include/net/tcp.h returns."""
    if answer.err:
        return -1
    first = answer.replylong[0]
    return first - (1 << 32) if first >> 31 else first


class SockOpsResult(PacketResult):
    """The outcome of a run of a sock_ops program."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._answer = _answer(self.outcome.data)

    @property
    def data(self) -> bytes:
        """The packet after the run, from its TCP header on; b"" where there was none."""
        return self.outcome.data[_RESULT.size :]

    @property
    def reply(self) -> int:
        """What the kernel takes for the answer; -1, "no opinion", when the program returned 0.

        Reply and arguments are one field: a program that does not reply leaves its first argument.
        """
        return _reply(self._answer)

    @property
    def replylong(self) -> tuple[int, int, int, int]:
        """The four words of the answer, as the program left them."""
        return self._answer.replylong

    @property
    def cb_flags(self) -> frozenset[str]:
        """The callbacks that the socket has on after the run: "state", "rtt", "rto", …"""
        return frozenset(name for name, bit in CB_FLAGS.items() if self._answer.cb_flags & bit)

    @property
    def option_room(self) -> int:
        """How many bytes for header options the program left."""
        return self._answer.option_room

    @property
    def options(self) -> list[tuple[int, bytes]]:
        """Kind and data of the header options of the packet after the run.

        Up to the end mark (kind 0); padding (kind 1) is left out.
        """
        if len(self.data) < _MIN_TCP_HEADER:
            return []
        return list(_options(self.data[_MIN_TCP_HEADER : (self.data[12] >> 4) * 4]))

    def describe(self) -> list[str]:
        """Return what came out as lines for the report of a failing test."""
        lines = super().describe() if self.data_in or self.data else []
        flags = ", ".join(sorted(self.cb_flags)) or "none"
        return [*lines, f"reply {self.reply}, callback flags: {flags}"]


def _options(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """RFC 9293, 3.2: a kind, and for all but 0 and 1 a length that counts both."""
    at = 0
    while at < len(raw) and raw[at] != 0:
        if raw[at] == 1:
            at += 1
            continue
        length = raw[at + 1] if at + 1 < len(raw) else 0
        if length < 2:
            return  # what no TCP can read
        yield raw[at], raw[at + 2 : at + length]
        at += length


class SockOpsRun(BulkRun):
    """One run of a bulk call of a sock_ops program."""

    __slots__ = ()

    @property
    def data(self) -> bytes:
        """The packet after the run."""
        return super().data[_RESULT.size :]

    @property
    def reply(self) -> int | None:
        """As :attr:`SockOpsResult.reply`; None for a run that was refused."""
        answer = super().data
        return _reply(_answer(answer)) if answer else None


class SockOpsProgram(Program):
    """A program that the kernel calls in the life of a TCP connection."""

    result_class = SockOpsResult
    run_class = SockOpsRun

    def run(
        self,
        op: str,
        *,
        sock: socket.socket | None = None,
        args: Sequence[int | str] | None = None,
        skb: bytes | None = None,
        cb_flags: Iterable[str] | None = None,
        option_room: int | None = None,
        repeat: int = 1,
        observe: bool = True,
    ) -> SockOpsResult:
        """Run the program on one op of a socket and return what it did.

        Args:
            op: BPF_SOCK_OPS_* without prefix and ``_CB``: "timeout_init", "rwnd_init",
                "tcp_connect", "active_established", "passive_established", "needs_ecn",
                "base_rtt", "rto", "retrans", "state", "tcp_listen", "rtt", "parse_hdr_opt",
                "hdr_opt_len", "write_hdr_opt".
            sock: the TCP socket, in a state in which the kernel calls the op; an established one
                stands in for one on its way there. By default one made for the run: the accepted
                end for "passive_established", a listener for "tcp_listen", else the connecting end.
            args: the op's arguments: "state" has the old and the new state, by name ("close") or
                number; by default the socket's and "close". Zeroes for other ops by default.
            skb: the packet from its TCP header on, up to 2,048 bytes; see :func:`tcp_header`.
                "parse_hdr_opt" needs one, and for "write_hdr_opt" a header with room is made.
            cb_flags: the callbacks that the socket has on before the run ("state", "rtt", "rto",
                "retrans", "parse_all_hdr_opt", "parse_unknown_hdr_opt", "write_hdr_opt"); by
                default those that it has. They stay with the socket.
            option_room: bytes for options for "hdr_opt_len" and "write_hdr_opt": 4 to 40, a
                multiple of 4; by default 40, or what the options of ``skb`` have.
            repeat: how often to run, each time on the op as crafted.
            observe: see :meth:`bpfunit.Program.run`.

        Raises:
            ContextError: an unknown op, state or flag, arguments or a packet that the op has not.
            SyscallError: the module refused the run: ENOTCONN for a socket in a state in which no
                kernel calls the op, EPROTOTYPE or EAFNOSUPPORT for one that is not TCP, EINVAL for
                a packet or room that cannot be; 524 (ENOTSUPP) without the module.
        """
        self.check_open()
        if op not in OPS:
            raise ContextError(
                f"run {self.name}: give it {self.program_type.takes}, found {op!r}; the ops are"
                f" {', '.join(OPS)}"
            )
        with ExitStack() as stack:
            used = sock if sock is not None else _socket_for(op, stack)
            request = self._request(op, used, args, skb, cb_flags, option_room)
            packet = cast("bytes", request.data)[_HEADER.size :]
            result = self.execute(
                request._replace(sock=used, repeat=repeat, fresh=sock is None),
                observe=observe,
                data_in=packet,
            )
        return cast("SockOpsResult", result)

    def _request(
        self,
        op: str,
        sock: socket.socket | None,
        args: Sequence[int | str] | None,
        skb: bytes | None,
        cb_flags: Iterable[str] | None,
        option_room: int | None,
    ) -> Request:
        room = option_room
        if op in _WITH_ROOM and room is None:
            room = _ROOM if skb is None or op == "hdr_opt_len" else len(skb) - _MIN_TCP_HEADER
        if op == "write_hdr_opt" and skb is None:
            skb = tcp_header(options=bytes(room or 0))
        packet = bytes(skb or b"")
        if packet and op not in _WITH_PACKET:
            raise ContextError(f"run {self.name}: the kernel has no packet at hand for {op!r}")
        if not packet and op == "parse_hdr_opt":
            raise ContextError(f"run {self.name}: {op!r} parses a packet; give skb=tcp_header(…)")
        if len(packet) > _MAX:
            raise ContextError(f"run {self.name}: skb has {len(packet)} bytes; {_MAX} can be given")
        if room is not None and (op not in _WITH_ROOM or not 4 <= room <= _ROOM or room % 4):
            raise ContextError(
                f"run {self.name}: option_room={room} for {op!r}; ops with room for options are"
                " hdr_opt_len and write_hdr_opt, and have 4 to 40 bytes, a multiple of 4"
            )
        numbers = self._arguments(op, sock, args, bool(packet))
        bits = [0, 0]
        if cb_flags is not None:
            bits = [_SET_CB_FLAGS, self._flags(cb_flags)]
        header = _HEADER.pack(VERSION, bits[0], 0, 0, OPS[op], *numbers, bits[1], room or 0)
        return Request(None, None, 1, header + packet, _RESULT.size + len(packet))

    def _arguments(
        self,
        op: str,
        sock: socket.socket | None,
        args: Sequence[int | str] | None,
        with_packet: bool,
    ) -> list[int]:
        count = _ARGS.get(op, 0)
        if args is None and op == "state" and sock is not None:
            args = [tcp_state(sock), "close"]
        elif args is None:
            args = [_CURRENT_MSS] if op == "hdr_opt_len" and not with_packet else []
        if len(args) > count:
            raise ContextError(f"run {self.name}: args={args!r}; {op!r} has {count} arguments")
        given = [self._argument(op, one) for one in args]
        return given + [0] * (4 - len(given))

    def _argument(self, op: str, given: int | str) -> int:
        if isinstance(given, str):
            if op != "state" or given not in STATES:
                raise ContextError(
                    f"run {self.name}: the argument {given!r} of {op!r} is no number and no state"
                    f" ({', '.join(STATES)})"
                )
            return STATES[given]
        return given & 0xFFFFFFFF

    def _flags(self, names: Iterable[str]) -> int:
        if isinstance(names, str) or not set(names := list(names)) <= set(CB_FLAGS):
            raise ContextError(
                f"run {self.name}: cb_flags={names!r}; give names of {', '.join(CB_FLAGS)}"
            )
        return sum(CB_FLAGS[name] for name in set(names))

    def as_request(self, given: Any) -> Request:
        """Return the run on one input of :meth:`run_many`: an op, or op and options of ``run``.

        ``sock`` is that of all; "state" needs its arguments.
        """
        op, more = (given, {}) if isinstance(given, str) else given
        if op not in OPS or not set(more) <= {"args", "skb", "cb_flags", "option_room"}:
            self.refuse_input(given)
        if op == "state" and "args" not in more:
            raise ContextError(f"run {self.name}: among many runs 'state' needs args=")
        names = ("args", "skb", "cb_flags", "option_room")
        return self._request(op, None, *(more.get(name) for name in names))


def _socket_for(op: str, stack: ExitStack) -> socket.socket:
    if op == "tcp_listen":
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        return listener
    return stack.enter_context(tcp_pair())[op == "passive_established"]


def _crafted(data: bytes) -> Crafted:
    """Read what :meth:`SockOpsProgram.run` has packed."""
    _, bits, _, _, number, *args, flags, room = _HEADER.unpack_from(data)
    op, extra = _NAMES.get(number, str(number)), ""
    if len(data) > _HEADER.size or room:
        extra = "a real op comes with a packet of the kernel's own; leave out skb= and option_room="
    elif op not in _REAL:
        extra = f"no ordinary call leads to {op} and nothing else; {', '.join(_REAL)} are made"
    states = (_STATE_NAMES.get(args[0], ""), _STATE_NAMES.get(args[1], ""))
    wanted = flags if bits & _SET_CB_FLAGS else None
    if op == "state" and not (wanted or 0) & CB_FLAGS["state"]:
        extra = extra or 'the kernel calls it where it is on alone: say cb_flags=["state"]'
    return Crafted(op, number, states, tuple(args), wanted, extra)


def _live_answer(seen: Seen) -> bytes:
    """Return what the module would have answered to what a real op did."""
    return _RESULT.pack(-seen.error, *seen.replylong, seen.cb_flags, 0, 0)


class SockOpsType(HeadedType):
    """What is known of ``BPF_PROG_TYPE_SOCK_OPS``."""

    live = True
    sections: Mapping[str, int] = {"sockops": AttachType.CGROUP_SOCK_OPS}
    takes = "an op by its name"
    headers = (_HEADER.size, _RESULT.size)
    hints: Mapping[int, str] = {
        errno.EPROTOTYPE: "the socket is not TCP; take one of bpfunit.tcp_pair()",
        errno.EAFNOSUPPORT: "the socket is not TCP; take one of bpfunit.tcp_pair()",
        errno.EINVAL: "skb is no whole TCP header, its options have less room than option_room, or"
        " the first argument does not go with it (1 without a packet, else 0 or 2)",
        errno.EOPNOTSUPP: "the program uses cgroup storage, which test runs have from 5.18 on",
    }
    program_class = SockOpsProgram
    example = '"active_established"'

    def hint(self, error: int, request: Request) -> str:
        """Say which states an op is called in, and which the socket is in."""
        if error != errno.ENOTCONN or request.data is None or request.sock is None:
            return super().hint(error, request)
        number, old, new = struct.unpack_from("=3I", request.data, _OP_OFFSET)
        op, state = _NAMES.get(number, str(number)), tcp_state(request.sock)
        if op == "state":
            names = (_STATE_NAMES.get(old, str(old)), _STATE_NAMES.get(new, str(new)))
            return f"no kernel goes from {names[0]} to {names[1]} on a socket in {state}"
        return f"the socket is in {state}; {op} is called in {_WANTED.get(op, 'another state')}"

    def make_live_calls(self, cgroup: Cgroup) -> LiveCalls:
        """Return connect(2), listen(2) and the ends of connections."""
        return SockOpsCalls(cgroup, _crafted, _live_answer)


register(SockOpsType(ProgType.SOCK_OPS))
