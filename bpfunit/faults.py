"""Faults that real systems produce, each undone when its block ends, whatever happens in it.

Two groups. *Stubs* replace calls of a helper as the program is loaded; hand them to
``bpfunit.load(path, instrument=[stub])``. *Real* faults exhaust what the kernel checks, and need no
reload.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpfunit._sys import bpf
from bpfunit._sys.uapi import Cmd, MapCreateAttr, MapElemAttr, MapType
from bpfunit.errors import SyscallError
from bpfunit.rewrite.stubs import (
    Argument,
    ClockStub,
    ConstantStub,
    FaultError,
    HelperStub,
    SequenceStub,
)
from bpfunit.tailcalls.tailcalls import ProgArray

if TYPE_CHECKING:
    from bpfunit.objects.maps import Map

__all__ = [
    "Argument",
    "ClockStub",
    "ConstantStub",
    "FaultError",
    "HelperStub",
    "SequenceStub",
    "clock",
    "filled_socket_storage",
    "full_map",
    "missing_target",
    "no_socket_memory",
    "no_storage",
    "random",
    "stub",
    "sysctl",
]

_STORAGE_GET_F_CREATE = 1  # BPF_SK_STORAGE_GET_F_CREATE, uapi linux/bpf.h
_BPF_F_NO_PREALLOC = 1


def stub(helper: str, returns: int = 0, **where: Any) -> ConstantStub:
    """Return a stub that answers calls of ``helper`` with one value, NULL by default.

    Args:
        helper: for example ``"bpf_map_lookup_elem"``.
        returns: the value, 64 bits.
        **where: ``program``, ``site``, ``line``, ``argument``: see `HelperStub`.
    """
    return ConstantStub(helper, returns, **where)


def no_storage(*, creating_only: bool = False, **where: Any) -> ConstantStub:
    """Return a stub for ``bpf_sk_storage_get`` that finds and creates nothing.

    Args:
        creating_only: only calls with ``BPF_SK_STORAGE_GET_F_CREATE``: storage that is there
            already is still found.
        **where: see `HelperStub`.
    """
    if creating_only:
        where["argument"] = Argument(4, _STORAGE_GET_F_CREATE)
    return ConstantStub("bpf_sk_storage_get", 0, **where)


def random(*values: int, **where: Any) -> SequenceStub:
    """Return a stub for ``bpf_get_prandom_u32`` that gives ``values`` in turn, and over again."""
    return SequenceStub("bpf_get_prandom_u32", values, **where)


def clock(start: int = 0, step: int = 0, **where: Any) -> ClockStub:
    """Return a stub for ``bpf_ktime_get_ns``: ``start`` nanoseconds, ``step`` more at each call."""
    return ClockStub(start, step, **where)


@contextmanager
def sysctl(name: str, value: int | str) -> Iterator[None]:
    """Set a kernel parameter for the block, for example ``net.core.optmem_max``.

    Raises:
        FaultError: there is no such parameter, or it does not take the value.
    """
    path = Path("/proc/sys", *name.split("."))
    try:
        before = path.read_text()
        path.write_text(f"{value}\n")
    except OSError as error:
        raise FaultError(f"set sysctl {name} to {value}: {error.strerror}") from error
    try:
        yield
    finally:
        path.write_text(before)


@contextmanager
def no_socket_memory(limit: int = 1) -> Iterator[None]:
    """Leave sockets no option memory, so that ``bpf_sk_storage_get`` cannot create storage.

    The kernel charges a socket's storage against ``net.core.optmem_max`` (``omem_charge`` in
    net/core/bpf_sk_storage.c), a limit of the whole system, and of the caller's network namespace
    from 6.9 on.

    Args:
        limit: bytes that one socket may use.
    """
    with sysctl("net.core.optmem_max", limit):
        yield


@contextmanager
def filled_socket_storage(sock: socket.socket) -> Iterator[int]:
    """Use up one socket's option memory with storage of our own; others are not affected.

    Yields the number of storages that it took.

    Raises:
        SyscallError: the kernel refuses for another reason than memory.
    """
    with ExitStack() as undo:
        taken = 0
        # Large pieces first, then ever smaller ones until not even eight bytes fit.
        size = 16384
        while size >= 8:
            fd = _storage_map(size)
            undo.callback(os.close, fd)
            if _put_storage(fd, sock.fileno(), size):
                taken += 1
                # Closing the map alone would give the memory back some time later.
                undo.callback(_drop_storage, fd, sock)
            else:
                size //= 2
        yield taken


def _storage_btf(size: int) -> int:
    """Load BTF with an int (type 1) and an array of ``size`` ints of one byte (type 3).

    The kernel takes a socket storage map only with BTF for its key and value.
    """
    strings = b"\0int\0char\0"
    types = struct.pack("=IIII", 1, 1 << 24, 4, 0x01000020)  # signed 32-bit int
    types += struct.pack("=IIII", 5, 1 << 24, 1, 0x02000008)  # 8-bit char
    types += struct.pack("=IIIIII", 0, 3 << 24, 0, 2, 1, size)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    data = ctypes.create_string_buffer(header + types + strings)
    attr = _BtfLoadAttr(btf=ctypes.addressof(data), btf_size=len(data) - 1)
    return bpf.call_checked("load BTF of a filler storage", Cmd.BTF_LOAD, attr)


class _BtfLoadAttr(ctypes.Structure):
    """The ``BPF_BTF_LOAD`` part of ``union bpf_attr``."""

    _fields_ = [
        ("btf", ctypes.c_uint64),
        ("btf_log_buf", ctypes.c_uint64),
        ("btf_size", ctypes.c_uint32),
        ("btf_log_size", ctypes.c_uint32),
        ("btf_log_level", ctypes.c_uint32),
    ]


def _storage_map(size: int) -> int:
    btf_fd = _storage_btf(size)
    try:
        attr = MapCreateAttr(
            map_type=MapType.SK_STORAGE,
            key_size=4,
            value_size=size,
            map_flags=_BPF_F_NO_PREALLOC,
            btf_fd=btf_fd,
            btf_key_type_id=1,
            btf_value_type_id=3,
            map_name=b"bpfunit_filler",
        )
        return bpf.call_checked("create filler storage", Cmd.MAP_CREATE, attr)
    finally:
        os.close(btf_fd)


def _put_storage(map_fd: int, socket_fd: int, size: int) -> bool:
    """Give a socket storage of ``size`` bytes; return whether the kernel had memory for it."""
    key, value = ctypes.c_int(socket_fd), ctypes.create_string_buffer(size)
    attr = MapElemAttr(
        map_fd=map_fd, key=ctypes.addressof(key), value=ctypes.addressof(value), flags=0
    )
    result = bpf.call(Cmd.MAP_UPDATE_ELEM, attr)
    if result < 0 and result != -errno.ENOMEM:
        raise SyscallError("fill socket storage", -result)
    return result >= 0


def _drop_storage(map_fd: int, sock: socket.socket) -> None:
    """Take a socket's storage away; a socket that is closed has none any more."""
    key = ctypes.c_int(sock.fileno())
    bpf.call(Cmd.MAP_DELETE_ELEM, MapElemAttr(map_fd=map_fd, key=ctypes.addressof(key)))


