"""An array map of one value that programs reach by address and user space by mmap."""

from __future__ import annotations

import ctypes
import mmap
import os
import types
import weakref

from bpfunit._sys import bpf, libc, uapi
from bpfunit._sys.uapi import BPF_F_MMAPABLE, Cmd, MapType


class ValueMap:
    """Memory shared between BPF programs and this process; a context manager, or `close` it.

    One that is dropped without closing takes its descriptor with it.

    Programs take its address with `insn.load_map_value` (since Linux 5.2); here it is `memory`,
    mapped, so that reading costs no system call (since Linux 5.5).

    Args:
        name: the map's name, at most 15 characters of it.
        size: bytes, at least 1.
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self.fd = -1
        self._own(bpf.map_create(name, MapType.ARRAY, 4, size, 1, BPF_F_MMAPABLE))
        # The kernel maps whole pages only and the value lies at the start of the first.
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        # Not by Python's mmap, which keeps a descriptor of its own for as long as the mapping.
        address = libc.map_shared(self.fd, pages)
        self._unmap = weakref.finalize(self, libc.unmap, address, pages)
        self._unmap.atexit = False
        self.memory = memoryview((ctypes.c_ubyte * pages).from_address(address)).cast("B")
        self.id = int(bpf.object_info(f"inspect map {name}", self.fd, uapi.MapInfo()).id)

    def _own(self, fd: int) -> None:
        self.fd = fd
        self._close_fd = weakref.finalize(self, os.close, fd)
        self._close_fd.atexit = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called: the memory is gone."""
        return not self._unmap.alive

    def rest(self) -> None:
        """Release the descriptor until `wake`; the mapping keeps the map."""
        if self.fd >= 0:
            self._close_fd()
            self.fd = -1

    def wake(self) -> int:
        """Return the descriptor, a new one after `rest`.

        Raises:
            SyscallError: EMFILE, or EPERM for lack of CAP_SYS_ADMIN.
        """
        if self.fd < 0:
            self._own(bpf.fd_by_id("open map", Cmd.MAP_GET_FD_BY_ID, self.id))
        return self.fd

    def read(self) -> bytes:
        """Return the whole value."""
        return bytes(self.memory[: self.size])

    def write(self, offset: int, data: bytes) -> None:
        """Overwrite part of the value."""
        self.memory[offset : offset + len(data)] = data

    def clear(self) -> None:
        """Set the whole value to zero."""
        self.memory[: self.size] = bytes(self.size)

    def close(self) -> None:
        """Release the descriptor and the mapping; programs that use the map keep it alive."""
        self.memory.release()
        self._unmap()
        self.rest()

    def __enter__(self) -> ValueMap:
        """Return self."""
        return self

    def __exit__(
        self,
        _error_type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: types.TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
