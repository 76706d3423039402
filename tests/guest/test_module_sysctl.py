"""Programs of type ``cgroup_sysctl``: what they see, what the hook makes of it, and refusals."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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

RESULT = struct.Struct("=i3Iq")  # struct bpfunit_sysctl_result
WRITE = 1  # BPFUNIT_SYSCTL_WRITE
WRITES, FILE_POS = 0, 4  # offsets in struct bpf_sysctl
GET_NAME, GET_CURRENT, GET_NEW, SET_NEW = 101, 102, 103, 104  # enum bpf_func_id
BASE_NAME = 1  # BPF_F_SYSCTL_BASE_NAME
DOMAIN = "kernel/domainname"
# in bytes from the start of the cells
SET_TO, NAME, BASE, CURRENT, NEW, ROOM = 32, 64, 128, 192, 256, 64


@dataclass(frozen=True)
class Outcome:
    """The answer of a test run."""

    program: int
    err: int
    updated: int
    size: int
    reserved: int
    position: int
    new: bytes


def request(
    name: str = DOMAIN,
    current: bytes = b"",
    new: bytes | None = None,
    position: int = 0,
    sizes: tuple[int, int, int] | None = None,
    reserved: int = 0,
    **fields: int,
) -> bytes:
    """The ``data_in`` of a request; ``fields`` are of its head."""
    parts = [name.encode(), current, new or b""]
    a, b, c = sizes or map(len, parts)
    body = struct.pack("=4Iq", a, b, c, reserved, position)
    fields.setdefault("flags", 0 if new is None else WRITE)
    fields.setdefault("sock", 0)
    return rawtcp.head(**fields) + body + b"".join(parts)


class Program(TypedProgram):
    def __init__(self, code: list[Insn]) -> None:
        code = [asm.mov_reg(6, 1), *code]
        super().__init__(code, ProgType.CGROUP_SYSCTL, AttachType.CGROUP_SYSCTL)

    def ask(self, *args: Any, repeat: int = 1, **options: Any) -> Outcome:
        """Run on a read or a write."""
        data = request(*args, **options)
        answer = self.request(data=data, ctx_room=0, data_room=8192, repeat=repeat)
        fields = RESULT.unpack_from(answer.data)
        assert answer.data_size == RESULT.size + fields[2]
        values: list[Any] = [*fields, answer.data[RESULT.size : answer.data_size]]
        return Outcome(answer.retval, *values)


def returning(value: int) -> list[Insn]:
    return [asm.mov_imm(0, value), asm.exit_()]


ALLOW, DENY = returning(1), returning(0)


def ask_helper(helper: int, at: int, room: int, cell: int, flags: int = 0) -> list[Insn]:
    """Call a helper that fills ``room`` bytes of the cells; its answer goes into a cell."""
    return [
        asm.mov_reg(1, 6),
        asm.mov_reg(2, 7),
        asm.alu_imm(asm.ADD, 2, at),
        asm.mov_imm(3, room),
        asm.mov_imm(4, flags),
        rawrun.call(helper),
        asm.store(4, 7, 4 * cell, 0),
    ]


def look(cells: Cells, room: int = ROOM) -> list[Insn]:
    """Cells: write, file_pos, then what each helper returned and filled in."""
    code = list(asm.load_map_value(7, cells.fd, 0))
    for cell, offset in enumerate((WRITES, FILE_POS)):
        code += [asm.load(4, 2, 6, offset), asm.store(4, 7, 4 * cell, 2)]
    code += ask_helper(GET_NAME, NAME, room, 2)
    code += ask_helper(GET_NAME, BASE, room, 3, BASE_NAME)
    code += ask_helper(GET_CURRENT, CURRENT, room, 4)
    return code + ask_helper(GET_NEW, NEW, room, 5)


def set_new(cells: Cells, size: int) -> list[Insn]:
    """Put the cells' bytes from SET_TO in place of the new value."""
    return [*asm.load_map_value(7, cells.fd, 0), *ask_helper(SET_NEW, SET_TO, size, 6)]


def set_position(value: int) -> list[Insn]:
    return [asm.mov_imm(2, value), asm.store(4, 6, FILE_POS, 2)]


