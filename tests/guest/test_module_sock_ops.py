"""Programs of type ``sock_ops``: ops, states, replies, header options, refusals."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType, MapType, ProgType
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun, rawtcp
from .rawrun import Cells, TypedProgram
from .rawtcp import SockMap, tcp_pair
from .test_module_leaks import settled
from .test_module_sk_msg import state

pytestmark = pytest.mark.guest

SET_CB_FLAGS = 1
RESULT = struct.Struct("=i4IIII")
SETSOCKOPT, CB_FLAGS_SET, SOCK_HASH_UPDATE, LOAD_OPTION, STORE_OPTION, RESERVE_OPTION = (
    *(49, 59, 70),
    *(142, 143, 144),
)
(
    TIMEOUT_INIT,
    RWND_INIT,
    CONNECT,
    ACTIVE_ESTABLISHED,
    PASSIVE_ESTABLISHED,
    NEEDS_ECN,
    BASE_RTT,
    RTO,
    RETRANS,
    STATE,
    LISTEN,
    RTT,
    PARSE,
    OPTION_LEN,
    WRITE_OPTION,
) = range(1, 16)
# offsets in struct bpf_sock_ops
OP, ARGS, FAMILY, REMOTE_IP4, LOCAL_IP4, REMOTE_PORT, LOCAL_PORT, IS_FULLSOCK = (
    *(0, 4, 20),
    *(24, 28, 64, 68, 72),
)
CB_FLAGS, SK_STATE, DATA, DATA_END, SKB_LEN, SKB_TCP_FLAGS = 84, 88, 192, 200, 208, 212
# TCP states (include/net/tcp_states.h)
ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, CLOSED, CLOSE_WAIT, LISTENING = 1, 2, 3, 4, 7, 8, 10
ACCEPT = [asm.mov_imm(0, 1), asm.exit_()]
SYN_ACK = 0x12


def tcp_header(options: bytes = b"", flags: int = SYN_ACK, data: bytes = b"") -> bytes:
    """A TCP header with options, whose length is a multiple of four, and data."""
    words = 5 + len(options) // 4
    return struct.pack("!HHIIBBHHH", 80, 4660, 7, 9, words << 4, flags, 512, 0, 0) + options + data


@dataclass(frozen=True)
class Ran:
    """The answer of a test run."""

    retval: int
    err: int
    reply: tuple[int, int, int, int]
    cb_flags: int
    room: int
    packet: bytes


def request(
    op: int,
    sock: int,
    args: Sequence[int] = (),
    *,
    packet: bytes = b"",
    cb_flags: int | None = None,
    room: int = 0,
    reserved: int = 0,
    **fields: int,
) -> bytes:
    """The ``data_in`` of a request; ``fields`` are of its head."""
    numbers = [op, *args, *[0] * (4 - len(args)), cb_flags or 0, room, *[0] * 4, reserved]
    fields.setdefault("flags", SET_CB_FLAGS if cb_flags is not None else 0)
    return rawtcp.head(sock, **fields) + struct.pack("=12I", *numbers) + packet


class Program(TypedProgram):
    def __init__(self, code: Sequence[Insn]) -> None:
        code = [asm.mov_reg(6, 1), *code]
        super().__init__(code, ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS)

    def call(
        self,
        op: int,
        sock: socket.socket,
        args: Sequence[int] = (),
        repeat: int = 1,
        **more: object,
    ) -> Ran:
        """Run one op."""
        data = request(op, sock.fileno(), args, **more)  # type: ignore[arg-type]
        answer = self.request(data=data, ctx_room=0, data_room=4096, repeat=repeat)
        err, *reply, cb_flags, room, size = RESULT.unpack_from(answer.data)
        assert answer.data_size == RESULT.size + size
        packet = answer.data[RESULT.size : answer.data_size]
        return Ran(answer.retval, err, tuple(reply), cb_flags, room, packet)

    def refuses_op(
        self, expected: int, op: int, sock: socket.socket, *args: object, **more: object
    ) -> None:
        data = request(op, sock.fileno(), *args, **more)  # type: ignore[arg-type]
        self.refuses(expected, None, data, ctx_room=0)


def look(cells: Cells, *offsets: int) -> list[Insn]:
    """Copy fields of the context to the cells, in order."""
    code = asm.load_map_value(7, cells.fd, 0)
    for index, offset in enumerate(offsets):
        code += [asm.load(4, 2, 6, offset), asm.store(4, 7, 4 * index, 2)]
    return code


def test_program_sees_the_op_and_the_socket() -> None:
    offsets = (OP, FAMILY, REMOTE_IP4, LOCAL_IP4, REMOTE_PORT, LOCAL_PORT, IS_FULLSOCK, SK_STATE)
    cells = Cells()
    code = look(cells, *offsets) + ACCEPT
    with cells, tcp_pair() as (client, server), Program(code) as program:
        answer = program.call(ACTIVE_ESTABLISHED, client)
        ip = struct.unpack("=I", socket.inet_aton("127.0.0.1"))[0]
        assert cells.read()[:8] == (
            ACTIVE_ESTABLISHED,
            socket.AF_INET,
            ip,
            ip,
            socket.htonl(server.getsockname()[1]),
            client.getsockname()[1],
            1,
            ESTABLISHED,
        )
        assert (answer.retval, answer.err, answer.reply) == (1, 0, (0, 0, 0, 0))


@pytest.mark.parametrize(
    ("op", "seen"),
    [
        (TIMEOUT_INIT, SYN_SENT),
        (RWND_INIT, SYN_SENT),
        (CONNECT, SYN_SENT),
        (NEEDS_ECN, SYN_SENT),
        (ACTIVE_ESTABLISHED, ESTABLISHED),
        (PASSIVE_ESTABLISHED, SYN_RECV),
        (RTT, ESTABLISHED),
    ],
)
def test_established_socket_stands_in_for_an_earlier_one(op: int, seen: int) -> None:
    code = look(cells := Cells(), SK_STATE) + ACCEPT
    with cells, tcp_pair() as (client, server), Program(code) as program:
        program.call(op, client, repeat=3)
        assert cells.read()[0] == seen
        assert state(client) == ESTABLISHED
        client.send(b"x")
        assert server.recv(1) == b"x"


def test_arguments_and_reply_are_one_field() -> None:
    code = [asm.load(4, 2, 6, ARGS + 4), asm.alu_imm(asm.ADD, 2, 1), asm.store(4, 6, ARGS, 2)]
    with tcp_pair() as (client, _), Program(code + ACCEPT) as program:
        assert program.call(RTO, client, [11, 22, 33], repeat=2).reply == (23, 22, 33, 0)


def test_program_that_returns_0_has_its_reply_ignored() -> None:
    code = [asm.mov_imm(2, 7), asm.store(4, 6, ARGS, 2), asm.mov_imm(0, 0), asm.exit_()]
    with tcp_pair() as (client, _), Program(code) as program:
        assert program.call(RTT, client, [1, 2]).err == -errno.EPERM


def test_callback_flags_are_the_sockets() -> None:
    add = [
        asm.load(4, 2, 6, CB_FLAGS),
        asm.alu_imm(asm.ADD, 2, 4),
        asm.mov_reg(1, 6),
        rawrun.call(CB_FLAGS_SET),
    ]
    with tcp_pair() as (client, _), Program(add + ACCEPT) as program:
        assert program.call(ACTIVE_ESTABLISHED, client).cb_flags == 4
        assert program.call(ACTIVE_ESTABLISHED, client, cb_flags=1).cb_flags == 5
        with Program(ACCEPT) as other:
            assert other.call(ACTIVE_ESTABLISHED, client).cb_flags == 5
            assert other.call(ACTIVE_ESTABLISHED, client, cb_flags=0).cb_flags == 0


def test_setsockopt_of_the_locked_socket_does_not_wait_for_its_lock() -> None:
    code = [
        asm.store_imm(4, 10, -4, 5),
        asm.mov_reg(1, 6),
        asm.mov_imm(2, socket.SOL_SOCKET),
        asm.mov_imm(3, socket.SO_PRIORITY),
        asm.mov_reg(4, 10),
        asm.alu_imm(asm.ADD, 4, -4),
        asm.mov_imm(5, 4),
        rawrun.call(SETSOCKOPT),
    ]
    with tcp_pair() as (client, _), Program(code + ACCEPT) as program:
        for op in (ACTIVE_ESTABLISHED, CONNECT, PASSIVE_ESTABLISHED):
            program.call(op, client)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 5


@pytest.mark.parametrize("op", [ACTIVE_ESTABLISHED, PASSIVE_ESTABLISHED])
def test_socket_is_entered_in_a_sockhash(op: int) -> None:
    with tcp_pair() as (client, server), SockMap(MapType.SOCKHASH) as socks:
        code = [
            asm.store_imm(4, 10, -4, 77),
            asm.mov_reg(1, 6),
            *rawrun.load_map(2, socks.fd),
            asm.mov_reg(3, 10),
            asm.alu_imm(asm.ADD, 3, -4),
            asm.mov_imm(4, 0),
            rawrun.call(SOCK_HASH_UPDATE),
        ]
        with Program(code + ACCEPT) as program:
            program.call(op, client)
            assert socks.keys() == [77]
        client.send(b"through the map's own sendmsg")
        assert server.recv(100) == b"through the map's own sendmsg"


def test_packet_is_seen_as_far_as_its_header() -> None:
    seen = [
        *look(cells := Cells(), SKB_LEN, SKB_TCP_FLAGS),
        asm.load(8, 2, 6, DATA),
        asm.load(8, 3, 6, DATA_END),
        asm.mov_reg(4, 3),
        Insn(asm.ALU64 | 0x10 | asm.SRC_REG, 4, 2),  # r4 -= r2
        asm.store(4, 7, 8, 4),
        asm.mov_reg(5, 2),
        asm.alu_imm(asm.ADD, 5, 20),
        rawtcp.branch_reg(asm.JGT, 5, 3, 2),
        asm.load(2, 4, 2, 2),
        asm.store(4, 7, 12, 4),
    ]
    packet = tcp_header(b"\1\1\1\0", data=b"data")
    with cells, tcp_pair() as (client, _), Program(seen + ACCEPT) as program:
        assert program.call(ACTIVE_ESTABLISHED, client, packet=packet).packet == packet
        assert cells.read()[:4] == (28, SYN_ACK, 24, socket.htons(4660))
        program.call(PARSE, client, packet=packet)
        assert cells.read()[2] == 24
        program.call(OPTION_LEN, client, packet=packet, room=8)
        assert cells.read()[2] == 0
        program.call(ACTIVE_ESTABLISHED, client)
        assert cells.read()[:3] == (0, 0, 0)


def with_option(helper: int, third: int, fourth: int, kind: int = 0xFD) -> list[Insn]:
    """Call a header option helper with four bytes on the stack: kind, length, two of data."""
    option = int.from_bytes(bytes([kind, 4, 0x34, 0x12]), sys.byteorder, signed=True)
    return [
        asm.store_imm(4, 10, -8, option),
        asm.mov_reg(1, 6),
        asm.mov_reg(2, 10),
        asm.alu_imm(asm.ADD, 2, -8),
        asm.mov_imm(3, third),
        asm.mov_imm(4, fourth),
        rawrun.call(helper),
        asm.store(4, 6, ARGS, 0),
    ]


def test_header_options_are_reserved_stored_and_found() -> None:
    reserve = [asm.mov_reg(1, 6), asm.mov_imm(2, 6), asm.mov_imm(3, 0), rawrun.call(RESERVE_OPTION)]
    reserve += [asm.store(4, 6, ARGS, 0)]
    with tcp_pair() as (client, _):
        with Program(reserve + ACCEPT) as program:
            answer = program.call(OPTION_LEN, client, [1], room=12, repeat=2)
            assert (answer.reply[0], answer.room) == (0, 6)
            assert program.call(OPTION_LEN, client, [1], room=4).reply[0] == 2**32 - errno.ENOSPC
        with Program(with_option(STORE_OPTION, 4, 0) + ACCEPT) as program:
            packet = tcp_header(b"\1\1\1\1" + bytes(8))
            answer = program.call(WRITE_OPTION, client, packet=packet, room=8, repeat=3)
            assert (answer.reply[0], answer.room) == (0, 4)
            assert answer.packet == packet[:24] + b"\xfd\x04\x34\x12" + bytes(4)
            found = answer.packet
            answer = program.call(PARSE, client, packet=packet)
            assert answer.reply[0] == 2**32 - errno.EPERM
        with Program(with_option(LOAD_OPTION, 4, 0) + ACCEPT) as program:
            assert program.call(PARSE, client, packet=found).reply[0] == 4
            assert program.call(ACTIVE_ESTABLISHED, client, packet=found).reply[0] == 4
            bare = program.call(PARSE, client, packet=tcp_header())
            assert bare.reply[0] == 2**32 - errno.ENOMSG


@pytest.mark.parametrize(
    ("old", "new"), [(ESTABLISHED, FIN_WAIT1), (ESTABLISHED, CLOSE_WAIT), (ESTABLISHED, CLOSED)]
)
def test_change_of_state_begins_where_the_socket_is(old: int, new: int) -> None:
    code = look(cells := Cells(), ARGS, ARGS + 4, SK_STATE) + ACCEPT
    with cells, tcp_pair() as (client, _), Program(code) as program:
        program.call(STATE, client, [old, new])
        assert cells.read()[:3] == (old, new, old)


@pytest.mark.parametrize(
    "args",
    [
        (ESTABLISHED, ESTABLISHED),
        (ESTABLISHED, SYN_SENT),
        (ESTABLISHED, LISTENING),
        (ESTABLISHED, 5),
        (ESTABLISHED, 0),
        (ESTABLISHED, 32),
        (ESTABLISHED, 2**32 - 1),
        (SYN_SENT, ESTABLISHED),
        (CLOSED, LISTENING),
    ],
    ids=str,
)
def test_change_of_state_that_does_not_happen(args: tuple[int, int]) -> None:
    with tcp_pair() as (client, _), Program(ACCEPT) as program:
        program.refuses_op(errno.ENOTCONN, STATE, client, args)


def test_ops_that_do_not_come_in_the_sockets_state() -> None:
    with socket.socket() as fresh, socket.socket() as listening, tcp_pair() as (client, _):
        listening.listen()
        with Cells() as cells, Program(rawrun.count(cells) + ACCEPT) as program:
            for op in (ACTIVE_ESTABLISHED, PASSIVE_ESTABLISHED, CONNECT, RTT, LISTEN, BASE_RTT):
                program.refuses_op(errno.ENOTCONN, op, fresh)
            for op in (ACTIVE_ESTABLISHED, PASSIVE_ESTABLISHED, CONNECT, RTT, RTO, RETRANS):
                program.refuses_op(errno.ENOTCONN, op, listening)
            program.refuses_op(errno.ENOTCONN, LISTEN, client)
            assert cells.read()[0] == 0
            program.call(LISTEN, listening)
            assert cells.read()[0] == 1


@pytest.mark.parametrize("op", [0, 16, 17, 20, 2**32 - 1])
def test_ops_that_are_not_known(op: int) -> None:
    with tcp_pair() as (client, _), Program(ACCEPT) as program:
        program.refuses_op(errno.EOPNOTSUPP, op, client)


def test_descriptors_of_anything_else() -> None:
    with rawtcp.no_tcp_connections() as wrong, Program(ACCEPT) as program:
        for fd, expected in wrong.values():
            data = request(ACTIVE_ESTABLISHED, fd)
            program.refuses(expected, None, data, ctx_room=0)


def test_requests_that_are_refused_for_their_form() -> None:
    packet = tcp_header()
    with tcp_pair() as (client, _), Cells() as cells:
        fd = client.fileno()
        with Program(rawrun.count(cells) + ACCEPT) as program:
            for wrong in (
                None,
                request(RTT, fd)[:63],
                request(RTT, fd, version=2),
                request(RTT, fd, flags=2),
                rawtcp.head(fd, reserved=1) + request(RTT, fd)[16:],
                request(RTT, fd, reserved=1),
                request(RTT, fd, [1, 2, 3]),
                request(ACTIVE_ESTABLISHED, fd, [1]),
                request(RTT, fd, cb_flags=0x80),
                request(RTT, fd, cb_flags=1, flags=0),
                request(RTT, fd, room=4),
                request(RTT, fd, packet=packet),
                request(PARSE, fd),
                request(PARSE, fd, packet=packet[:19]),
                request(PARSE, fd, packet=tcp_header(b"\1\1\1\1")[:20]),
                request(PARSE, fd, packet=b"\0" * 20),
                request(OPTION_LEN, fd, [1]),
                request(OPTION_LEN, fd, [0], room=4),
                request(OPTION_LEN, fd, [1], room=4, packet=packet),
                request(OPTION_LEN, fd, [1], room=3),
                request(OPTION_LEN, fd, [1], room=44),
                request(WRITE_OPTION, fd, [0], room=4, packet=packet),
                request(WRITE_OPTION, fd, [3], room=4, packet=tcp_header(bytes(4))),
                request(WRITE_OPTION, fd, [0], packet=tcp_header(bytes(4))),
            ):
                program.refuses(errno.EINVAL, None, wrong, ctx_room=0)
            big = request(PARSE, fd, packet=tcp_header(data=bytes(2048)))
            program.refuses(errno.E2BIG, None, big, ctx_room=0)
            program.refuses(errno.EINVAL, bytes(8), request(RTT, fd), ctx_room=0)
            assert cells.read()[0] == 0


def test_a_real_connection_calls_the_ops_in_the_states_that_are_accepted() -> None:
    """The program attached to a cgroup records the state, as 1 plus its number, for each op."""
    record = [
        asm.load(4, 2, 6, OP),
        asm.alu_imm(asm.AND, 2, 15),
        asm.alu_imm(asm.LSH, 2, 2),
        asm.load(4, 3, 6, SK_STATE),
        asm.alu_imm(asm.ADD, 3, 1),
        *asm.load_map_value(7, (cells := Cells()).fd, 0),
        asm.alu_reg(asm.ADD, 7, 2),
        asm.load(4, 8, 6, IS_FULLSOCK),
        asm.branch_imm(asm.JEQ, 8, 0, 1),
        asm.store(4, 7, 0, 3),
        asm.mov_reg(1, 6),
        asm.mov_imm(2, 0x0C),  # STATE and RTT
        rawrun.call(CB_FLAGS_SET),
    ]
    with ExitStack() as stack:
        stack.enter_context(cells)
        program = stack.enter_context(Program(record + ACCEPT))
        cgroup = stack.enter_context(Cgroup())
        stack.enter_context(cgroup.attached(AttachType.CGROUP_SOCK_OPS, program.fd))
        stack.enter_context(cgroup.entered())
        client, server = stack.enter_context(tcp_pair())
        client.send(b"x")
        server.recv(1)
        seen = {op: value - 1 for op, value in enumerate(cells.read()) if value}
        expected = {
            TIMEOUT_INIT: SYN_SENT,
            RWND_INIT: SYN_SENT,
            CONNECT: SYN_SENT,
            NEEDS_ECN: SYN_SENT,
            ACTIVE_ESTABLISHED: ESTABLISHED,
            PASSIVE_ESTABLISHED: SYN_RECV,
            LISTEN: LISTENING,
        }
        assert {op: seen.get(op) for op in expected} == expected
        cells.clear()
        client.shutdown(socket.SHUT_WR)
        assert settled(lambda: cells.read()[STATE] > 0, True)
        assert cells.read()[STATE] - 1 in (ESTABLISHED, FIN_WAIT1)


def test_signal_and_repetition() -> None:
    from .test_module_running import FOREVER, alarm_after

    with tcp_pair() as (client, server), Program(ACCEPT) as program:
        data = request(CONNECT, client.fileno())
        with alarm_after(0.3):
            program.refuses(errno.EINTR, None, data, ctx_room=0, repeat=FOREVER)
        assert state(client) == ESTABLISHED
        with contextlib.closing(client):
            client.send(b"x")
        assert server.recv(1) == b"x"
