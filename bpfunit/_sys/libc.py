"""Calls of the C library that Python's ``os`` lacks, or has from a later version on only."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from bpfunit._arch import SYS_FINIT_MODULE
from bpfunit.errors import SyscallError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.umount.argtypes = [ctypes.c_char_p]
_libc.umount.restype = ctypes.c_int
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.setns.restype = ctypes.c_int
_libc.unshare.argtypes = [ctypes.c_int]
_libc.unshare.restype = ctypes.c_int
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.munmap.restype = ctypes.c_int
_MAP_FAILED = ctypes.c_void_p(-1).value

CLONE_NEWNET = 0x40000000


def _checked(operation: str, result: int) -> None:
    if result != 0:
        raise SyscallError(operation, ctypes.get_errno())


def umount(target: str) -> None:
    """``umount(2)``."""
    _checked(f"unmount {target}", _libc.umount(target.encode()))


def setns(fd: int, nstype: int) -> None:
    """``setns(2)``: move the calling thread into the namespace behind ``fd``."""
    _checked("enter namespace", _libc.setns(fd, nstype))


def unshare(flags: int) -> None:
    """``unshare(2)``: give the calling thread namespaces of its own (``CLONE_NEW*``)."""
    _checked("make namespace", _libc.unshare(flags))


def map_shared(fd: int, size: int) -> int:
    """``mmap(2)``: map what is behind ``fd`` to read and write, and return its address.

    The mapping keeps the file: the descriptor may be closed. Give it back with :func:`unmap`.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = _libc.mmap(None, size, protection, mmap.MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        raise SyscallError(f"map {size} bytes", ctypes.get_errno())
    return int(address)


def unmap(address: int, size: int) -> None:
    """``munmap(2)``: nothing may use the memory any more."""
    _checked(f"unmap {size} bytes", _libc.munmap(address, size))


def load_module(path: Path) -> None:
    """``finit_module(2)``: insert a kernel module.

    Raises:
        SyscallError: the kernel refused it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syscall(SYS_FINIT_MODULE, fd, b"", 0) != 0:
            raise SyscallError(
                f"load the kernel module {path}",
                ctypes.get_errno(),
                "the kernel's last lines say why; `make kmod` builds it anew",
            )
    finally:
        os.close(fd)
