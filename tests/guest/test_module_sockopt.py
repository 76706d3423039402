"""Programs of type ``cgroup_sockopt``: what they see, what the hook makes of it, and refusals."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun, rawtcp
from .rawrun import Cells, TypedProgram
from .test_module_running import SET_RETVAL, unless_older_than

pytestmark = pytest.mark.guest

GET, SET = AttachType.CGROUP_GETSOCKOPT, AttachType.CGROUP_SETSOCKOPT
KEEP, REPLACE, BYPASS = range(3)  # enum bpfunit_sockopt_action
RESULT = struct.Struct("=5i3I")  # struct bpfunit_sockopt_result
# offsets in struct bpf_sockopt
SK, OPTVAL, OPTVAL_END, LEVEL, OPTNAME, OPTLEN, RETVAL = 0, 8, 16, 24, 28, 32, 36
PRIORITY = (socket.SOL_SOCKET, socket.SO_PRIORITY)
EPERM, EFAULT, EACCES = -errno.EPERM, -errno.EFAULT, -errno.EACCES
TCP_ZEROCOPY_RECEIVE = 35


@dataclass(frozen=True)
class Outcome:
    """The answer of a test run."""

    program: int
    err: int
    level: int
    optname: int
    optlen: int
    retval: int
    action: int
    size: int
    reserved: int
    data: bytes


def request(
    value: bytes = b"",
    option: tuple[int, int] = PRIORITY,
    room: int = 0,
    retval: int = 0,
    reserved: int = 0,
    **fields: int,
) -> bytes:
    """The ``data_in`` of a request; ``fields`` are of its head."""
    body = struct.pack("=iiIi4I", *option, room, retval, reserved, 0, 0, 0)
    return rawtcp.head(**fields) + body + value


class Program(TypedProgram):
    def __init__(self, code: Sequence[Insn], attach_type: int = SET) -> None:
        code = [asm.mov_reg(6, 1), *code]
        super().__init__(code, ProgType.CGROUP_SOCKOPT, attach_type)

    def ask(
        self,
        sock: socket.socket,
        value: bytes = b"",
        option: tuple[int, int] = PRIORITY,
        room: int = 0,
        retval: int = 0,
        repeat: int = 1,
    ) -> Outcome:
        """Run on a call that sets or gets an option."""
        data = request(value, option, room, retval, sock=sock.fileno())
        answer = self.request(data=data, ctx_room=0, data_room=8192, repeat=repeat)
        fields = RESULT.unpack_from(answer.data)
        assert answer.data_size == RESULT.size + fields[6]
        values: list[Any] = [*fields, answer.data[RESULT.size : answer.data_size]]
        return Outcome(answer.retval, *values)


def word(value: int) -> bytes:
    """Return an int as an option has it."""
    return value.to_bytes(4, sys.byteorder)


def set_field(offset: int, value: int) -> list[Insn]:
    return [asm.mov_imm(2, value), asm.store(4, 6, offset, 2)]


def store_word(value: int) -> list[Insn]:
    """Write the first four bytes of the value, where there are so many."""
    return [
        asm.load(8, 2, 6, OPTVAL),
        asm.load(8, 3, 6, OPTVAL_END),
        asm.mov_reg(4, 2),
        asm.alu_imm(asm.ADD, 4, 4),
        rawtcp.branch_reg(asm.JGT, 4, 3, 1),
        asm.store_imm(4, 2, 0, value),
    ]


def returning(value: int) -> list[Insn]:
    return [asm.mov_imm(0, value), asm.exit_()]


ALLOW, DENY = returning(1), returning(0)


def look(cells: Cells, *, get: bool) -> list[Insn]:
    """Cells: bytes to optval_end, level, optname, optlen, retval of get, the first four bytes."""
    code = [
        *asm.load_map_value(7, cells.fd, 0),
        asm.load(8, 2, 6, OPTVAL),
        asm.load(8, 3, 6, OPTVAL_END),
        asm.mov_reg(4, 2),
        asm.alu_imm(asm.ADD, 4, 4),
        rawtcp.branch_reg(asm.JGT, 4, 3, 2),
        asm.load(4, 5, 2, 0),
        asm.store(4, 7, 20, 5),
        Insn(asm.ALU64 | 0x10 | asm.SRC_REG, 3, 2),  # r3 -= r2
        asm.store(4, 7, 0, 3),
    ]
    for n, offset in enumerate([LEVEL, OPTNAME, OPTLEN] + [RETVAL] * get, 1):
        code += [asm.load(4, 4, 6, offset), asm.store(4, 7, 4 * n, 4)]
    return code


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def in_cgroup(stack: ExitStack, program: Program, family: int, kind: int) -> socket.socket:
    """A socket that belongs to a cgroup with the program attached."""
    cgroup = stack.enter_context(Cgroup())
    with cgroup.entered():
        made = stack.enter_context(socket.socket(family, kind))
    stack.enter_context(cgroup.attached(program.attach_type, program.fd))
    return made


def errno_of_set(sock: socket.socket, option: tuple[int, int], value: bytes) -> int:
    try:
        sock.setsockopt(*option, value)
    except OSError as error:
        return -(error.errno or 0)
    return 0


def got(sock: socket.socket, option: tuple[int, int], room: int) -> bytes | int:
    """What a caller of getsockopt() gets: bytes or a negative errno."""
    try:
        return sock.getsockopt(*option, room)
    except OSError as error:
        return -(error.errno or 0)


FAMILIES = [
    (socket.AF_INET, socket.SOCK_STREAM),
    (socket.AF_INET6, socket.SOCK_DGRAM),
    (socket.AF_UNIX, socket.SOCK_STREAM),
    (socket.AF_NETLINK, socket.SOCK_RAW),
]


@pytest.mark.parametrize(("family", "kind"), FAMILIES, ids=str)
@pytest.mark.parametrize("value", [b"", b"\1", b"\1\2\3\4", bytes(range(40)), b"x" * 4096])
def test_set_program_sees_what_the_attached_one_sees(family: int, kind: int, value: bytes) -> None:
    option = (socket.SOL_SOCKET, 4711)  # nobody's, but the program comes first
    with (
        Cells() as cells,
        Program([*look(cells, get=False), *ALLOW]) as prog,
        ExitStack() as stack,
    ):
        inside = in_cgroup(stack, prog, family, kind)
        errno_of_set(inside, option, value)
        real = cells.read()
        cells.clear()
        outcome = prog.ask(inside, value, option, repeat=3)
        assert cells.read() == real
        assert real[:4] == (max(len(value), 16), *option, len(value))
        assert (outcome.program, outcome.err) == (1, 0)
        assert outcome.action == (REPLACE if value else KEEP)
        assert outcome.data == value.ljust(16, b"\0")


@pytest.mark.parametrize(("family", "kind"), FAMILIES, ids=str)
@pytest.mark.parametrize("room", [1, 4, 100])
@pytest.mark.parametrize("option", [PRIORITY, (socket.SOL_SOCKET, 4711)], ids=["known", "unknown"])
def test_get_program_sees_what_the_attached_one_sees(
    family: int, kind: int, room: int, option: tuple[int, int]
) -> None:
    with ExitStack() as stack, Cells() as cells:
        program = stack.enter_context(Program([*look(cells, get=True), *ALLOW], GET))
        inside = in_cgroup(stack, program, family, kind)
        inside_answer = got(inside, option, room)
        real = cells.read()
        cells.clear()
        value = inside_answer if isinstance(inside_answer, bytes) else b""
        failed = inside_answer if isinstance(inside_answer, int) else 0
        outcome = program.ask(inside, value, option, room, failed, repeat=3)
        assert cells.read() == real
        assert outcome.err == failed
        if not failed:
            assert outcome.data[: outcome.optlen] == value
            assert outcome.action == REPLACE


@pytest.mark.parametrize(
    ("optlen", "err", "action"),
    [
        (-2, EFAULT, KEEP),
        (-1, 0, BYPASS),
        (0, 0, KEEP),
        (4, 0, REPLACE),
        (16, 0, REPLACE),
        (17, EFAULT, KEEP),
        (1 << 30, EFAULT, KEEP),
    ],
)
def test_set_optlen_means_something(optlen: int, err: int, action: int) -> None:
    """And a real call agrees: the priority that the kernel takes over is the program's or ours."""
    code = [*store_word(5), *set_field(OPTLEN, optlen), *ALLOW]
    with Program(code) as program, ExitStack() as stack:
        inside = in_cgroup(stack, program, socket.AF_INET, socket.SOCK_STREAM)
        outcome = program.ask(inside, word(3), repeat=2)
        assert (outcome.err, outcome.action, outcome.optlen) == (err, action, optlen)
        assert outcome.data[:4] == word(5)
        assert errno_of_set(inside, PRIORITY, word(3)) == err
        set_to = {KEEP: 0 if err else 3, REPLACE: 5, BYPASS: 0}[action]
        assert inside.getsockopt(*PRIORITY) == set_to


