"""Programs attached to sockmaps and sockhashes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bpfunit._sys import bpf, uapi
from bpfunit._sys.uapi import Cmd


@contextmanager
def attached(map_fd: int, prog_fd: int, attach_type: int) -> Iterator[None]:
    """Keep a program attached to a map within the block.

    A map has one program of each attach type. A socket takes the map's programs as it is entered,
    and keeps them for as long as it is in the map.

    Raises:
        SyscallError: the kernel refused, with EOPNOTSUPP where the map is no sockmap.
    """
    attr = uapi.AttachAttr(map_fd, prog_fd, attach_type, 0)
    bpf.call_checked("attach program to a sockmap", Cmd.PROG_ATTACH, attr)
    try:
        yield
    finally:
        bpf.call_checked("detach program from a sockmap", Cmd.PROG_DETACH, attr)
