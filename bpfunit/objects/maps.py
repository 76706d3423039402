"""Maps of a loaded object as Python mappings with typed keys and values."""

from __future__ import annotations

import contextlib
import ctypes
import errno as errnos
import fcntl
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Protocol

from bpfunit import _native
from bpfunit._sys import bpf, libbpf, uapi
from bpfunit._sys.uapi import Cmd, MapType
from bpfunit.errors import ENOTSUPP, FieldValueError, SyscallError
from bpfunit.values import records
from bpfunit.values.encoders import encoder

# for a slot of which the kernel tells nobody what it holds; ENOSPC: 4 bytes hold no socket's cookie
_NOT_SHOWN = (ENOTSUPP, errnos.EOPNOTSUPP, errnos.ENOSPC)
_NOTED = 1000  # keys: to delete more one by one costs more than to look for them
_BATCH = 16384  # entries per system call: a few megabytes at most, and a signal is not kept waiting


class _Buffers(threading.local):
    """The buffers of one call on a map, of each thread its own: a call gives up the GIL."""

    def __init__(self, key_size: int, value_size: int) -> None:
        self.key = ctypes.create_string_buffer(key_size)
        self.value = ctypes.create_string_buffer(value_size)
        self.attr = uapi.MapElemAttr(
            key=ctypes.addressof(self.key), value=ctypes.addressof(self.value)
        )


class Owner(Protocol):
    """Whoever has to know what became of an object's maps and programs."""

    def note_escape(self, reason: str) -> None:
        """Learn that something may have been done to the object that nobody can see."""