@contextmanager
def full_map(target: Map) -> Iterator[int]:
    """Fill a hash map to its last entry, so that the program under test can add none.

    Entries that the map holds already stay; those added have zero values and keys counted down
    from the highest. Yields how many were added.

    Raises:
        FaultError: the map is of a type that is never full (arrays, LRU), or has too few keys.
    """
    if target.type != MapType.HASH:
        raise FaultError(f"fill map {target.name}: only hash maps can be full, this is {target!r}")
    taken = {target.encode_key(key) for key in target}
    free = target.max_entries - len(taken)
    candidates = (_counter_key(number, target.key_size) for number in itertools.count())
    added = list(itertools.islice((key for key in candidates if key not in taken), free))
    try:
        target.update_raw(b"".join(added), bytes(free * target.value_size))
        yield free
    finally:
        _delete_all(target, added)


def _counter_key(number: int, size: int) -> bytes:
    if number >> 8 * size:
        raise FaultError(f"fill map: keys of {size} bytes are used up")
    return bytes(0xFF - byte for byte in number.to_bytes(size, "little"))


def _delete_all(target: Map, keys: Sequence[bytes]) -> None:
    """Delete raw keys; one that the program under test has deleted already does not matter."""
    for raw in keys:
        buffer = ctypes.create_string_buffer(raw, len(raw))
        attr = MapElemAttr(map_fd=target.descriptor, key=ctypes.addressof(buffer))
        bpf.call(Cmd.MAP_DELETE_ELEM, attr)


@contextmanager
def missing_target(array: Map, index: int) -> Iterator[None]:
    """Empty one slot of a program array, so that the tail call fails; refill it afterwards.

    A slot that is empty already stays so.
    """
    program_id = array.get(index)
    if program_id is None:
        yield
        return
    operation = f"open the program in {array.name}[{index}]"
    fd = bpf.fd_by_id(operation, Cmd.PROG_GET_FD_BY_ID, program_id)
    # the very object that was there, where it is known: a result tells a spy from a real program
    held = array.contents.get(index, fd) if isinstance(array, ProgArray) else fd
    try:
        del array[index]
        yield
    finally:
        array[index] = held
        os.close(fd)
