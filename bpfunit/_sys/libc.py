"""Calls of the C library that Python's ``os`` lacks, or has from a later version on only."""

from __future__ import annotations

import ctypes

from bpfunit.errors import SyscallError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.umount.argtypes = [ctypes.c_char_p]
_libc.umount.restype = ctypes.c_int
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.setns.restype = ctypes.c_int
_libc.unshare.argtypes = [ctypes.c_int]
_libc.unshare.restype = ctypes.c_int

CLONE_NEWNET = 0x40000000


def _checked(operation: str, result: int) -> None:
    if result != 0:
        raise SyscallError(operation, ctypes.get_errno())


def umount(target: str) -> None:
    """``umount(2)``."""
    _checked(f"unmount {target}", _libc.umount(target.encode()))


def setns(fd: int, kind: int) -> None:
    """``setns(2)``: move the calling thread into the namespace behind ``fd``."""
    _checked("enter namespace", _libc.setns(fd, kind))


def unshare(flags: int) -> None:
    """``unshare(2)``: give the calling thread namespaces of its own (``CLONE_NEW*``)."""
    _checked("make namespace", _libc.unshare(flags))
