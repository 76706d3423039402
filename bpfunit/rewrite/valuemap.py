"""An array map of one value that programs reach by address and user space by mmap."""

from __future__ import annotations

import mmap
import os
import types

from bpfunit._sys import bpf
from bpfunit._sys.uapi import BPF_F_MMAPABLE, MapType


class ValueMap:
    """Memory shared between BPF programs and this process; a context manager, or `close` it.

    Programs take its address with `insn.load_map_value` (since Linux 5.2); here it is `memory`,
    mapped, so that reading costs no system call (since Linux 5.5).

    Args:
        name: the map's name, at most 15 characters of it.
        size: bytes, at least 1.
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self.fd = bpf.map_create(name, MapType.ARRAY, 4, size, 1, BPF_F_MMAPABLE)
        # The kernel maps whole pages only and the value lies at the start of the first.
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.memory = mmap.mmap(self.fd, pages)

    def read(self) -> bytes:
        """Return the whole value."""
        return self.memory[: self.size]

    def write(self, offset: int, data: bytes) -> None:
        """Overwrite part of the value."""
        self.memory[offset : offset + len(data)] = data

    def clear(self) -> None:
        """Set the whole value to zero."""
        self.memory[: self.size] = bytes(self.size)

    def close(self) -> None:
        """Release the descriptor and the mapping; programs that use the map keep it alive."""
        if self.fd >= 0:
            self.memory.close()
            os.close(self.fd)
            self.fd = -1

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