def test_set_program_chooses_another_option() -> None:
    code = [
        *set_field(OPTNAME, socket.SO_KEEPALIVE),
        *set_field(LEVEL, socket.SOL_SOCKET),
        *ALLOW,
    ]
    with Program(code) as program, ExitStack() as stack:
        inside = in_cgroup(stack, program, socket.AF_INET, socket.SOCK_STREAM)
        outcome = program.ask(inside, word(1), (6, 1))
        assert (outcome.level, outcome.optname) == (
            socket.SOL_SOCKET,
            socket.SO_KEEPALIVE,
        )
        assert errno_of_set(inside, (6, 1), word(1)) == 0
        assert inside.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


@pytest.mark.parametrize("attach_type", [GET, SET], ids=["get", "set"])
def test_a_denial_is_eperm(attach_type: int) -> None:
    with Program(DENY, attach_type) as program, ExitStack() as stack:
        inside = in_cgroup(stack, program, socket.AF_INET, socket.SOCK_STREAM)
        room = 4 if attach_type == GET else 0
        outcome = program.ask(inside, bytes(4), PRIORITY, room)
        assert (outcome.program, outcome.err, outcome.action) == (0, EPERM, KEEP)
        if attach_type == GET:
            assert got(inside, PRIORITY, 4) == EPERM
        else:
            assert errno_of_set(inside, PRIORITY, bytes(4)) == EPERM


