"""Programs of type ``cgroup_device``: what they see, what is refused, and whether that is right."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun
from .rawrun import Cells, TypedProgram
from .test_module_running import SET_RETVAL, unless_older_than

pytestmark = pytest.mark.guest

BLOCK, CHAR = 1, 2  # BPF_DEVCG_DEV_*
MKNOD, READ, WRITE = 1, 2, 4  # BPF_DEVCG_ACC_*
ANY = 0
NULL, SDA = (1, 3), (8, 0)


def device(file_type: int, access: int, major: int, minor: int) -> bytes:
    """A ``struct bpf_cgroup_dev_ctx``."""
    return struct.pack("=III", access << 16 | file_type, major, minor)


def load(code: list[Insn]) -> TypedProgram:
    return TypedProgram(code, ProgType.CGROUP_DEVICE, AttachType.CGROUP_DEVICE)


POSSIBLE = [
    (CHAR, READ, *NULL),
    (CHAR, WRITE, *NULL),
    (CHAR, READ | WRITE, *NULL),
    (CHAR, MKNOD, *NULL),
    (CHAR, ANY, *NULL),
    (BLOCK, READ, *SDA),
    (BLOCK, MKNOD, 0, 0),
    (BLOCK, READ, 0xFFF, 0xFFFFF),
]
IMPOSSIBLE = [
    (0, READ, *NULL),
    (3, READ, *NULL),
    (BLOCK | CHAR << 8, READ, *NULL),
    (CHAR, MKNOD | READ, *NULL),
    (CHAR, 8, *NULL),
    (CHAR, 0x8000, *NULL),
    (CHAR, MKNOD, 0, 0),
    (CHAR, READ, 0, 0),
    (BLOCK, WRITE, 0, 0),
    (CHAR, READ, 0x1000, 0),
    (CHAR, READ, 1, 0x100000),
]


@pytest.mark.parametrize("access", POSSIBLE, ids=str)
def test_program_sees_the_access_that_is_crafted(access: tuple[int, int, int, int]) -> None:
    with Cells() as cells, load(rawrun.record(cells, [0, 4, 8])) as program:
        answer = program.request(device(*access), repeat=3)
        assert cells.read()[:3] == struct.unpack("=III", device(*access))
        assert (answer.retval, answer.err) == (1, 0)
        assert (answer.ctx[:12], answer.ctx_size) == (device(*access), 12)


@pytest.mark.parametrize("access", IMPOSSIBLE, ids=str)
def test_access_that_no_call_asks_for_is_refused(access: tuple[int, int, int, int]) -> None:
    with Cells() as cells, load(rawrun.count(cells) + rawrun.ALLOW) as program:
        program.refuses(errno.EINVAL, device(*access))
        assert cells.read()[0] == 0


def test_requests_that_are_refused_for_their_form() -> None:
    good = device(CHAR, READ, *NULL)
    with load(rawrun.ALLOW) as program:
        program.refuses(errno.EINVAL)
        program.refuses(errno.EINVAL, good, b"payload")
        program.refuses(errno.E2BIG, good + b"\1")
        program.refuses(errno.EFAULT, good, ctx_in=8)
        for field in ("flags", "cpu", "batch_size"):
            program.refuses(errno.EINVAL, good, **{field: 1})
        assert program.request(good + bytes(20)).retval == 1


@pytest.mark.parametrize(("verdict", "err"), [(1, 0), (0, -errno.EPERM)])
def test_verdict_becomes_the_errno_of_the_call(verdict: int, err: int) -> None:
    with load([asm.mov_imm(0, verdict), asm.exit_()]) as program:
        answer = program.request(device(CHAR, READ, *NULL))
        assert (answer.retval, answer.err) == (verdict, err)


def test_program_chooses_the_errno() -> None:
    """bpf_set_retval(): 5.18."""
    code = [asm.mov_imm(1, -errno.EACCES), rawrun.call(SET_RETVAL), *rawrun.ALLOW]
    with unless_older_than(5, 18), load(code) as program:
        assert program.request(device(CHAR, READ, *NULL), repeat=2).err == -errno.EACCES


@contextlib.contextmanager
def node(path: Path, file_type: int, number: tuple[int, int]) -> Iterator[Path]:
    os.mknod(path, file_type | 0o777, os.makedev(*number))
    try:
        yield path
    finally:
        path.unlink()


def test_a_real_call_asks_for_what_is_possible_and_for_nothing_else() -> None:
    """The program attached to a cgroup, and calls by a process inside."""
    made = Path("/dev/shm/bpfunit-device")
    with Cells() as cells, load(rawrun.record(cells, [0, 4, 8])) as program, Cgroup() as cgroup:

        def asked(call: object, *args: object) -> tuple[int, ...]:
            """What the program saw of one call, which may fail."""
            cells.clear()
            with contextlib.suppress(OSError):
                result = call(*args)  # type: ignore[operator]
                if isinstance(result, int) and not isinstance(result, bool):
                    os.close(result)
            return cells.read()[:3]

        def words(*access: int) -> tuple[int, ...]:
            return struct.unpack("=III", device(*access))

        def nothing() -> tuple[int, ...]:
            return (0, 0, 0)

        with cgroup.attached(AttachType.CGROUP_DEVICE, program.fd), cgroup.entered():
            with node(made, stat.S_IFCHR, NULL):
                assert asked(os.open, made, os.O_RDONLY) == words(CHAR, READ, *NULL)
                assert asked(os.open, made, os.O_WRONLY) == words(CHAR, WRITE, *NULL)
                assert asked(os.open, made, os.O_RDWR) == words(CHAR, READ | WRITE, *NULL)
                assert asked(os.access, made, os.X_OK) == words(CHAR, ANY, *NULL)
                assert asked(os.stat, made) == nothing()
            with node(made, stat.S_IFCHR, (0, 0)):
                assert asked(os.open, made, os.O_RDONLY) == nothing()
            for file_type, number, seen in [
                (stat.S_IFCHR, NULL, words(CHAR, MKNOD, *NULL)),
                (stat.S_IFCHR, (0, 0), nothing()),
                (stat.S_IFBLK, (0, 0), words(BLOCK, MKNOD, 0, 0)),
            ]:
                assert asked(os.mknod, made, file_type | 0o600, os.makedev(*number)) == seen
                made.unlink()
