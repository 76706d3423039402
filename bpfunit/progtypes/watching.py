"""Programs that watch others at work: fentry, fexit, on a program or a function of the kernel.

What more than one type's real calls need is here, too: programs in the making, and the sockets of
this process.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bpfunit._sys import bpf, uapi
from bpfunit._sys.uapi import Cmd, ProgType
from bpfunit.errors import SyscallError
from bpfunit.rewrite import insn as asm


class _TracepointAttr(ctypes.Structure):
    """The ``BPF_RAW_TRACEPOINT_OPEN`` part of ``union bpf_attr``, which attaches these, too."""

    _fields_ = [("name", ctypes.c_uint64), ("prog_fd", ctypes.c_uint32)]


def main_function(prog_fd: int) -> int:
    """Return the BTF type id of a program's main function, 0 for a program without BTF."""
    info = bpf.object_info("read program info", prog_fd, uapi.ProgInfo())
    if not info.nr_func_info:
        return 0
    records = ctypes.create_string_buffer(info.func_info_rec_size)
    wanted = uapi.ProgInfo(
        nr_func_info=1,
        func_info_rec_size=info.func_info_rec_size,
        func_info=ctypes.addressof(records),
    )
    bpf.object_info("read program info", prog_fd, wanted)
    return int.from_bytes(records.raw[4:8], sys.byteorder)


def load(name: str, attach_type: int, code: bytes, function: int, prog_fd: int = 0) -> int:
    """Load a tracing program; return its descriptor or the negative errno.

    Args:
        name: of the program.
        attach_type: ``TRACE_FENTRY`` or ``TRACE_FEXIT``.
        code: its instructions.
        function: the BTF id of what it is attached to.
        prog_fd: the program that the function is one of; 0 for the kernel's own.
    """
    insns, licence = ctypes.create_string_buffer(code, len(code)), ctypes.c_char_p(b"GPL")
    attr = uapi.ProgLoadAttr(
        prog_type=ProgType.TRACING,
        expected_attach_type=attach_type,
        insns=ctypes.addressof(insns),
        insn_cnt=len(code) // asm.SLOT_SIZE,
        license=ctypes.cast(licence, ctypes.c_void_p).value,
        prog_name=name.encode(),
        attach_prog_fd=prog_fd,
        attach_btf_id=function,
    )
    return bpf.call(Cmd.PROG_LOAD, attr)


def link(fd: int) -> int:
    """Attach a tracing program; return the link's descriptor or the negative errno."""
    return bpf.call(Cmd.RAW_TRACEPOINT_OPEN, _TracepointAttr(prog_fd=fd))


@contextmanager
def attached(fd: int) -> Iterator[None]:
    """Keep a loaded tracing program attached within the block, and unload it behind it.

    Raises:
        SyscallError: ``fd`` is a negative errno, of a load that failed, or it cannot be attached.
    """
    if fd < 0:
        raise SyscallError("load a program that watches", -fd)
    try:
        if (made := link(fd)) < 0:
            raise SyscallError("attach a program that watches", -made)
        try:
            yield
        finally:
            os.close(made)
    finally:
        os.close(fd)


class Code:
    """A program in the making; a test that fails leads to its end, with its result."""

    def __init__(self) -> None:
        self._body: list[asm.Insn] = []
        self._jumps: list[int] = []

    def add(self, *insns: asm.Insn) -> Code:
        """Append instructions."""
        self._body += insns
        return self

    def unless(self, op: int, dst: int, src: int | None, value: int = 0) -> Code:
        """Go on unless this comparison, with a register or a value, holds."""
        self._jumps.append(len(self._body))
        if src is None:
            self._body.append(asm.branch_imm(op, dst, value, 0))
        else:
            self._body.append(asm.Insn(asm.JMP | op | asm.SRC_REG, dst, src, 0))
        return self

    def done(self, map_fd: int, result: int = 1) -> bytes:
        """Return it encoded: r6 is the context, r7 the one value of an array map."""
        head = [asm.mov_reg(6, 1), *asm.load_map_value(7, map_fd, 0)]
        for at in self._jumps:
            self._body[at] = self._body[at]._replace(off=len(self._body) - at - 1)
        return asm.encode([*head, *self._body, asm.mov_imm(0, result), asm.exit_()])


@contextmanager
def our_tcp_sockets() -> Iterator[list[socket.socket]]:
    """Give duplicates of this process's TCP sockets."""
    found: list[socket.socket] = []
    with ExitStack() as stack:
        for entry in Path("/proc/self/fd").iterdir():
            try:
                if not str(entry.readlink()).startswith("socket:"):
                    continue
                # a duplicate shares the flags: nothing here may set a time limit on it
                one = socket.socket(fileno=os.dup(int(entry.name)))
            except OSError:
                continue  # closed meanwhile
            stack.callback(one.close)
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                found.append(one)
        yield found