@pytest.mark.parametrize("optlen", [-1, 0, 2, 4, 5])
def test_get_optlen_and_bytes_reach_the_caller(optlen: int) -> None:
    code = [*store_word(0x07070707), *set_field(OPTLEN, optlen), *ALLOW]
    with Program(code, GET) as program, ExitStack() as stack:
        inside = in_cgroup(stack, program, socket.AF_INET, socket.SOCK_STREAM)
        outcome = program.ask(inside, bytes(4), PRIORITY, 4)
        real = got(inside, PRIORITY, 4)
        if not 0 <= optlen <= 4:
            assert (outcome.err, outcome.action, real) == (EFAULT, KEEP, EFAULT)
        elif optlen == 0:
            assert (outcome.err, outcome.action, real) == (0, KEEP, bytes(4))
        else:
            assert (outcome.err, outcome.action) == (0, REPLACE)
            assert real == outcome.data[:optlen] == b"\7" * optlen


@pytest.mark.parametrize("option", [PRIORITY, (socket.SOL_SOCKET, 4711)], ids=["known", "unknown"])
@pytest.mark.parametrize("retval", [0, EACCES])
def test_get_program_may_turn_a_failure_into_an_answer(
    option: tuple[int, int], retval: int
) -> None:
    code = [*store_word(9), *set_field(OPTLEN, 4), *set_field(RETVAL, retval), *ALLOW]
    with ExitStack() as stack:
        plain = stack.enter_context(socket.socket())
        kernel = got(plain, option, 4)
        value, failed = (kernel, 0) if isinstance(kernel, bytes) else (b"", kernel)
        program = stack.enter_context(Program(code, GET))
        inside = in_cgroup(stack, program, socket.AF_INET, socket.SOCK_STREAM)
        outcome = program.ask(inside, value, option, 4, failed)
        real = got(inside, option, 4)
        assert outcome.retval == retval
        assert real == (outcome.err or outcome.data[:4])
        assert outcome.err or real == word(9)
        if not retval:
            assert outcome.err == 0


