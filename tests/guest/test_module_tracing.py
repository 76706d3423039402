"""Programs of type ``kprobe`` and ``tracepoint``: registers, records, cookies, refusals."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfunit._sys import bpf, libc
from bpfunit._sys.uapi import MapType, ProgType
from bpfunit.errors import SyscallError
from bpfunit.features import kernel_version
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun, rawtcp
from .rawrun import Cells, Descriptor, TypedProgram

pytestmark = pytest.mark.guest

GET_ATTACH_COOKIE, GET_STACK, PERF_EVENT_OUTPUT = 174, 67, 25
PROBE_READ_KERNEL = 113
TRACE_KPROBE_MULTI = 42  # enum bpf_attach_type
RSH = 0x70
# Where struct pt_regs has the first two arguments, another register, the instruction's and the
# stack's address: arch/*/include/asm/ptrace.h.
OFFSETS = {
    "x86_64": {"di": 112, "si": 104, "ax": 80, "ip": 128, "sp": 152},
    "aarch64": {"di": 0, "si": 8, "ax": 16, "ip": 256, "sp": 248},
    "s390x": {"di": 40, "si": 48, "ax": 56, "ip": 16, "sp": 144},
}[platform.machine()]
DI, SI, AX, IP, SP = OFFSETS.values()
# What makes registers those of user space, and where its frame pointer is: cs, pstate, the psw.
USER, FRAME = {
    "x86_64": ((136, 3), 32),
    "aarch64": ((264, 0), 29 * 8),
    "s390x": ((8, 1 << 48), 24 + 11 * 8),
}[platform.machine()]
GETPPID = {"x86_64": "__x64", "aarch64": "__arm64", "s390x": "__s390x"}[platform.machine()]
TRACEFS = Path("/sys/kernel/tracing")
RETURN_0 = [asm.mov_imm(0, 0), asm.exit_()]
RETURN_1 = [asm.mov_imm(0, 1), asm.exit_()]


def kprobe(code: Sequence[Insn]) -> TypedProgram:
    return TypedProgram([asm.mov_reg(6, 1), *code], ProgType.KPROBE)


def tracepoint(code: Sequence[Insn]) -> TypedProgram:
    return TypedProgram([asm.mov_reg(6, 1), *code], ProgType.TRACEPOINT)


@functools.cache
def pt_regs_size() -> int:
    """Return the size of the kernel's struct pt_regs, which is 168 on x86-64 always."""
    with kprobe(RETURN_0) as program:
        size = int(program.request(bytes(8), data_room=0).ctx_size)
    assert size == 168 or platform.machine() != "x86_64"
    return size


def registers(**values: int) -> bytes:
    raw = bytearray(pt_regs_size())
    for name, value in values.items():
        struct.pack_into("=Q", raw, OFFSETS[name], value)
    return bytes(raw)


def tell(cells: Cells, *offsets: int) -> list[Insn]:
    """Copy 64-bit words of the context into the cells."""
    code = asm.load_map_value(7, cells.fd, 0)
    for n, offset in enumerate(offsets):
        code = [*code, asm.load(8, 2, 6, offset), asm.store(8, 7, 8 * n, 2)]
    return code


def words(cells: Cells) -> tuple[int, ...]:
    raw = struct.pack(f"={cells.count}I", *cells.read())
    return struct.unpack(f"={cells.count // 2}Q", raw)


class PerfEvent(Descriptor):
    """A tracepoint or kprobe of perf_event_open(2) with a program attached to it."""

    def __init__(self, event_type: int, config: int, names: tuple[str, int], prog_fd: int) -> None:
        name = ctypes.create_string_buffer(names[0].encode())
        # struct perf_event_attr: type, size, config, sample_period … config1, config2
        attr = bytearray(128)
        struct.pack_into("=IIQQ", attr, 0, event_type, 128, config, 1)
        if names[0]:
            struct.pack_into("=QQ", attr, 56, ctypes.addressof(name), names[1])
        buffer = ctypes.create_string_buffer(bytes(attr), 128)
        syscall = ctypes.CDLL(None, use_errno=True).syscall
        number = {"x86_64": 298, "aarch64": 241, "s390x": 331}[platform.machine()]
        fd = syscall(number, buffer, 0, -1, -1, ctypes.c_ulong(8))
        assert fd >= 0, os.strerror(ctypes.get_errno())
        super().__init__(fd)
        ioctl = ctypes.CDLL(None, use_errno=True).ioctl
        for request, argument in ((0x40042408, prog_fd), (0x2400, 0)):  # SET_BPF, ENABLE
            if ioctl(fd, ctypes.c_ulong(request), argument) != 0:
                self.close()
                raise OSError(ctypes.get_errno(), "attach to a perf event")


@contextmanager
def on_kprobe(function: str, prog_fd: int) -> Iterator[None]:
    number = int(Path("/sys/bus/event_source/devices/kprobe/type").read_text())
    with PerfEvent(number, 0, (function, 0), prog_fd):
        yield


