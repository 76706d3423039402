"""Programs that watch others at work: fentry, fexit, on a program or a function of the kernel."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