@pytest.mark.parametrize("attach_type", [GET, SET], ids=["get", "set"])
@pytest.mark.parametrize("verdict", [0, 1])
def test_program_chooses_the_errno(attach_type: int, verdict: int) -> None:
    """bpf_set_retval(): 5.18."""
    code = [asm.mov_imm(1, EACCES), rawrun.call(SET_RETVAL), *returning(verdict)]
    with (
        unless_older_than(5, 18),
        Program(code, attach_type) as program,
        ExitStack() as stack,
    ):
        inside = in_cgroup(stack, program, socket.AF_INET, socket.SOCK_STREAM)
        room = 4 if attach_type == GET else 0
        outcome = program.ask(inside, bytes(4), PRIORITY, room, repeat=2)
        assert (outcome.err, outcome.retval) == (EACCES, EACCES)
        if attach_type == GET:
            assert got(inside, PRIORITY, 4) == EACCES
        else:
            assert errno_of_set(inside, PRIORITY, bytes(4)) == EACCES


def test_each_run_begins_with_the_value_as_crafted(sock: socket.socket) -> None:
    with Cells() as cells:
        code = [*look(cells, get=False), *store_word(5), *set_field(OPTLEN, 8), *ALLOW]
        with Program(code) as program:
            program.ask(sock, word(3), repeat=1000)
            assert cells.read()[:6] == (16, *PRIORITY, 4, 0, 3)


def test_what_no_call_produces_is_refused(sock: socket.socket) -> None:
    fd = sock.fileno()
    with Program(ALLOW) as setter, Program(ALLOW, GET) as getter:

        def refused(program: Program, expected: int, data: bytes | None) -> None:
            program.refuses(expected, None, data, ctx_room=0)

        for program in (setter, getter):
            refused(program, errno.EINVAL, None)
            refused(program, errno.EINVAL, request(sock=fd)[:47])
            refused(program, errno.EINVAL, request(sock=fd, flags=1))
            refused(program, errno.EINVAL, request(sock=fd, version=2))
            refused(program, errno.EINVAL, request(sock=fd, reserved=1))
            refused(program, errno.E2BIG, request(bytes(4097), sock=fd))
            program.refuses(errno.EINVAL, bytes(8), request(sock=fd))
            program.refuses(
                errno.ENOSPC,
                None,
                request(room=0, sock=fd),
                ctx_room=0,
                data_room=RESULT.size - 1,
            )
        refused(setter, errno.EINVAL, request(room=4, sock=fd))
        refused(setter, errno.EINVAL, request(retval=-1, sock=fd))
        refused(getter, errno.E2BIG, request(room=4097, sock=fd))
        refused(getter, errno.EINVAL, request(b"12345", room=4, sock=fd))
        refused(getter, errno.EINVAL, request(room=4, retval=1, sock=fd))
        refused(getter, errno.EINVAL, request(room=4, retval=-4096, sock=fd))
        refused(getter, errno.EINVAL, request(b"1234", room=4, retval=-1, sock=fd))
        zerocopy = (socket.IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE)
        refused(getter, errno.EOPNOTSUPP, request(option=zerocopy, room=4, sock=fd))


def test_every_kind_of_socket_has_options_and_nothing_else_has() -> None:
    with rawtcp.no_tcp_connections() as found, Program(ALLOW) as program:
        for name, (fd, expected) in found.items():
            if name in ("closed", "negative", "pipe"):
                program.refuses(expected, None, request(b"1234", sock=fd), ctx_room=0)
            else:
                answer = program.request(None, request(b"1234", sock=fd), ctx_room=0, data_room=48)
                assert (answer.retval, answer.err) == (1, 0)


def test_listening_and_shut_sockets_are_asked_about() -> None:
    with (
        rawtcp.tcp_pair() as (client, _),
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        client.shutdown(socket.SHUT_RDWR)
        with Program(ALLOW) as program:
            for one in (client, listener):
                assert program.ask(one, b"1234").action == REPLACE
