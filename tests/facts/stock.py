"""The kernel without bpfunit's module: programs and test runs as any user of it has them."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfunit._sys import bpf, libbpf, libc, uapi
from bpfunit._sys.uapi import Cmd
from bpfunit.errors import SyscallError
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

ENOTSUPP = 524  # include/linux/errno.h; user space has no name for it
FUNC, STRUCT = 12, 4  # kinds of BTF
HAS_FRAGS = 1 << 5  # BPF_F_XDP_HAS_FRAGS, since Linux 5.18
SLEEPABLE = 1 << 4  # BPF_F_SLEEPABLE


@contextmanager
def stock() -> Iterator[None]:
    """Load programs as the kernel alone would: bpfunit's module sees none within the block.

    It learns of programs by a kprobe, and a switch in debugfs disarms all of those.
    """
    if not Path("/sys/module/bpfunit_testrun").is_dir():
        yield
        return
    directory = Path(tempfile.mkdtemp(prefix="facts-"))
    bpf.mount("debugfs", str(directory))
    switch = directory / "kprobes" / "enabled"
    try:
        switch.write_text("0", encoding="ascii")
        yield
    finally:
        switch.write_text("1", encoding="ascii")
        libc.umount(str(directory))
        directory.rmdir()


def btf_id(name: str, kind: int = FUNC) -> int:
    """Return the id of a type in the kernel's BTF, 0 when it has none of this name."""
    lib = libbpf.lib()
    handle = lib.btf__load_vmlinux_btf()
    found = int(lib.btf__find_by_name_kind(handle, name.encode(), kind))
    lib.btf__free(handle)
    return max(found, 0)


@contextmanager
def loaded(
    code: Iterable[Insn], prog_type: int, attach_type: int = 0, *, flags: int = 0, btf: int = 0
) -> Iterator[int]:
    """Load a program and have its descriptor within the block.

    Raises:
        SyscallError: the kernel refuses it.
    """
    bpf.raise_memlock_limit()
    raw = asm.encode(code)
    text, licence = ctypes.create_string_buffer(raw, len(raw)), ctypes.create_string_buffer(b"GPL")
    attr = uapi.ProgLoadAttr(
        prog_type=prog_type,
        insn_cnt=len(raw) // asm.SLOT_SIZE,
        insns=ctypes.addressof(text),
        license=ctypes.addressof(licence),
        expected_attach_type=attach_type,
        prog_flags=flags,
        attach_btf_id=btf,
    )
    fd = bpf.call_checked("load program", Cmd.PROG_LOAD, attr)
    try:
        yield fd
    finally:
        os.close(fd)


def run(fd: int, data: bytes = b"", ctx: bytes = b"") -> tuple[int, bytes]:
    """Ask for one test run; return its errno, 0 when it ran, and ``ctx_out``."""
    attr = uapi.TestRunAttr(prog_fd=fd)
    buffers = [ctypes.create_string_buffer(one, max(len(one), 1)) for one in (data, ctx)]
    back = ctypes.create_string_buffer(256)
    if data:
        attr.data_in, attr.data_size_in = ctypes.addressof(buffers[0]), len(data)
    if ctx:
        attr.ctx_in, attr.ctx_size_in = ctypes.addressof(buffers[1]), len(ctx)
        attr.ctx_out, attr.ctx_size_out = ctypes.addressof(back), len(back)
    failed = -bpf.call(Cmd.PROG_TEST_RUN, attr)
    return max(failed, 0), back.raw[: attr.ctx_size_out] if ctx else b""


def name_of(error: int) -> str:
    """Return an errno by its name in the kernel's headers."""
    return "ENOTSUPP" if error == ENOTSUPP else errno.errorcode.get(error, str(error))


def refusal(error: SyscallError) -> str:
    """Return the name of the errno of a refused call."""
    return name_of(error.errno or 0)


def packet(size: int, ethertype: int = 0x0800) -> bytes:
    """Return an Ethernet frame of ``size`` bytes with a plausible header behind it."""
    ip = b"\x45\0\0\x14\0\0\0\0\x40\x06\0\0\x7f\0\0\1\x7f\0\0\1"
    ip6 = b"\x60\0\0\0\0\0\x06\x40" + bytes(15) + b"\1" + bytes(15) + b"\1"
    behind = {0x0800: ip, 0x86DD: ip6}.get(ethertype, b"")
    return (bytes(12) + ethertype.to_bytes(2, "big") + behind)[:size].ljust(size, b"\0")
