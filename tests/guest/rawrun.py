"""Programs of a few instructions, and test runs of them by ``bpf(2)`` alone.

The tests of the kernel module speak to the kernel without the loader and the API between, so that
what they find is the module's doing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import pytest

from bpfunit._sys import bpf, uapi
from bpfunit._sys.uapi import AttachType, Cmd, MapType, ProgType
from bpfunit.errors import SyscallError
from bpfunit.progtypes.sock_addr import HOOKS, SOCK_ADDR_SIZE, BpfSockAddr, craft
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

# offsets in struct bpf_sock_addr
USER_FAMILY, USER_IP4, USER_IP6, USER_PORT = 0, 4, 8, 24
FAMILY, TYPE, PROTOCOL, MSG_SRC_IP4, MSG_SRC_IP6, SK = 28, 32, 36, 40, 44, 64
# offset of state in struct bpf_sock
SOCK_STATE = 72

ALLOW = [asm.mov_imm(0, 1), asm.exit_()]
RESULT_SIZE = 4  # sizeof(struct bpfunit_result) of vm/testrun/bpfunit_testrun.h


Opened = TypeVar("Opened", bound="Descriptor")


class Descriptor:
    """A file descriptor that closes with its ``with`` block."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


@dataclass(frozen=True)
class Answer:
    """What one test run answered; ``ctx`` and ``data`` are no longer than their buffers."""

    retval: int
    duration: int
    ctx: bytes
    ctx_size: int
    data: bytes
    data_size: int

    @property
    def err(self) -> int:
        """What the hook would hand to the system call: 0 or a negative errno."""
        return int.from_bytes(self.data[:RESULT_SIZE], sys.byteorder, signed=True)


class TypedProgram(Descriptor):
    """A program of raw instructions, of any type.

    Raises:
        SyscallError: the verifier refused it; the hint is its log.
    """

    def __init__(self, code: Iterable[Insn], prog_type: int, attach_type: int = 0) -> None:
        fd, log = bpf.prog_load("raw", prog_type, attach_type, asm.encode(code))
        if fd < 0:
            raise SyscallError("load raw program", -fd, log)
        super().__init__(fd)
        self.attach_type = attach_type

    def request(
        self,
        ctx: bytes | None = None,
        data: bytes | None = None,
        *,
        ctx_room: int = 512,
        data_room: int = RESULT_SIZE,
        **fields: Any,
    ) -> Answer:
        """Ask for a test run; ``fields`` are further fields of the request, as they are.

        The answer is in ``last``, too, where it can be seen after a refusal.

        Raises:
            SyscallError: the request was refused or ended early.
        """
        ctx_in, data_in = (
            ctypes.create_string_buffer(b, max(len(b), 1)) if b is not None else None
            for b in (ctx, data)
        )
        ctx_out = ctypes.create_string_buffer(max(ctx_room, 1))
        data_out = ctypes.create_string_buffer(max(data_room, 1))
        attr = uapi.TestRunAttr(prog_fd=self.fd)
        attr.data_out, attr.data_size_out = ctypes.addressof(data_out), data_room
        if ctx_room:
            attr.ctx_out, attr.ctx_size_out = ctypes.addressof(ctx_out), ctx_room
        if ctx_in is not None:
            attr.ctx_in, attr.ctx_size_in = ctypes.addressof(ctx_in), len(ctx or b"")
        if data_in is not None:
            attr.data_in, attr.data_size_in = ctypes.addressof(data_in), len(data or b"")
        for name, value in fields.items():
            setattr(attr, name, value)
        try:
            bpf.call_checked("run raw program", Cmd.PROG_TEST_RUN, attr)
        finally:
            self.last = Answer(
                attr.retval,
                attr.duration,
                ctx_out.raw[:ctx_room],
                attr.ctx_size_out,
                data_out.raw[:data_room],
                attr.data_size_out,
            )
        return self.last

    def refuses(self, expected: int, *args: bytes | None, **fields: Any) -> None:
        """Assert that a request fails with this errno."""
        with pytest.raises(SyscallError) as refused:
            self.request(*args, **fields)
        assert errno.errorcode[refused.value.errno or 0] == errno.errorcode[expected]


@dataclass(frozen=True)
class Run:
    """What one test run of a ``cgroup_sock_addr`` program answered."""

    retval: int
    duration: int
    ctx: BpfSockAddr
    ctx_size: int
    err: int


