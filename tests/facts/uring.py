"""A connect by io_uring, by its three system calls alone (io_uring(7))."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

from bpfunit.errors import SyscallError

_SETUP, _ENTER = 425, 426  # the same on every architecture
_OP_CONNECT, _ASYNC, _GETEVENTS = 16, 1 << 4, 1
_RINGS, _SQES = 0, 0x10000000
_SQE_SIZE, _CQE_SIZE = 64, 16

_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(operation: str, *arguments: object) -> int:
    result: int = _libc.syscall(*arguments)
    if result < 0:
        raise SyscallError(operation, ctypes.get_errno())
    return result


class Ring:
    """A ring of one entry, made by whoever makes this object.

    Raises:
        SyscallError: the kernel has no io_uring, or it is switched off.
    """

    def __init__(self) -> None:
        # struct io_uring_params: ten words, of which the first two are the rings' entries, then
        # struct io_sqring_offsets and struct io_cqring_offsets, 40 bytes each
        params = ctypes.create_string_buffer(120)
        self.fd = _syscall("make io_uring", _SETUP, 1, params)
        entries = struct.unpack_from("=2I", params, 0)
        self._sq = struct.unpack_from(
            "=7I", params, 40
        )  # head tail mask entries flags dropped array
        self._cq = struct.unpack_from("=6I", params, 80)  # head tail mask entries overflow cqes
        size = max(self._sq[6] + entries[0] * 4, self._cq[5] + entries[1] * _CQE_SIZE)
        self._rings = mmap.mmap(self.fd, size, offset=_RINGS)
        self._sqes = mmap.mmap(self.fd, entries[0] * _SQE_SIZE, offset=_SQES)

    def connect(self, sock_fd: int, address: bytes, *, by_worker: bool) -> int:
        """Connect a socket to a raw ``sockaddr``; return 0 or a negative errno."""
        raw = ctypes.create_string_buffer(address, len(address))
        flags = _ASYNC if by_worker else 0
        # struct io_uring_sqe: opcode, flags, ioprio, fd, off (the address's length), addr
        self._sqes[:_SQE_SIZE] = struct.pack(
            "=BBHiQQ", _OP_CONNECT, flags, 0, sock_fd, len(address), ctypes.addressof(raw)
        ).ljust(_SQE_SIZE, b"\0")
        (tail,) = struct.unpack_from("=I", self._rings, self._sq[1])
        struct.pack_into("=I", self._rings, self._sq[6], 0)
        struct.pack_into("=I", self._rings, self._sq[1], tail + 1)
        _syscall("enter io_uring", _ENTER, self.fd, 1, 1, _GETEVENTS, None, ctypes.c_size_t(0))
        head, mask = (struct.unpack_from("=I", self._rings, self._cq[n])[0] for n in (0, 2))
        at = self._cq[5] + (head & mask) * _CQE_SIZE
        (result,) = struct.unpack_from("=i", self._rings, at + 8)
        struct.pack_into("=I", self._rings, self._cq[0], head + 1)
        return int(result)

    def close(self) -> None:
        """Give the ring back."""
        self._rings.close()
        self._sqes.close()
        os.close(self.fd)