@contextmanager
def on_tracepoint(event: str, prog_fd: int) -> Iterator[None]:
    number = int((TRACEFS / "events" / event / "id").read_text())
    with PerfEvent(2, number, ("", 0), prog_fd):
        yield


@pytest.fixture(autouse=True, scope="module")
def tracefs() -> None:
    if not (TRACEFS / "events").is_dir():
        bpf.mount("tracefs", str(TRACEFS))


# ---- kprobe


def test_a_kprobe_sees_the_registers() -> None:
    with Cells() as cells, kprobe([*tell(cells, DI, SI, AX, IP, SP), *RETURN_0]) as program:
        answer = program.request(registers(di=1, si=2**64 - 1, ax=3, ip=4, sp=5), data_room=0)
        assert words(cells)[:5] == (1, 2**64 - 1, 3, 4, 5)
        assert answer.retval == 0
        assert answer.ctx[: pt_regs_size()] == registers(di=1, si=2**64 - 1, ax=3, ip=4, sp=5)
        assert answer.ctx_size == pt_regs_size()


def test_a_kprobe_sees_what_the_attached_one_sees() -> None:
    """A probe on a system call, and its registers crafted."""
    only_me = [
        rawrun.call(14),  # bpf_get_current_pid_tgid
        asm.alu_imm(RSH, 0, 32),
        asm.branch_imm(asm.JEQ, 0, os.getpid(), 2),
        *RETURN_0,
    ]
    with Cells() as cells, kprobe([*only_me, *tell(cells, DI, SI, AX, IP, SP), *RETURN_1]) as one:
        with on_kprobe(f"{GETPPID}_sys_getppid", one.fd):
            os.getppid()
        seen = words(cells)
        assert seen[3] != 0
        cells.clear()
        crafted = registers(**dict(zip(("di", "si", "ax", "ip", "sp"), seen, strict=False)))
        assert one.request(crafted, data_room=0).retval == 1
        assert words(cells) == seen


def test_registers_that_are_left_out_are_0() -> None:
    with Cells() as cells, kprobe([*tell(cells, AX, DI), *RETURN_0]) as program:
        program.request(registers(ax=3)[: AX + 8], data_room=0)
        assert words(cells)[:2] == (3, 0)
        program.request(registers(ax=3) + bytes(40), data_room=0)
        program.refuses(errno.E2BIG, registers() + b"\1", data_room=0)
        program.refuses(errno.EINVAL, None, data_room=0)


def test_helpers_take_crafted_registers() -> None:
    """A stack, a sample and a read by wild pointers: an errno at most."""
    stack = [
        asm.mov_reg(1, 6),
        asm.mov_reg(2, 10),
        asm.alu_imm(asm.ADD, 2, -64),
        asm.mov_imm(3, 64),
        asm.mov_imm(4, 0),
        rawrun.call(GET_STACK),
        asm.load(8, 3, 6, DI),
        asm.mov_reg(1, 10),
        asm.alu_imm(asm.ADD, 1, -8),
        asm.mov_imm(2, 8),
        rawrun.call(PROBE_READ_KERNEL),
        *RETURN_0,
    ]
    wild = (0, 1, 2**63, 2**64 - 1, 2**64 - 4096, 0xFFFFFFFF81000000, 0xFFFFC90000000000)
    with kprobe(stack) as program:
        for value in wild:
            crafted = registers(di=value, ip=value, sp=value)
            assert program.request(crafted, data_room=0, repeat=20).retval == 0
            user = bytearray(crafted)
            struct.pack_into("=Q", user, *USER)
            struct.pack_into("=Q", user, FRAME, value)
            assert program.request(bytes(user), data_room=0, repeat=20).retval == 0


# ---- tracepoint


def record(*fields: int) -> bytes:
    """Eight bytes that are the kernel's, and 64-bit fields."""
    return struct.pack(f"={1 + len(fields)}Q", 0, *fields)


def test_a_tracepoint_sees_the_record() -> None:
    with Cells() as cells, tracepoint([*tell(cells, 8, 16), *RETURN_1]) as program:
        answer = program.request(record(5, 7), data_room=0)
        assert words(cells)[:2] == (5, 7)
        assert (answer.retval, answer.ctx_size) == (1, 24)
        assert answer.ctx[:24] == record(5, 7)


def test_a_tracepoint_sees_what_the_attached_one_sees() -> None:
    """A real system call's record, word by word, and the same one crafted."""
    with Cells() as cells, tracepoint([*tell(cells, 8, 16, 24), *RETURN_0]) as program:
        with on_tracepoint("syscalls/sys_enter_setns", program.fd), pytest.raises(SyscallError):
            libc.setns(-5, 0x77)
        seen = words(cells)
        assert (seen[1] & 0xFFFFFFFF, seen[2]) == (2**32 - 5, 0x77)
        cells.clear()
        program.request(record(*seen[:3]), data_room=0)
        assert words(cells)[:3] == seen[:3]