class RawProgram(TypedProgram):
    """A ``cgroup_sock_addr`` program of raw instructions."""

    def __init__(
        self, code: Iterable[Insn], attach_type: int = AttachType.CGROUP_INET4_CONNECT
    ) -> None:
        super().__init__(code, ProgType.CGROUP_SOCK_ADDR, attach_type)

    def craft(self, **crafted: object) -> BpfSockAddr:
        """Fill a context for this program's hook, as ``progtypes.sock_addr.craft`` does."""
        return craft(HOOKS[self.attach_type], **crafted)  # type: ignore[arg-type]

    def run(
        self, ctx: BpfSockAddr | bytes | None, *, out_size: int = SOCK_ADDR_SIZE, **fields: Any
    ) -> Run:
        """Run with ``ctx``; ``fields`` are further fields of the request, as they are.

        Raises:
            SyscallError: the request was refused or ended early.
        """
        given = bytes(ctx) if ctx is not None else None
        answer = self.request(given, ctx_room=out_size, **fields)
        return Run(
            retval=answer.retval,
            duration=answer.duration,
            ctx=BpfSockAddr.from_buffer_copy(answer.ctx.ljust(SOCK_ADDR_SIZE, b"\0")),
            ctx_size=answer.ctx_size,
            err=answer.err,
        )


class Cells(Descriptor):
    """A map of one value of 32-bit cells, which a program writes and the test reads."""

    def __init__(self, count: int = 32) -> None:
        self.count = count
        super().__init__(bpf.map_create("cells", MapType.ARRAY, 4, 4 * count, 1))

    def read(self) -> tuple[int, ...]:
        """Return all cells as unsigned numbers of this machine."""
        key = ctypes.c_uint32(0)
        value = ctypes.create_string_buffer(4 * self.count)
        attr = uapi.MapElemAttr(
            map_fd=self.fd, key=ctypes.addressof(key), value=ctypes.addressof(value)
        )
        bpf.call_checked("read cells", Cmd.MAP_LOOKUP_ELEM, attr)
        return struct.unpack(f"={self.count}I", value.raw)

    def clear(self) -> None:
        """Set all cells to 0."""
        self.write(b"")

    def write(self, head: bytes) -> None:
        """Set the first cells to these bytes and all others to 0."""
        key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(head, 4 * self.count)
        attr = uapi.MapElemAttr(
            map_fd=self.fd, key=ctypes.addressof(key), value=ctypes.addressof(value)
        )
        bpf.call_checked("write cells", Cmd.MAP_UPDATE_ELEM, attr)


def record(cells: Cells, offsets: Iterable[int]) -> list[Insn]:
    """A program that copies the 32-bit context fields at ``offsets`` into the cells, in order."""
    code = [asm.mov_reg(6, 1), *asm.load_map_value(7, cells.fd, 0)]
    for index, offset in enumerate(offsets):
        code += [asm.load(4, 2, 6, offset), asm.store(4, 7, 4 * index, 2)]
    return code + ALLOW


def count(cells: Cells) -> list[Insn]:
    """Instructions that add 1 to cell 0; they use r8 and r9."""
    return [
        *asm.load_map_value(8, cells.fd, 0),
        asm.load(4, 9, 8, 0),
        asm.alu_imm(asm.ADD, 9, 1),
        asm.store(4, 8, 0, 9),
    ]


def load_map(register: int, fd: int) -> list[Insn]:
    """``register = the map behind fd``, as helpers take it."""
    return [Insn(asm.LD_IMM64, register, asm.PSEUDO_MAP_FD, 0, fd), Insn(0)]


def call(helper: int) -> Insn:
    """A call of a BPF helper by its number."""
    return Insn(asm.JMP | asm.CALL, imm=helper)


def address_fields(attach_type: int) -> list[int]:
    """The offsets of the 32-bit words that programs of this type may read and write."""
    hook = HOOKS[attach_type]
    if hook.family == 2:
        return [USER_IP4, USER_PORT] + [MSG_SRC_IP4] * hook.has_source
    words = [USER_IP6 + 4 * i for i in range(4)] + [USER_PORT]
    return words + [MSG_SRC_IP6 + 4 * i for i in range(4)] * hook.has_source


def loaded_programs() -> int:
    """The number of BPF programs in the kernel."""
    found, attr = 0, uapi.ByIdAttr()
    while bpf.call(Cmd.PROG_GET_NEXT_ID, attr) == 0:
        found, attr.id = found + 1, attr.next_id
    return found


def storage_map() -> int:
    """Create an sk_storage map of one int a socket; the caller closes the descriptor."""
    # one BTF type, «int»: Documentation/bpf/btf.rst
    types = struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    names = b"\0int\0"
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    blob = ctypes.create_string_buffer(header + types + names, 24 + len(types) + len(names))

    class BtfLoadAttr(ctypes.Structure):
        _fields_ = (
            ("btf", ctypes.c_uint64),
            ("btf_log_buf", ctypes.c_uint64),
            ("btf_size", ctypes.c_uint32),
        )

    btf_attr = BtfLoadAttr(btf=ctypes.addressof(blob), btf_size=len(blob))
    with Descriptor(bpf.call_checked("load BTF", Cmd.BTF_LOAD, btf_attr)) as btf:
        attr = uapi.MapCreateAttr(
            map_type=MapType.SK_STORAGE,
            key_size=4,
            value_size=4,
            map_flags=1,  # BPF_F_NO_PREALLOC, which the type demands
            btf_fd=btf.fd,
            btf_key_type_id=1,
            btf_value_type_id=1,
        )
        return bpf.call_checked("create sk_storage", Cmd.MAP_CREATE, attr)
