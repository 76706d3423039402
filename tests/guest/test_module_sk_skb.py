"""Programs of type ``sk_skb``: what came in, parser and verdict, redirection, refusals."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from bpfunit._sys.uapi import AttachType, MapType, ProgType
from bpfunit.errors import SyscallError
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun, rawtcp
from .rawrun import Cells, TypedProgram
from .rawtcp import SockMap, tcp_pair

pytestmark = pytest.mark.guest

PARSER, VERDICT = 1, 2
DROP, PASS, REDIRECT, PARSED = range(4)
RESULT = struct.Struct("=iIIIIIQQ")
PULL, STORE_BYTES, CHANGE_TAIL, CHANGE_HEAD, ADJUST_ROOM = 39, 9, 38, 43, 50
REDIRECT_MAP, REDIRECT_HASH = 52, 72
INGRESS = 1
# offsets in struct __sk_buff
LEN, PROTOCOL, VLAN_PRESENT, PRIORITY, IFINDEX, TC_INDEX, DATA, DATA_END, FAMILY = (
    *(0, 16, 20, 32, 40, 44, 76, 80),
    88,
)
REMOTE_IP4, LOCAL_IP4, REMOTE_PORT, LOCAL_PORT = 92, 96, 132, 136
SEEN = (
    LEN,
    PROTOCOL,
    IFINDEX,
    FAMILY,
    REMOTE_IP4,
    LOCAL_IP4,
    REMOTE_PORT,
    LOCAL_PORT,
    VLAN_PRESENT,
)
ACCEPT = [asm.mov_imm(0, 1), asm.exit_()]
ALL = [asm.load(4, 0, 6, LEN), asm.exit_()]


@dataclass(frozen=True)
class Outcome:
    """The answer of a test run."""

    retval: int
    err: int
    verdict: int
    size: int
    ingress: int
    priority: int
    tc_index: int
    cookie: int
    inode: int
    data: bytes


def request(
    payload: bytes,
    hook: int = VERDICT,
    linear: int = 0,
    priority: int = 0,
    reserved: int = 0,
    **fields: int,
) -> bytes:
    """The ``data_in`` of a request; ``fields`` are of its head."""
    rest = struct.pack("=8I", hook, linear, priority, reserved, 0, 0, 0, 0)
    return rawtcp.head(**fields) + rest + payload


class Program(TypedProgram):
    def __init__(self, code: Sequence[Insn], attach_type: int = 0) -> None:
        super().__init__([asm.mov_reg(6, 1), *code], ProgType.SK_SKB, attach_type)

    def receive(
        self,
        sock: socket.socket,
        payload: bytes,
        hook: int = VERDICT,
        linear: int = 0,
        priority: int = 0,
        **more: Any,
    ) -> Outcome:
        """Run on data that came in."""
        data = request(payload, hook, linear, priority, sock=sock.fileno())
        answer = self.request(data=data, ctx_room=0, data_room=1 << 17, **more)
        fields = RESULT.unpack_from(answer.data)
        assert answer.data_size == RESULT.size + fields[2]
        values: list[Any] = [*fields, answer.data[RESULT.size : answer.data_size]]
        return Outcome(answer.retval, *values)


def call(helper: int, *arguments: int) -> list[Insn]:
    """Call a helper on the packet with numbers as arguments."""
    numbers = [asm.mov_imm(2 + n, value) for n, value in enumerate(arguments)]
    return [asm.mov_reg(1, 6), *numbers, rawrun.call(helper)]


def look(cells: Cells, first: int = 0) -> list[Insn]:
    """The cell ``first`` is data_end - data, then come fields."""
    return [
        *asm.load_map_value(7, cells.fd, 0),
        asm.load(4, 2, 6, DATA),
        asm.load(4, 3, 6, DATA_END),
        Insn(asm.ALU64 | 0x10 | asm.SRC_REG, 3, 2),  # r3 -= r2
        asm.store(4, 7, 4 * first, 3),
        *(
            part
            for n, offset in enumerate(SEEN, first + 1)
            for part in (asm.load(4, 4, 6, offset), asm.store(4, 7, 4 * n, 4))
        ),
    ]


def first_bytes(cells: Cells, cell: int) -> list[Insn]:
    """Copy the first four bytes into a cell, after they were pulled to where data points."""
    return [
        *call(PULL, 4),
        *asm.load_map_value(7, cells.fd, 0),
        asm.load(4, 2, 6, DATA),
        asm.load(4, 3, 6, DATA_END),
        asm.mov_reg(4, 2),
        asm.alu_imm(asm.ADD, 4, 4),
        rawtcp.branch_reg(asm.JGT, 4, 3, 2),
        asm.load(4, 5, 2, 0),
        asm.store(4, 7, 4 * cell, 5),
    ]


def redirect(socks: SockMap, key: int, flags: int = 0) -> list[Insn]:
    """Return what bpf_sk_redirect_map() returns."""
    return [
        asm.mov_reg(1, 6),
        *rawrun.load_map(2, socks.fd),
        asm.mov_imm(3, key),
        asm.mov_imm(4, flags),
        rawrun.call(REDIRECT_MAP),
        asm.exit_(),
    ]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=str)
def test_parser_and_verdict_see_what_the_attached_ones_see(family: int) -> None:
    """The same two programs, in a sockmap with the receiver, and a real send.

    cb[] is left out: in a real run it holds what the layers below have left there.
    """
    with (
        tcp_pair(family) as (client, server),
        SockMap() as socks,
        Cells() as cells,
        Program(look(cells) + ALL) as parser,
        Program(look(cells, 16) + first_bytes(cells, 30) + ACCEPT) as verdict,
    ):
        assert parser.receive(server, b"hello world", PARSER).retval == 11
        assert verdict.receive(server, b"hello world", VERDICT).verdict == PASS
        crafted = cells.read()
        assert crafted[:2] == crafted[16:18] == (0, 11)  # nothing is linear, of eleven bytes
        assert crafted[30] == int.from_bytes(b"hell", sys.byteorder)
        cells.clear()
        socks.attach(parser.fd, AttachType.SK_SKB_STREAM_PARSER)
        socks.attach(verdict.fd, AttachType.SK_SKB_STREAM_VERDICT)
        socks.put(0, server)
        client.send(b"hello world")
        assert server.recv(100) == b"hello world"
        assert cells.read() == crafted


def test_data_comes_back_as_the_program_leaves_it() -> None:
    stored = [
        asm.store_imm(4, 10, -4, int.from_bytes(b"HELL", sys.byteorder)),
        asm.mov_reg(3, 10),
        asm.alu_imm(asm.ADD, 3, -4),
        asm.mov_reg(1, 6),
        asm.mov_imm(2, 0),
        asm.mov_imm(4, 4),
        asm.mov_imm(5, 0),
        rawrun.call(STORE_BYTES),
        *call(CHANGE_TAIL, 6, 0),
        *ACCEPT,
    ]
    with tcp_pair() as (_, server), Program(stored) as program:
        assert program.receive(server, b"hello world").data == b"HELLo "
        assert program.receive(server, b"hello world", linear=11, repeat=9).data == b"HELLo "


@pytest.mark.parametrize("linear", [0, 1, 5, 11])
def test_linear_bytes_are_where_data_points(linear: int) -> None:
    with tcp_pair() as (_, server), Cells() as cells, Program(look(cells) + ACCEPT) as program:
        assert program.receive(server, b"hello world", linear=linear).data == b"hello world"
        assert cells.read()[:2] == (linear, 11)


def test_a_large_message_is_in_pages() -> None:
    payload = os.urandom(65536)
    with tcp_pair() as (_, server), Program(ACCEPT) as program:
        assert program.receive(server, payload).data == payload
        assert program.receive(server, payload, linear=5000).data == payload


def test_priority_and_tc_index_are_told() -> None:
    written = [
        *(asm.mov_imm(2, 7), asm.store(4, 6, TC_INDEX, 2)),
        *(asm.mov_imm(2, 3), asm.store(4, 6, PRIORITY, 2)),
        *ACCEPT,
    ]
    with tcp_pair() as (_, server), Program(ACCEPT) as plain, Program(written) as program:
        assert plain.receive(server, b"x", priority=5).priority == 5
        outcome = program.receive(server, b"x", priority=5)
        assert (outcome.priority, outcome.tc_index) == (3, 7)


@pytest.mark.parametrize(("returned", "expected"), [(0, DROP), (1, PASS), (2, DROP), (-1, DROP)])
def test_a_verdict_is_pass_or_drop(returned: int, expected: int) -> None:
    with tcp_pair() as (_, server), Program([asm.mov_imm(0, returned), asm.exit_()]) as program:
        outcome = program.receive(server, b"x")
        assert (outcome.retval, outcome.verdict) == (returned & 0xFFFFFFFF, expected)


@pytest.mark.parametrize("flags", [0, INGRESS])
def test_a_redirection_names_its_target(flags: int) -> None:
    with tcp_pair() as (_, server), tcp_pair() as (other, _far), SockMap() as socks:
        socks.put(3, other)
        cookie = struct.unpack("=Q", other.getsockopt(socket.SOL_SOCKET, 57, 8))[0]
        with Program(redirect(socks, 3, flags)) as program:
            outcome = program.receive(server, b"hello", repeat=5)
            assert (outcome.verdict, outcome.ingress) == (REDIRECT, flags)
            assert outcome.cookie == cookie
            assert outcome.inode == os.fstat(other.fileno()).st_ino
        with Program(redirect(socks, 4, flags)) as program:  # nobody is there
            assert program.receive(server, b"hello").verdict == DROP
        with Program([*redirect(socks, 3, flags)[:-1], *ACCEPT]) as program:
            assert program.receive(server, b"hello").verdict == REDIRECT
        with Program([*redirect(socks, 3, flags)[:-1], asm.mov_imm(0, 0), asm.exit_()]) as program:
            assert program.receive(server, b"hello").verdict == DROP


def test_a_redirection_by_hash_names_its_target() -> None:
    with tcp_pair() as (_, server), tcp_pair() as (other, _far), SockMap(MapType.SOCKHASH) as socks:
        socks.put(3, other)
        code = [
            asm.store_imm(4, 10, -4, 3),
            asm.mov_reg(1, 6),
            *rawrun.load_map(2, socks.fd),
            asm.mov_reg(3, 10),
            asm.alu_imm(asm.ADD, 3, -4),
            asm.mov_imm(4, 0),
            rawrun.call(REDIRECT_HASH),
            asm.exit_(),
        ]
        with Program(code) as program:
            outcome = program.receive(server, b"hello")
            assert outcome.verdict == REDIRECT
            assert outcome.inode == os.fstat(other.fileno()).st_ino


@pytest.mark.parametrize("returned", [5, 0, -22])
def test_a_parser_answers_with_a_length(returned: int) -> None:
    with tcp_pair() as (_, server), Program([asm.mov_imm(0, returned), asm.exit_()]) as program:
        outcome = program.receive(server, b"hello world", PARSER)
        assert (outcome.retval, outcome.verdict) == (returned & 0xFFFFFFFF, PARSED)


def test_a_program_is_run_as_what_it_was_loaded_for() -> None:
    with (
        tcp_pair() as (_, server),
        Program(ALL, AttachType.SK_SKB_STREAM_PARSER) as parser,
        Program(ACCEPT, AttachType.SK_SKB_STREAM_VERDICT) as verdict,
        Program(ACCEPT) as either,
    ):
        sock = server.fileno()
        assert parser.receive(server, b"hello", PARSER).retval == 5
        assert verdict.receive(server, b"hello", VERDICT).retval == 1
        assert either.receive(server, b"hello", PARSER).retval == 1
        for program, hook in ((parser, VERDICT), (verdict, PARSER)):
            program.refuses(errno.EINVAL, None, request(b"hello", hook, sock=sock))


def test_a_parser_that_changes_data_is_refused_where_it_is_not_attached() -> None:
    with (
        tcp_pair() as (_, server),
        SockMap() as socks,
        Program([*call(PULL, 4), *ALL]) as parser,
    ):
        try:
            socks.attach(parser.fd, AttachType.SK_SKB_STREAM_PARSER)
        except SyscallError:
            asked = request(b"hello", PARSER, sock=server.fileno())
            parser.refuses(errno.EOPNOTSUPP, None, asked, ctx_room=0)
        else:
            assert parser.receive(server, b"hello", PARSER).retval == 5


def test_what_no_system_has_is_refused() -> None:
    with tcp_pair() as (_, server), Program(ACCEPT) as program:
        sock = server.fileno()
        for bad in (
            request(b"", sock=sock),
            request(b"x", linear=2, sock=sock),
            request(b"x", hook=0, sock=sock),
            request(b"x", hook=3, sock=sock),
            request(b"x", sock=sock, flags=1),
            request(b"x", sock=sock, version=2),
            request(b"x", reserved=1, sock=sock),
            request(b"x", sock=sock)[:40],
            b"",
        ):
            program.refuses(errno.EINVAL, None, bad, ctx_room=0)
        program.refuses(errno.E2BIG, None, request(bytes(65537), sock=sock), ctx_room=0)
        program.refuses(errno.EINVAL, bytes(8), request(b"x", sock=sock), ctx_room=0)
        program.refuses(errno.EINVAL, None, None, ctx_room=0)
        asked = request(b"x", sock=sock)
        program.refuses(errno.ENOSPC, None, asked, ctx_room=0, data_room=RESULT.size)
        assert program.receive(server, b"x").verdict == PASS


def test_wrong_descriptors_are_an_errno() -> None:
    with rawtcp.no_tcp_connections() as found, Program(ACCEPT) as program:
        for sock, expected in found.values():
            program.refuses(expected, None, request(b"x", sock=sock), ctx_room=0)


def test_only_a_connection_receives() -> None:
    with tcp_pair() as (client, server), Program(ACCEPT) as program:
        with socket.socket() as fresh, socket.create_server(("127.0.0.1", 0)) as listener:
            for sock in (fresh, listener):
                asked = request(b"x", sock=sock.fileno())
                program.refuses(errno.ENOTCONN, None, asked, ctx_room=0)
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        assert program.receive(server, b"x").verdict == PASS  # the last segment came with its FIN
        server.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + 10
        while server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 7:  # TCP_CLOSE
            assert time.monotonic() < deadline
            time.sleep(0.01)
        program.refuses(errno.ENOTCONN, None, request(b"x", sock=server.fileno()), ctx_room=0)


def loaned(sock: socket.socket) -> tuple[int, ...]:
    """What a socket is charged for: SO_MEMINFO, without the space that is left."""
    found = struct.unpack("=9I", sock.getsockopt(socket.SOL_SOCKET, 55, 36))
    return found[0], found[2], found[4]


def test_ten_thousand_runs_leave_nothing_behind() -> None:
    with tcp_pair() as (_, server), tcp_pair() as (other, _far), SockMap() as socks:
        socks.put(0, other)
        grown = [*call(CHANGE_TAIL, 9000, 0), *call(CHANGE_HEAD, 50, 0), *redirect(socks, 0)]
        with Program(grown) as program:
            before = loaned(server)
            for _ in range(10):
                assert program.receive(server, bytes(5000), repeat=1000).verdict == REDIRECT
            assert loaned(server) == before
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(1)