def test_a_program_that_reads_past_the_record_is_refused_as_attaching_refuses_it() -> None:
    with Cells() as cells, tracepoint([*tell(cells, 32), *RETURN_0]) as program:
        attached = on_tracepoint("syscalls/sys_enter_setns", program.fd)
        with pytest.raises(OSError) as refused, attached:
            pass
        assert refused.value.errno == errno.EACCES
        program.refuses(errno.EACCES, record(1, 2, 3), data_room=0)
        program.request(record(1, 2, 3, 4), data_room=0)


def test_records_have_a_size() -> None:
    with Cells() as cells, tracepoint([*tell(cells, 8, 64), *RETURN_0]) as program:
        program.request(record(*range(8)), data_room=0)
        program.refuses(errno.EACCES, record(*range(7)), data_room=0)
        program.refuses(errno.EINVAL, bytes(7), data_room=0)
        program.refuses(errno.EINVAL, None, data_room=0)
        program.refuses(errno.E2BIG, bytes(8200), data_room=0)
        program.refuses(errno.EINVAL, b"\1" + bytes(80), data_room=0)
        assert program.request(bytes(8192), ctx_room=8192, data_room=0).ctx_size == 8192


def test_a_tracepoint_can_give_out_samples() -> None:
    """bpf_perf_event_output() finds the registers behind the record's first eight bytes."""
    with Descriptor(bpf.map_create("out", MapType.PERF_EVENT_ARRAY, 4, 4, 1)) as out:
        code = [
            asm.mov_reg(1, 6),
            *rawrun.load_map(2, out.fd),
            asm.mov_imm(3, 0),
            asm.mov_reg(4, 10),
            asm.alu_imm(asm.ADD, 4, -8),
            asm.store_imm(8, 10, -8, 1),
            asm.mov_imm(5, 8),
            rawrun.call(PERF_EVENT_OUTPUT),
            asm.exit_(),
        ]
        with tracepoint(code) as program:  # nobody has opened an event there
            assert program.request(record(1), data_room=0).retval == 2**32 - errno.ENOENT


# ---- both


def head(cookie: int = 0, **fields: int) -> bytes:
    """A ``struct bpfunit_tracing``."""
    return rawtcp.head(fields.pop("sock", 0), **fields) + struct.pack("=Q", cookie)


@pytest.mark.parametrize("make", [kprobe, tracepoint])
def test_a_cookie_is_the_programs(make: Callable[[Sequence[Insn]], TypedProgram]) -> None:
    try:
        program = make(
            [
                *(asm.mov_reg(1, 6), rawrun.call(GET_ATTACH_COOKIE)),
                *(asm.mov_reg(7, 0), asm.mov_reg(0, 7), asm.exit_()),
            ]
        )
    except SyscallError:  # before 5.15
        with make(RETURN_0) as program:
            program.refuses(errno.EOPNOTSUPP, bytes(64), head(1), data_room=0)
        return
    with program:
        assert program.request(bytes(64), head(0x1234), data_room=0).retval == 0x1234
        assert program.request(bytes(64), data_room=0).retval == 0


@pytest.mark.parametrize("make", [kprobe, tracepoint])
def test_wrong_heads_are_refused(make: Callable[[Sequence[Insn]], TypedProgram]) -> None:
    with make(RETURN_0) as program:
        for bad in (
            head(sock=1),
            head(flags=1),
            head(version=2),
            head(reserved=1),
            head()[:20],
            b"",
        ):
            program.refuses(errno.EINVAL, bytes(64), bad, data_room=0)
        program.refuses(errno.E2BIG, bytes(64), head() + b"x", data_room=0)
        assert program.request(bytes(64), head(), data_room=0, repeat=1000).retval == 0


@pytest.mark.parametrize("make", [kprobe, tracepoint])
def test_a_repeated_run_counts_each_time(make: Callable[[Sequence[Insn]], TypedProgram]) -> None:
    with Cells() as cells, make([*rawrun.count(cells), *RETURN_0]) as program:
        program.request(bytes(64), data_room=0, repeat=5000)
        assert cells.read()[0] == 5000


def test_programs_of_another_run_context_are_refused() -> None:
    """kprobe_multi (5.18): its helpers look for another context around the program."""
    fd, _ = bpf.prog_load("multi", ProgType.KPROBE, TRACE_KPROBE_MULTI, asm.encode(RETURN_0))
    if fd < 0:
        assert (fd, kernel_version() >= (5, 18)) == (-errno.EINVAL, False)
        return
    with kprobe(RETURN_0) as program:
        program.close()
        program.fd = fd
        program.refuses(errno.EOPNOTSUPP, registers(), data_room=0)