def cells_of(size: int = 512) -> Cells:
    return Cells(size // 4)


def value_of(name: str) -> bytes:
    """The current value, b"" for one that cannot be read."""
    try:
        return Path("/proc/sys", name).read_bytes()
    except OSError:
        return b""


def real_call(name: str, new: bytes | None, position: int = 0) -> bytes | int:
    """What a caller gets: the bytes or the number of bytes, or a negative errno."""
    fd = os.open(f"/proc/sys/{name}", os.O_RDONLY if new is None else os.O_WRONLY)
    try:
        return os.pread(fd, 4096, position) if new is None else os.pwrite(fd, new, position)
    except OSError as error:
        return -(error.errno or 0)
    finally:
        os.close(fd)


@contextmanager
def attached(program: Program) -> Iterator[None]:
    with (
        Cgroup() as cgroup,
        cgroup.attached(AttachType.CGROUP_SYSCTL, program.fd),
        cgroup.entered(),
    ):
        yield


@pytest.fixture(autouse=True)
def domain() -> Iterator[None]:
    """The name that the tests write to, with a value, and as it was afterwards."""
    path = Path("/proc/sys", DOMAIN)
    before = path.read_bytes()
    path.write_bytes(b"example.org\n")
    yield
    path.write_bytes(before)


CALLS: list[tuple[str, bytes | None, int]] = [
    (DOMAIN, None, 0),
    (DOMAIN, None, 3),
    (DOMAIN, None, 60),
    (DOMAIN, b"other\n", 0),
    (DOMAIN, b"other", 2),
    (DOMAIN, b"", 0),
    (DOMAIN, b"x" * 63, 0),
    (DOMAIN, b"x" * 64, 0),
    (DOMAIN, b"x" * 4095, 0),
    (DOMAIN, b"x" * 4096, 0),
    (DOMAIN, b"x" * 5000, 0),
    ("net/ipv4/tcp_mem", None, 0),
    ("net/ipv4/route/flush", b"1\n", 0),
    ("net/ipv4/conf/lo/rp_filter", b"1\n", 0),
    ("kernel/random/boot_id", None, 0),
]


@pytest.mark.parametrize("room", [5, ROOM])
@pytest.mark.parametrize(
    "call", CALLS, ids=lambda c: f"{c[0]}-{None if c[1] is None else len(c[1])}-{c[2]}"
)
def test_program_sees_what_the_attached_one_sees(
    call: tuple[str, bytes | None, int], room: int
) -> None:
    name, new, position = call
    current = value_of(name)
    with cells_of() as cells, Program([*look(cells, room), *ALLOW]) as program:
        with attached(program):
            real_call(name, new, position)
        real = cells.read()
        assert any(real)
        cells.clear()
        seen = None if new is None else new[:4096]
        outcome = program.ask(name, current, seen, position, repeat=3)
        assert cells.read() == real
        assert (outcome.program, outcome.err, outcome.updated) == (1, 0, 0)
        assert (outcome.new, outcome.position) == (seen or b"", position)
        if room == ROOM:
            assert struct.pack(f"={len(real)}I", *real)[NAME:].startswith(name.encode() + b"\0")


@pytest.mark.parametrize("new", [None, b"other\n"])
@pytest.mark.parametrize(("verdict", "err"), [(1, 0), (0, -errno.EPERM)])
def test_verdict_becomes_the_errno_of_the_call(new: bytes | None, verdict: int, err: int) -> None:
    with Program(returning(verdict)) as program:
        outcome = program.ask(DOMAIN, b"x\n", new, repeat=2)
        assert (outcome.program, outcome.err) == (verdict, err)
        with attached(program):
            real = real_call(DOMAIN, new)
        assert (real if isinstance(real, int) and real < 0 else 0) == err


def test_program_chooses_the_errno() -> None:
    """bpf_set_retval(): 5.18."""
    code = [asm.mov_imm(1, -errno.EACCES), rawrun.call(SET_RETVAL), *ALLOW]
    with unless_older_than(5, 18), Program(code) as program:
        assert program.ask(repeat=2).err == -errno.EACCES
        with attached(program):
            assert real_call(DOMAIN, None) == -errno.EACCES


@pytest.mark.parametrize("new", [b"ab\n", b"a long one, longer than the program's\n", b"", None])
def test_program_puts_another_value_in_place(new: bytes | None) -> None:
    ours = b"ours.example\n"
    with cells_of() as cells, Program([*set_new(cells, len(ours)), *ALLOW]) as program:
        cells.write(bytes(SET_TO) + ours)
        outcome = program.ask(DOMAIN, b"x\n", new, repeat=3)
        if new:
            assert (cells.read()[6], outcome.updated, outcome.new) == (0, 1, ours)
        else:  # nothing that could be replaced
            answer = cells.read()[6] - (1 << 32)
            assert (answer, outcome.updated, outcome.new) == (-errno.EINVAL, 0, b"")


def test_each_run_begins_with_the_value_as_crafted() -> None:
    with cells_of() as cells:
        code = [*look(cells), *set_new(cells, 5), *set_position(9), *ALLOW]
        with Program(code) as program:
            outcome = program.ask(DOMAIN, b"x\n", b"crafted", 4, repeat=1000)
            seen = cells.read()
            assert seen[:2] == (1, 4)
            assert struct.pack(f"={len(seen)}I", *seen)[NEW:].startswith(b"crafted\0")
            assert (outcome.updated, outcome.size, outcome.position) == (1, 5, 9)


def test_position_that_the_program_sets_is_the_one_that_the_kernel_reads_from() -> None:
    with Program([*set_position(3), *ALLOW]) as program:
        assert program.ask(DOMAIN, b"x\n", None, 0).position == 3
        with attached(program):
            assert real_call(DOMAIN, None) == b"mple.org\n"


@pytest.mark.parametrize(("size", "answer"), [(4095, 0), (4096, -errno.E2BIG)])
def test_a_value_in_place_is_shorter_than_a_page(size: int, answer: int) -> None:
    with cells_of(8192) as cells, Program([*set_new(cells, size), *ALLOW]) as program:
        assert program.ask(DOMAIN, b"", b"x").size == (1 if answer else size)
        assert cells.read()[6] == answer & 0xFFFFFFFF


def test_names_that_no_sysctl_has_are_refused() -> None:
    with Program(ALLOW) as program:
        for name in ("", "kernel", "/kernel", "kernel/", "a//b", "a/../b", "./a", "a\0b/c"):
            program.refuses(errno.EINVAL, None, request(name), ctx_room=0)
        program.refuses(errno.E2BIG, None, request("a/" * 16 + "b"), ctx_room=0)
        program.refuses(errno.E2BIG, None, request("a/" + "b" * 255), ctx_room=0)
        for name in ("a/" * 15 + "b", "a/" + "b" * 254):
            assert program.ask(name).program == 1


def test_requests_that_are_refused_for_their_form() -> None:
    with Program(ALLOW) as program:

        def refused(expected: int, data: bytes | None, **options: Any) -> None:
            program.refuses(expected, None, data, ctx_room=0, **options)

        refused(errno.EINVAL, None)
        refused(errno.EINVAL, request()[:39])
        refused(errno.EINVAL, request(flags=2))
        refused(errno.EINVAL, request(version=2))
        refused(errno.EINVAL, request(sock=1))
        refused(errno.EINVAL, request(reserved=1))
        refused(errno.EINVAL, request(position=-1))
        refused(errno.EINVAL, request(new=b"x", flags=0))  # a read brings no value
        refused(errno.EINVAL, request(sizes=(len(DOMAIN) + 1, 0, 0)))
        refused(errno.EINVAL, request(sizes=(len(DOMAIN) - 1, 0, 0)))
        refused(errno.E2BIG, request(sizes=(len(DOMAIN), 0xFFFFFFFF, 1)))
        refused(errno.E2BIG, request(current=bytes(4097)))
        refused(errno.E2BIG, request(new=bytes(4097)))
        program.refuses(errno.EINVAL, bytes(8), request())
        refused(errno.ENOSPC, request(new=b"x"), data_room=RESULT.size)
        assert program.ask(current=bytes(4096), new=bytes(4096)).size == 4096
