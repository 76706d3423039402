"""Network namespaces of a test's own, entered by the calling thread alone."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNET = 0x4000_0000  # include/uapi/linux/sched.h

# os.unshare() and os.setns() come with Python 3.12
_libc = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = [ctypes.c_int]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]


def _checked(operation: str, result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{operation}: {os.strerror(number)}")


@contextmanager
def new_network_namespace() -> Iterator[None]:
    """Move the calling thread into a fresh network namespace, and back at the end."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked("unshare(CLONE_NEWNET)", _libc.unshare(CLONE_NEWNET))
        try:
            yield
        finally:
            _checked("setns", _libc.setns(home, CLONE_NEWNET))
    finally:
        os.close(home)
