"""Programs of type ``sk_msg``: message, verdict, redirection, accounting, refusals."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun, rawtcp
from .rawrun import Cells, TypedProgram
from .rawtcp import SockMap, tcp_pair
from .test_module_leaks import settled

pytestmark = pytest.mark.guest

SHARED = 1
DROP, PASS, REDIRECT = range(3)
RESULT = struct.Struct("=iIIIIIQQ")
REDIRECT_MAP, APPLY, CORK, PULL, REDIRECT_HASH, PUSH, POP = 60, 61, 62, 63, 71, 90, 91
INGRESS = 1
# offsets in struct sk_msg_md
DATA, DATA_END, FAMILY, REMOTE_IP4, LOCAL_IP4, REMOTE_PORT, LOCAL_PORT, SIZE = (
    *(0, 8, 16),
    *(20, 24, 60, 64, 68),
)
ACCEPT = [asm.mov_imm(0, 1), asm.exit_()]


@dataclass(frozen=True)
class Message:
    """The answer of a test run."""

    retval: int
    err: int
    verdict: int
    size: int
    apply: int
    cork: int
    ingress: int
    cookie: int
    inode: int
    data: bytes


def message(payload: bytes, fragments: Sequence[int] = (), **fields: int) -> bytes:
    """The ``data_in`` of a request; ``fields`` are of its head."""
    lengths = [*fragments, *[0] * (16 - len(fragments))]
    return rawtcp.head(**fields) + struct.pack("=16I", *lengths) + payload


class Program(TypedProgram):
    def __init__(self, code: Sequence[Insn]) -> None:
        super().__init__([asm.mov_reg(6, 1), *code], ProgType.SK_MSG, AttachType.SK_MSG_VERDICT)

    def send(
        self, sock: socket.socket, payload: bytes, fragments: Sequence[int] = (), **more: Any
    ) -> Message:
        """Run on a message."""
        flags = more.pop("flags_in", 0)
        request = message(payload, fragments, sock=sock.fileno(), flags=flags)
        answer = self.request(data=request, ctx_room=0, data_room=1 << 17, **more)
        fields = RESULT.unpack_from(answer.data)
        assert answer.data_size == RESULT.size + fields[2]
        values: list[Any] = [*fields, answer.data[RESULT.size : answer.data_size]]
        return Message(answer.retval, *values)


def call(helper: int, *arguments: int) -> list[Insn]:
    """Call a helper on the message with numbers as arguments."""
    numbers = [asm.mov_imm(2 + n, value) for n, value in enumerate(arguments)]
    return [asm.mov_reg(1, 6), *numbers, rawrun.call(helper)]


def look(cells: Cells) -> list[Insn]:
    """Cell 0 is data_end - data, cell 1 the first four bytes where there are four, then fields."""
    return [
        *asm.load_map_value(7, cells.fd, 0),
        asm.load(8, 2, 6, DATA),
        asm.load(8, 3, 6, DATA_END),
        asm.mov_reg(4, 3),
        Insn(asm.ALU64 | 0x10 | asm.SRC_REG, 4, 2),  # r4 -= r2
        asm.store(4, 7, 0, 4),
        asm.mov_reg(5, 2),
        asm.alu_imm(asm.ADD, 5, 4),
        rawtcp.branch_reg(asm.JGT, 5, 3, 2),
        asm.load(4, 4, 2, 0),
        asm.store(4, 7, 4, 4),
        *(
            part
            for n, offset in enumerate(
                (SIZE, FAMILY, REMOTE_IP4, LOCAL_IP4, REMOTE_PORT, LOCAL_PORT)
            )
            for part in (asm.load(4, 4, 6, offset), asm.store(4, 7, 8 + 4 * n, 4))
        ),
    ]


def test_program_sees_the_message_and_its_socket() -> None:
    with tcp_pair() as (client, server), Cells() as cells, Program(look(cells) + ACCEPT) as program:
        answer = program.send(client, b"GET / HTTP/1.1")
        ip = struct.unpack("=I", socket.inet_aton("127.0.0.1"))[0]
        assert cells.read()[:8] == (
            14,
            int.from_bytes(b"GET ", sys.byteorder),
            14,
            socket.AF_INET,
            ip,
            ip,
            socket.htonl(server.getsockname()[1]),
            client.getsockname()[1],
        )
        assert (answer.retval, answer.err, answer.verdict) == (1, 0, PASS)
        assert answer.data == b"GET / HTTP/1.1"


def test_program_sees_what_the_attached_one_sees() -> None:
    """The same program, entered in a sockmap, and a real send."""
    with (
        tcp_pair() as (client, server),
        SockMap() as socks,
        Cells() as cells,
        Program(look(cells) + ACCEPT) as program,
    ):
        program.send(client, b"hello world")
        crafted = cells.read()
        cells.clear()
        socks.attach(program.fd, AttachType.SK_MSG_VERDICT)
        socks.put(0, client)
        client.send(b"hello world")
        assert server.recv(100) == b"hello world"
        assert cells.read() == crafted


def test_message_comes_in_fragments() -> None:
    with tcp_pair() as (client, _), Cells() as cells:
        with Program(look(cells) + ACCEPT) as program:
            answer = program.send(client, b"abcdefgh", [3, 4, 1])
            assert cells.read()[:3] == (3, 0, 8)
            assert answer.data == b"abcdefgh"
        with Program(call(PULL, 0, 8, 0) + look(cells) + ACCEPT) as program:
            assert program.send(client, b"abcdefgh", [3, 4, 1]).data == b"abcdefgh"
            assert cells.read()[0] == 8


def test_shared_pages_are_not_seen_before_they_are_pulled() -> None:
    with tcp_pair() as (client, _), Cells() as cells:
        with Program(look(cells) + ACCEPT) as program:
            assert program.send(client, b"abcdefgh", flags_in=SHARED).data == b"abcdefgh"
            assert cells.read()[:3] == (0, 0, 8)
        with Program(call(PULL, 0, 8, 0) + look(cells) + ACCEPT) as program:
            program.send(client, b"abcdefgh", flags_in=SHARED)
            assert cells.read()[:2] == (8, int.from_bytes(b"abcd", sys.byteorder))


def put_in_front() -> list[Insn]:
    """Push four bytes in front and write 1 to 4 there."""
    return [
        *call(PUSH, 0, 4, 0),
        *call(PULL, 0, 4, 0),
        asm.load(8, 2, 6, DATA),
        asm.load(8, 3, 6, DATA_END),
        asm.mov_reg(4, 2),
        asm.alu_imm(asm.ADD, 4, 4),
        rawtcp.branch_reg(asm.JGT, 4, 3, 1),
        asm.store_imm(4, 2, 0, int.from_bytes(b"\1\2\3\4", sys.byteorder)),
    ]


@pytest.mark.parametrize("repeat", [1, 2, 50])
def test_bytes_that_are_put_in_front(repeat: int) -> None:
    """Each repetition begins with the message as it was crafted."""
    with tcp_pair() as (client, _), Program(put_in_front() + ACCEPT) as program:
        assert program.send(client, b"payload", repeat=repeat).data == b"\1\2\3\4payload"


def test_bytes_that_are_taken_out() -> None:
    with tcp_pair() as (client, _), Program(call(POP, 2, 3, 0) + ACCEPT) as program:
        assert program.send(client, b"abcdefgh").data == b"abfgh"


def test_bytes_that_the_verdict_is_for() -> None:
    with tcp_pair() as (client, _), Program(call(APPLY, 3) + call(CORK, 99) + ACCEPT) as program:
        answer = program.send(client, b"abcdefgh")
        assert (answer.apply, answer.cork) == (3, 99)


@pytest.mark.parametrize(("verdict", "err"), [(0, -errno.EACCES), (1, 0)])
def test_verdict(verdict: int, err: int) -> None:
    with tcp_pair() as (client, _), Program([asm.mov_imm(0, verdict), asm.exit_()]) as program:
        answer = program.send(client, b"x")
        assert (answer.retval, answer.verdict, answer.err) == (verdict, verdict, err)


@pytest.mark.parametrize("ingress", [0, INGRESS])
def test_redirection_says_where_to(ingress: int) -> None:
    with tcp_pair() as (client, _), tcp_pair() as (other, _), SockMap() as socks:
        socks.put(3, other)
        redirect = [asm.mov_reg(1, 6), *rawrun.load_map(2, socks.fd), asm.mov_imm(3, 3)]
        redirect += [asm.mov_imm(4, ingress), rawrun.call(REDIRECT_MAP), asm.exit_()]
        with Program(redirect) as program:
            answer = program.send(client, b"x")
            assert (answer.retval, answer.verdict, answer.err) == (1, REDIRECT, 0)
            assert answer.ingress == ingress
            assert answer.inode == os.fstat(other.fileno()).st_ino
            cookie = int.from_bytes(other.getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder)
            assert program.send(client, b"x").cookie == cookie != 0


def test_redirection_to_nowhere_is_what_the_program_makes_of_it() -> None:
    with tcp_pair() as (client, _), SockMap() as socks:
        redirect = [asm.mov_reg(1, 6), *rawrun.load_map(2, socks.fd), asm.mov_imm(3, 3)]
        redirect += [asm.mov_imm(4, 0), rawrun.call(REDIRECT_MAP)]
        with Program([*redirect, asm.exit_()]) as careful, Program(redirect + ACCEPT) as careless:
            assert careful.send(client, b"x").verdict == DROP
            assert careless.send(client, b"x").verdict == PASS


def test_socket_is_charged_for_as_long_as_the_run_lasts() -> None:
    def charged(sock: socket.socket) -> tuple[int, ...]:
        memory = struct.unpack("=9I", sock.getsockopt(socket.SOL_SOCKET, 55, 36))  # SO_MEMINFO
        return (memory[2], memory[5])  # wmem_alloc, wmem_queued

    code = put_in_front() + call(POP, 0, 2, 0) + ACCEPT
    with tcp_pair() as (client, server), Program(code) as program:
        before = charged(client)
        for shared in (0, SHARED):
            program.send(client, bytes(40000), [20000, 20000], repeat=300, flags_in=shared)
        assert charged(client) == before
        client.send(b"still alive")
        assert server.recv(100) == b"still alive"


def test_answer_that_does_not_fit() -> None:
    with tcp_pair() as (client, _), Program(ACCEPT) as program:
        request = message(b"abcdefgh", sock=client.fileno())
        program.refuses(errno.ENOSPC, None, request, ctx_room=0, data_room=RESULT.size + 3)
        assert program.last.data[RESULT.size :] == b"abc"
        assert program.last.data_size == RESULT.size + 8
        program.refuses(errno.EFAULT, None, request, ctx_room=0, data_out=8)
        program.request(None, request, ctx_room=0, data_room=0, data_out=0)


def test_descriptors_of_anything_else() -> None:
    with rawtcp.no_tcp_connections() as wrong, Program(ACCEPT) as program:
        for fd, expected in wrong.values():
            program.refuses(expected, None, message(b"x", sock=fd), ctx_room=0)


def test_sockets_without_a_connection() -> None:
    with socket.socket() as fresh, socket.socket() as listening, Program(ACCEPT) as program:
        listening.listen()
        for sock in (fresh, listening):
            program.refuses(errno.ENOTCONN, None, message(b"x", sock=sock.fileno()), ctx_room=0)


def test_requests_that_are_refused_for_their_form() -> None:
    with tcp_pair() as (client, _), Cells() as cells:
        fd = client.fileno()
        good = message(b"abcdefgh", sock=fd)
        with Program(rawrun.count(cells) + ACCEPT) as program:
            for wrong in (
                None,
                good[:79],
                message(b"", sock=fd),
                message(b"abcdefgh", sock=fd, version=2),
                message(b"abcdefgh", sock=fd, version=0),
                message(b"abcdefgh", sock=fd, flags=2),
                message(b"abcdefgh", sock=fd, reserved=1),
                message(b"abcdefgh", [3, 4], sock=fd),
                message(b"abcdefgh", [3, 6], sock=fd),
                message(b"abcdefgh", [8, 0, 1], sock=fd),
                message(b"abcdefgh", [0, 8], sock=fd),
                message(b"abcdefgh", [0xFFFFFFFF, 9], sock=fd),
            ):
                program.refuses(errno.EINVAL, None, wrong, ctx_room=0)
            program.refuses(errno.EINVAL, bytes(8), good)
            program.refuses(errno.EINVAL, None, good)
            program.refuses(errno.E2BIG, None, message(bytes(65537), sock=fd), ctx_room=0)
            program.refuses(errno.EFAULT, None, good, ctx_room=0, data_in=8)
            for field in ("flags", "cpu", "batch_size"):
                program.refuses(errno.EINVAL, None, good, ctx_room=0, **{field: 1})
            assert cells.read()[0] == 0
            assert len(program.request(None, good, ctx_room=0, data_room=100).data) == 100


def state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def test_states_in_which_a_real_socket_asks_its_program() -> None:
    """Shut down, it still does; what the kernel makes of the message then is another matter."""
    with (
        Cells() as cells,
        Program(rawrun.count(cells) + ACCEPT) as program,
        tcp_pair() as (client, server),
        SockMap() as socks,
    ):
        socks.attach(program.fd, AttachType.SK_MSG_VERDICT)
        socks.put(0, client)
        socks.put(1, server)

        def asks(sock: socket.socket) -> bool:
            cells.clear()
            with contextlib.suppress(OSError):
                sock.send(b"x", socket.MSG_NOSIGNAL)
            return cells.read()[0] == 1

        def runs(sock: socket.socket) -> bool:
            return program.send(sock, b"x").verdict == PASS

        client.shutdown(socket.SHUT_WR)
        assert settled(lambda: (state(client), state(server)), (5, 8)) == (5, 8)
        # FIN_WAIT2 and CLOSE_WAIT
        for sock in (client, server):
            assert runs(sock)
            assert asks(sock), f"in state {state(sock)}"
        server.shutdown(socket.SHUT_WR)
        assert settled(lambda: (state(client), state(server)), (7, 7)) == (7, 7)  # CLOSE
        for sock in (client, server):
            program.refuses(errno.ENOTCONN, None, message(b"x", sock=sock.fileno()), ctx_room=0)