class Map(MutableMapping[Any, Any]):
    """One map: ``m[key]``, ``m[key] = value``, ``del m[key]``, ``len``, iteration, ``update``.

    Arrays of programs, maps, sockets and the like have the slots that are filled. Some of them the
    kernel shows to nobody (perf events, cgroups, AF_XDP sockets, sockets with values of 4 bytes):
    they read as what this object wrote. Of a sockhash with such values all keys are there, whoever
    entered the sockets: ``key in m``, ``list(m)`` and ``len(m)`` tell, and ``m[key]`` is a KeyError
    where a program did. Keys and values are of ``key_type`` and ``value_type`` and
    take whatever :func:`bpfunit.values.records.coerce` turns into them; bytes where no type is
    known. A per-CPU map's value is a list with one value for each possible CPU. A socket-storage
    map is keyed by a socket.

    Args:
        fd: the map's descriptor; the map does not own it unless ``owned``.
        name: the name shown in errors; by default the kernel's (15 characters).
        key_type: ctypes type of the key, None for bytes.
        value_type: ctypes type of the value, None for bytes.
        owned: close the descriptor with the map.

    Attributes:
        descriptor: the same as ``fd``, for calls that leave nothing behind.
        written: the bytes of the keys that were written through this object, where somebody wants
            to know; None where nobody does, or when they are too many.
        owner: who wants to know when the map's descriptor or number is read.
    """

    def __init__(
        self,
        fd: int,
        name: str | None = None,
        key_type: Any = None,
        value_type: Any = None,
        *,
        owned: bool = False,
    ) -> None:
        info = bpf.object_info(f"inspect map {name or fd}", fd, uapi.MapInfo())
        self.descriptor = fd
        self.name = name or info.name.decode()
        self.type: int = _map_type(info.type)
        self.key_size, self.value_size = int(info.key_size), int(info.value_size)
        self.max_entries = int(info.max_entries)
        self._id, self.flags = int(info.id), int(info.map_flags)
        self.percpu = self.type in uapi.PERCPU_MAPS
        self._owned = owned
        if key_type is None and (self.type in uapi.INDEXED_MAPS or self._is_storage()):
            key_type = ctypes.c_int32 if self._is_storage() else ctypes.c_uint32
        if value_type is None and self.type in uapi.FD_MAPS:
            value_type = ctypes.c_uint32
        if value_type is None and self.type in uapi.SOCKET_MAPS:
            value_type = ctypes.c_uint64 if self.value_size == 8 else ctypes.c_uint32
        self.key_type = self._fitting("key", key_type, self.key_size)
        self.value_type = self._fitting("value", value_type, self.value_size)
        self._stride = self.value_size
        if self.percpu:
            self._cpus = int(libbpf.lib().libbpf_num_possible_cpus())
            self._stride = (self.value_size + 7) // 8 * 8
        self._value_stride = (self._stride * (self._cpus if self.percpu else 1)) or 1
        self._buffers = _Buffers(self.key_size or 1, self._value_stride)
        self._in_c = _native.extension()
        self._is_plain = not self.percpu and self.type not in {*uapi.FD_MAPS, *uapi.SOCKET_MAPS}
        # what the test wrote, for failure reports; bounded, a property test writes without end
        self.touched: deque[tuple[str, Any, Any]] = deque(maxlen=100)
        self.written: set[bytes] | None = None
        self.owner: Owner | None = None
        self._sparse = self.type in uapi.SPARSE_MAPS
        self._placed: dict[bytes, bytes] = {}  # slots that we filled and the kernel does not show
        # a sockhash with values of 4 bytes: the kernel walks its entries and shows none of them
        self._keys_only = self.type == MapType.SOCKHASH and self.value_size != 8

    @property
    def fd(self) -> int:
        """The descriptor, -1 once the map is closed.

        Who has it can do anything with the map: an object whose descriptors were read is not kept
        for another test.
        """
        self._note_escape("descriptor")
        return self.descriptor

    @property
    def id(self) -> int:
        """The kernel's number of the map."""
        self._note_escape("number")
        return self._id

    def _note_escape(self, what: str) -> None:
        if self.owner is not None and self.descriptor >= 0:
            self.owner.note_escape(f"the {what} of a map was read")

    @classmethod
    def from_fd(cls, fd: int, key_type: Any = None, value_type: Any = None) -> Map:
        """Wrap a map of someone else's, for example bcc's ``table.get_fd()``; it stays theirs.

        Raises:
            SyscallError: ``fd`` is not a BPF map.
        """
        bpf.require_bpf_fd("wrap map", fd, "map")
        return cls(fd, None, key_type, value_type)

    def _is_storage(self) -> bool:
        return self.type == MapType.SK_STORAGE

    def _fitting(self, role: str, ctype: Any, size: int) -> Any:
        if ctype is not None and ctypes.sizeof(ctype) != size:
            raise FieldValueError(
                f"map {self.name}: its {role} has {size} bytes,"
                f" {ctype.__name__} has {ctypes.sizeof(ctype)}"
            )
        return ctype

    def close(self) -> None:
        """Close the descriptor when the map owns it; either way the map is dead then."""
        if self._owned:
            os.close(self.descriptor)
            self._owned = False
        # the number may be someone else's by now: every later call shall fail with EBADF
        self.descriptor = -1

    @property
    def value_stride(self) -> int:
        """The bytes of a value as the kernel copies it, those of all possible CPUs."""
        return self._value_stride

    def renewed(self) -> Map:
        """Return the same map as another object, and be dead from now on."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.touched = deque(maxlen=self.touched.maxlen)
        other._placed = {}
        other.written = None
        self._owned = False
        self.close()
        return other

    def _note_written(self, keys: Iterable[bytes]) -> None:
        if self.written is not None:
            self.written.update(keys)
            if len(self.written) > _NOTED:
                self.written = None

    # -- encoding

    def _encode(self, role: str, ctype: Any, size: int, value: Any) -> bytes:
        if ctype is None:
            try:
                raw = bytes(memoryview(value))
            except TypeError:
                raw = None
            if raw is None or len(raw) != size:
                raise FieldValueError(
                    f"map {self.name}: its {role} type is not known, give {size} bytes, or load"
                    f" with map_types={{{self.name!r}: (key type, value type)}}; found {value!r}"
                )
            return raw
        return encoder(ctype)(f"map {self.name}, {role}", value)

    def encode_key(self, key: Any) -> bytes:
        """Return the key's bytes as the kernel sees them."""
        if self.type == MapType.SK_STORAGE and hasattr(key, "fileno"):
            key = key.fileno()
        return self._encode("key", self.key_type, self.key_size, key)

    def encode_value(self, value: Any) -> bytes:
        """Return the value's bytes as the kernel sees them, all CPUs of a per-CPU map."""
        if self._is_plain:
            return self._encode("value", self.value_type, self.value_size, value)
        if self.type in uapi.FD_MAPS and not isinstance(value, (int, bytes)):
            value = self._descriptor_of(value)
        if self.type in uapi.SOCKET_MAPS and hasattr(value, "fileno"):
            value = value.fileno()
        if not self.percpu:
            return self._encode("value", self.value_type, self.value_size, value)
        values = value if isinstance(value, (list, tuple)) else [value] * self._cpus
        if len(values) != self._cpus:
            raise FieldValueError(
                f"map {self.name}: {len(values)} values for {self._cpus} possible CPUs"
            )
        parts = (self._encode("value", self.value_type, self.value_size, v) for v in values)
        return b"".join(part.ljust(self._stride, b"\0") for part in parts)

    def _descriptor_of(self, value: Any) -> Any:
        # what one object puts into its own slots stays in it
        if self.owner is not None and getattr(value, "owner", None) is self.owner:
            return value.descriptor
        return getattr(value, "fd", value)

    def decode_key(self, raw: bytes) -> Any:
        """Return a key from the kernel's bytes."""
        return raw if self.key_type is None else records.decode(self.key_type, raw)

    def decode_value(self, raw: bytes) -> Any:
        """Return a value from the kernel's bytes."""
        if not self.percpu:
            return raw if self.value_type is None else records.decode(self.value_type, raw)
        parts = (_slot(raw, i, self._stride)[: self.value_size] for i in range(self._cpus))
        return [p if self.value_type is None else records.decode(self.value_type, p) for p in parts]

    # -- the mapping

    def _buffers_for(self, raw: bytes) -> _Buffers:
        """Return this thread's buffers, with the key written."""
        buffers = self._buffers
        ctypes.memmove(buffers.key, raw, self.key_size)
        buffers.attr.map_fd, buffers.attr.flags = self.descriptor, 0
        return buffers

    def _error(self, operation: str, errno: int) -> SyscallError:
        hint = ""
        if errno == errnos.E2BIG:
            hint = f"the map is full: max_entries is {self.max_entries}"
        if errno == errnos.EPERM:
            hint = self._access()
        return SyscallError(f"{operation} {self.name}", errno, hint or bpf.hint(errno))

    def _access(self) -> str:
        """Return what the map's flags keep user space from; they are the descriptor's own."""
        access = fcntl.fcntl(self.descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        return {
            os.O_WRONLY: "the map has BPF_F_WRONLY: user space may write it and not read",
            os.O_RDONLY: "the map has BPF_F_RDONLY: user space may read it and not write",
        }.get(access, "")

    def lookup(self, key: Any) -> bytes | None:
        """Return the raw value of ``key``, None when there is none."""
        raw_key = self.encode_key(key)
        size = self._value_stride if self.value_size else 0
        error = 0
        if self._in_c is not None:
            found = self._in_c.look_up(self.descriptor, raw_key, self._value_stride)
            if type(found) is bytes:
                return found[:size]
            error = found
        else:
            buffers = self._buffers_for(raw_key)
            error = -bpf.call(Cmd.MAP_LOOKUP_ELEM, buffers.attr)
        if error == errnos.ENOENT:
            return None
        if self._sparse and error in _NOT_SHOWN:
            return self._placed.get(raw_key)
        if error > 0:
            raise self._error("look up in map", error)
        return buffers.value.raw[:size]

    def __getitem__(self, key: Any) -> Any:
        raw = self.lookup(key)
        if raw is None:
            raise KeyError(key)
        return self.decode_value(raw)

    def put(self, key: Any, value: Any, flags: int = uapi.BPF_ANY) -> None:
        """Write one entry; ``flags`` may be BPF_NOEXIST (1) or BPF_EXIST (2).

        Raises:
            SyscallError: E2BIG when the map is full, EEXIST or ENOENT by the flags.
        """
        raw = self.encode_value(value)
        raw_key = self.encode_key(key)
        if self._in_c is not None:
            error = self._in_c.put(self.descriptor, raw_key, raw, flags)
        else:
            buffers = self._buffers_for(raw_key)
            ctypes.memmove(buffers.value, raw, len(raw))
            buffers.attr.flags = flags
            error = -bpf.call(Cmd.MAP_UPDATE_ELEM, buffers.attr)
        if error > 0:
            raise self._error("update map", error)
        if self.written is not None:
            self._note_written((raw_key,))
        if self._sparse:
            self._placed[raw_key] = raw
        self.touched.append(("set", key, value))

    def __setitem__(self, key: Any, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: Any) -> None:
        buffers = self._buffers_for(self.encode_key(key))
        attr = uapi.MapElemAttr(map_fd=self.descriptor, key=ctypes.addressof(buffers.key))
        result = bpf.call(Cmd.MAP_DELETE_ELEM, attr)
        if result == -errnos.ENOENT:
            raise KeyError(key)
        if result < 0:
            raise self._error("delete from map", -result)
        self._placed.pop(buffers.key.raw, None)
        self.touched.append(("del", key, None))

    def __contains__(self, key: object) -> bool:
        if self._keys_only:
            return self.encode_key(key) in self._raw_keys()
        return self.lookup(key) is not None

    def _raw_keys(self) -> Iterator[bytes]:
        following = ctypes.create_string_buffer(self.key_size)
        attr = uapi.MapElemAttr(map_fd=self.descriptor, value=ctypes.addressof(following))
        current = ctypes.create_string_buffer(self.key_size)
        while True:
            result = bpf.call(Cmd.MAP_GET_NEXT_KEY, attr)
            if result == -errnos.ENOENT:
                return
            if result < 0:
                raise self._error("iterate over map", -result)
            yield following.raw
            ctypes.memmove(current, following, self.key_size)
            attr.key = ctypes.addressof(current)

    def _filled_keys(self) -> Iterator[bytes]:
        """Yield the keys that have a value: the kernel walks empty slots too."""
        for raw in self._raw_keys():
            shown = not self._sparse or self._keys_only
            if shown or self.lookup(self.decode_key(raw)) is not None:
                yield raw

    def __iter__(self) -> Iterator[Any]:
        # the keys are taken first: deleting while walking restarts the kernel's walk
        return iter([self.decode_key(raw) for raw in list(self._filled_keys())])

    def __len__(self) -> int:
        return sum(1 for _ in self._filled_keys())

    def __repr__(self) -> str:
        of_type = getattr(self.type, "name", self.type)
        return f"<map {self.name}: {of_type}, key {self.key_size} B, value {self.value_size} B>"

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Mapping) and dict(self) == dict(other))

    def clear(self) -> None:
        """Delete every entry; array maps are zeroed instead, they cannot lose entries."""
        for raw in list(self._filled_keys()):
            if self.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
                self.put(self.decode_key(raw), self.decode_value(bytes(self._value_stride)))
            else:
                with contextlib.suppress(KeyError):
                    del self[self.decode_key(raw)]

    # -- many entries at once

    def update(self, *sources: Any, **_named: Any) -> None:
        """Write all entries of mappings or of (key, value) pairs, in batches where the kernel can.

        Raises:
            SyscallError: an entry was refused; entries before it are written.
        """
        for source in sources:
            pairs: Iterable[tuple[Any, Any]] = (
                source.items() if isinstance(source, Mapping) else source
            )
            encoded = [(self.encode_key(k), self.encode_value(v)) for k, v in pairs]
            self.update_raw(b"".join(k for k, _ in encoded), b"".join(v for _, v in encoded))

    def update_raw(self, keys: Any, values: Any) -> None:
        """Write many entries from two buffers, such as ``(frontend_key * 100000)()``.

        Uses ``BPF_MAP_UPDATE_BATCH`` (Linux 5.6, hash and array maps), one call an entry elsewhere.

        Args:
            keys: all keys back to back, any buffer.
            values: all values back to back, any buffer.
        """
        key_bytes, value_bytes = memoryview(keys).cast("B"), memoryview(values).cast("B")
        count, rest = divmod(len(key_bytes), self.key_size)
        size = self._value_stride
        if rest or len(value_bytes) != count * size:
            raise FieldValueError(
                f"map {self.name}: {len(key_bytes)} bytes of keys and {len(value_bytes)} of values"
                f" are not the same number of {self.key_size}-byte keys and {size}-byte values"
            )
        self.touched.append(("bulk", count, None))
        if count > _NOTED:
            self.written = None
        elif self.written is not None:
            self._note_written(_slot(bytes(key_bytes), i, self.key_size) for i in range(count))
        for start in range(0, count, _BATCH):
            n = min(_BATCH, count - start)
            key_part = bytes(key_bytes[start * self.key_size : (start + n) * self.key_size])
            value_part = bytes(value_bytes[start * size : (start + n) * size])
            self._update_batch(key_part, value_part, n)

    def _update_batch(self, keys: bytes, values: bytes, count: int) -> None:
        attr = uapi.MapBatchAttr(
            keys=_address(keys), values=_address(values), count=count, map_fd=self.descriptor
        )
        result = bpf.call(Cmd.MAP_UPDATE_BATCH, attr) if count > 1 else -ENOTSUPP
        if result >= 0:
            return
        if -result not in (ENOTSUPP, errnos.EOPNOTSUPP, errnos.EINVAL):
            raise self._error(f"update map (entry {attr.count} of the batch)", -result)
        size, buffers = self._value_stride, self._buffers
        buffers.attr.map_fd, buffers.attr.flags = self.descriptor, 0
        for i in range(count):
            ctypes.memmove(buffers.key, _slot(keys, i, self.key_size), self.key_size)
            ctypes.memmove(buffers.value, _slot(values, i, size), size)
            result = bpf.call(Cmd.MAP_UPDATE_ELEM, buffers.attr)
            if result < 0:
                raise self._error(f"update map (entry {i} of the batch)", -result)

    def snapshot(self) -> dict[Any, Any]:
        """Read all entries at once into a dict, in batches where the kernel can (Linux 5.6)."""
        keys, values = self.snapshot_raw()
        size = self._value_stride
        return {
            self.decode_key(_slot(keys, i, self.key_size)): self.decode_value(
                _slot(values, i, size)
            )
            for i in range(len(keys) // self.key_size)
        }

    def snapshot_raw(self) -> tuple[bytes, bytes]:
        """Read all entries at once: the keys back to back, and the values."""
        if self._sparse:
            return self._snapshot_singly()
        all_keys, all_values = bytearray(), bytearray()
        size = self._value_stride
        # a batch must be able to hold the fullest bucket of a hash map, else the kernel says ENOSPC
        capacity = max(1, min(self.max_entries, _BATCH))
        keys = ctypes.create_string_buffer(capacity * self.key_size)
        values = ctypes.create_string_buffer(capacity * size)
        position = ctypes.create_string_buffer(max(4, self.key_size))
        attr = uapi.MapBatchAttr(
            out_batch=ctypes.addressof(position),
            keys=ctypes.addressof(keys),
            values=ctypes.addressof(values),
            map_fd=self.descriptor,
        )
        while True:
            attr.count = capacity
            result = bpf.call(Cmd.MAP_LOOKUP_BATCH, attr)
            if result < 0 and -result in (ENOTSUPP, errnos.EOPNOTSUPP, errnos.EINVAL):
                return self._snapshot_singly()
            if result < 0 and -result != errnos.ENOENT:
                raise self._error("read map", -result)
            all_keys += ctypes.string_at(keys, attr.count * self.key_size)
            all_values += ctypes.string_at(values, attr.count * size)
            if result < 0:
                return bytes(all_keys), bytes(all_values)
            attr.in_batch = ctypes.addressof(position)

    def _snapshot_singly(self) -> tuple[bytes, bytes]:
        pairs = []
        for raw in self._filled_keys():
            value = self.lookup(self.decode_key(raw))
            if value is not None:
                pairs.append((raw, value))
        return b"".join(k for k, _ in pairs), b"".join(v for _, v in pairs)


def _slot(raw: bytes, index: int, size: int) -> bytes:
    return raw[index * size : (index + 1) * size]


def _address(raw: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(raw), ctypes.c_void_p).value or 0


def _map_type(number: int) -> int:
    try:
        return MapType(number)
    except ValueError:
        return number
