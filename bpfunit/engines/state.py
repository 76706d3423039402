"""What a program can change from one run to the next, to be read, compared and put back."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from bpfunit._sys import bpf, uapi
from bpfunit._sys.uapi import Cmd, MapType
from bpfunit.engines import NotApplicableError
from bpfunit.engines.sockets import may_change
from bpfunit.objects.maps import Map
from bpfunit.objects.queues import QueueMap

# (the map's name and id, the key's bytes) to the value's bytes; a socket's storage has the key b""
State = dict[tuple[str, bytes], bytes]

_STATELESS = uapi.FD_MAPS | uapi.SOCKET_MAPS | {MapType.RINGBUF}
_QUEUES = {MapType.QUEUE, MapType.STACK}
_CONSTANT = 1 << 7  # BPF_F_RDONLY_PROG: .rodata, which no run changes


class ProgramState:
    """The maps that a program, and every program it can tail-call now, refers to.

    ``may_change_socket`` says whether any of them can bind its socket or set options of it.

    The kernel is asked which maps those are, so that it works for a program of anyone's. A context
    manager; the descriptors it opens are closed at its end.

    Args:
        prog_fd: the program.

    Attributes:
        storages: its socket storages, by the kernel's id.
    """

    def __init__(self, prog_fd: int) -> None:
        self._resources = ExitStack()
        self._plain: dict[int, Map] = {}
        self.storages: dict[int, Map] = {}
        self._unreadable = ""
        self._queues: dict[int, QueueMap] = {}
        self.may_change_socket = False
        seen: set[int] = set()
        try:
            self._collect(prog_fd, seen)
        except BaseException:
            self._resources.close()
            raise

    def _collect(self, prog_fd: int, seen: set[int]) -> None:
        self.may_change_socket = self.may_change_socket or may_change(prog_fd)
        for map_id in _map_ids(prog_fd):
            if map_id in seen:
                continue
            seen.add(map_id)
            fd = bpf.fd_by_id("open map", Cmd.MAP_GET_FD_BY_ID, map_id)
            one = Map(fd, owned=True)
            self._resources.callback(one.close)
            if one.type == MapType.BLOOM_FILTER:
                self._unreadable = one.name
            elif one.type in _QUEUES:
                self._queues[map_id] = QueueMap(fd)
            elif one.type == MapType.SK_STORAGE:
                self.storages[map_id] = one
            elif one.type == MapType.PROG_ARRAY:
                for prog_id in _programs_in(one):
                    with _opened_program(prog_id) as target:
                        self._collect(target, seen)
            elif one.type not in _STATELESS and not one.flags & _CONSTANT:
                self._plain[map_id] = one

    def take(self, sock: socket.socket | None) -> State:
        """Read every entry, and what the socket has in the storage maps.

        Raises:
            NotApplicableError: a map is a bloom filter, which cannot be read or put back.
        """
        if self._unreadable:
            raise NotApplicableError(
                f"put map {self._unreadable} back between the engines: a bloom filter cannot be"
                " read; run on one engine at a time"
            )
        state: State = {}
        for map_id, one in self._plain.items():
            keys, values = one.snapshot_raw()
            size = len(keys) // one.key_size
            stride = len(values) // size if size else 0
            for n in range(size):
                key = keys[n * one.key_size : (n + 1) * one.key_size]
                state[f"{one.name}#{map_id}", key] = values[n * stride : (n + 1) * stride]
        for map_id, one in self.storages.items():
            value = None if sock is None else one.lookup(sock.fileno())
            if value is not None:
                state[f"{one.name}#{map_id}", b""] = value
        for map_id, queue in self._queues.items():
            for n, raw in enumerate(queue.snapshot_values()):
                state[f"{queue.name}#{map_id}", n.to_bytes(4, "big")] = raw
        return state

    def restore(self, found: State, wanted: State, sock: socket.socket | None) -> None:
        """Write back what differs from ``wanted``; what does not is not touched.

        Args:
            found: the state as it is, which the last :meth:`take` told.
            wanted: the state as it is to be.
            sock: the socket that both were taken with.
        """
        for map_id, queue in self._queues.items():
            name = f"{queue.name}#{map_id}"
            entries = sorted(entry for entry in wanted if entry[0] == name)
            queue.restore_values([wanted[entry] for entry in entries])
        maps = {f"{m.name}#{n}": m for n, m in (self._plain | self.storages).items()}
        for entry in found.keys() | wanted.keys():
            if entry[0] not in maps or found.get(entry) == wanted.get(entry):
                continue
            one, key = maps[entry[0]], entry[1]
            if not key:
                assert sock is not None  # take() finds storage for a socket only
                key = sock.fileno().to_bytes(4, sys.byteorder)
            if entry in wanted:
                one.update_raw(key, wanted[entry])
            else:
                del one[one.decode_key(key)]

    def close(self) -> None:
        """Close the descriptors."""
        self._resources.close()

    def __enter__(self) -> ProgramState:
        """Return self."""
        return self

    def __exit__(
        self,
        _error_type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def _map_ids(prog_fd: int) -> list[int]:
    """Return the ids of the maps that a program refers to."""
    info = bpf.object_info("read program info", prog_fd, uapi.ProgInfo())
    ids = (ctypes.c_uint32 * info.nr_map_ids)()
    wanted = uapi.ProgInfo(nr_map_ids=len(ids), map_ids=ctypes.addressof(ids))
    bpf.object_info("read program info", prog_fd, wanted)
    return list(ids)


def _programs_in(array: Map) -> Iterator[int]:
    """Yield the ids of the programs in an array; a lookup from user space gives the id."""
    for index in range(array.max_entries):
        if raw := array.lookup(index):
            yield int.from_bytes(raw, sys.byteorder)


@contextmanager
def _opened_program(prog_id: int) -> Iterator[int]:
    fd = bpf.fd_by_id("open program", Cmd.PROG_GET_FD_BY_ID, prog_id)
    try:
        yield fd
    finally:
        os.close(fd)
