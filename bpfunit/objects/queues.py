"""Maps without keys: queues, stacks and bloom filters."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from typing import Any, NoReturn

from bpfunit._sys import bpf, uapi
from bpfunit._sys.uapi import Cmd, MapType
from bpfunit.errors import BpfunitError
from bpfunit.objects.maps import Map


class QueueMap(Map):
    """A queue or stack (Linux 4.20), or a bloom filter (5.16): ``push``, ``pop``, ``peek``.

    What it holds cannot be listed or counted: the kernel gives the next value only. A bloom filter
    takes values and says whether it may hold one: ``value in m``.
    """

    def push(self, value: Any, flags: int = uapi.BPF_ANY) -> None:
        """Add a value; with ``flags`` BPF_EXIST (2) the oldest makes room in a full one.

        Raises:
            SyscallError: E2BIG when it is full.
        """
        self._call("push to", Cmd.MAP_UPDATE_ELEM, self.encode_value(value), flags)
        self.touched.append(("push", None, value))

    def pop(self, *_no_key: Any) -> Any:
        """Remove the next value (the oldest of a queue, the youngest of a stack) and return it.

        Raises:
            IndexError: it is empty.
        """
        return self._next("pop from", Cmd.MAP_LOOKUP_AND_DELETE_ELEM)

    def peek(self) -> Any:
        """Return the next value and leave it there.

        Raises:
            IndexError: it is empty.
        """
        return self._next("peek into", Cmd.MAP_LOOKUP_ELEM)

    def clear(self) -> None:
        """Remove every value."""
        self._require_listed(self.type != MapType.BLOOM_FILTER)
        empty = bytes(self._value_stride)
        while self._call("pop from", Cmd.MAP_LOOKUP_AND_DELETE_ELEM, empty) is not None:
            pass

    def snapshot_values(self) -> list[bytes]:
        """Return the bytes of all values, the next one first; they are taken out and put back."""
        empty, values = bytes(self._value_stride), list[bytes]()
        while True:
            raw = self._call("pop from", Cmd.MAP_LOOKUP_AND_DELETE_ELEM, empty)
            if raw is None:
                break
            values.append(raw)
        self._fill(values)
        return values

    def restore_values(self, values: list[bytes]) -> None:
        """Hold exactly these values, as :meth:`snapshot_values` gave them."""
        self.clear()
        self._fill(values)

    def _fill(self, values: list[bytes]) -> None:
        for raw in reversed(values) if self.type == MapType.STACK else values:
            self._call("push to", Cmd.MAP_UPDATE_ELEM, raw)

    def _next(self, verb: str, command: Cmd) -> Any:
        raw = self._call(verb, command, bytes(self._value_stride))
        if raw is None:
            raise IndexError(f"{verb} {self.name}: it is empty")
        return self.decode_value(raw)

    def _call(self, verb: str, command: Cmd, value: bytes, flags: int = 0) -> bytes | None:
        """Make one call and return the value's bytes after it, None when there was none."""
        buffer = ctypes.create_string_buffer(value, len(value))
        attr = uapi.MapElemAttr(map_fd=self.descriptor, value=ctypes.addressof(buffer), flags=flags)
        result = bpf.call(command, attr)
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise self._error(f"{verb} map", -result)
        return buffer.raw

    def __contains__(self, value: object) -> bool:
        self._require_listed(self.type == MapType.BLOOM_FILTER)
        return self._call("ask", Cmd.MAP_LOOKUP_ELEM, self.encode_value(value)) is not None

    def _require_listed(self, possible: bool) -> None:
        if not possible:
            self._refuse()

    def _refuse(self, *_args: Any, **_named: Any) -> NoReturn:
        map_type = getattr(self.type, "name", str(self.type)).lower().replace("_", " ")
        raise BpfunitError(
            f"list map {self.name}: a {map_type} has no keys, and the kernel does not list what it"
            " holds; there is push, pop and peek"
        )

    def __iter__(self) -> Iterator[Any]:
        self._refuse()

    def __len__(self) -> int:
        self._refuse()

    def __bool__(self) -> bool:
        return True  # else Python would ask for the length

    # a key may be 0 bytes long here, so nothing may reach the kernel as one
    __getitem__ = __setitem__ = __delitem__ = lookup = put = update = update_raw = _refuse
    snapshot = snapshot_raw = get = _refuse
