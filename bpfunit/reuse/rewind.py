"""Which objects can be put back to what a fresh load gives, and how each of their maps is."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from bpfunit import _native
from bpfunit._native import Way
from bpfunit._sys import bpf, libbpf, uapi
from bpfunit._sys.uapi import Cmd, MapType
from bpfunit.objects.maps import Map
from bpfunit.objects.object import Object
from bpfunit.reuse.key import NotReusableError

_F_NO_PREALLOC, _F_RDONLY_PROG = 1 << 0, 1 << 7
_PASSABLE_FLAGS = _F_NO_PREALLOC | uapi.BPF_F_MMAPABLE | _F_RDONLY_PROG
_MOST_ELEMENTS = 4096  # of arrays, which are looked at one by one
_MOST_BYTES = 1 << 20
_RINGBUF_QUERY = 134  # tells how many bytes were ever sent
# what a map's value may hold that user space neither reads nor writes (special_kptr_list and
# btf_get_field_type in kernel/bpf/btf.c), and the tags of pointers to kernel objects
_SPECIAL = (
    "bpf_timer",
    "bpf_wq",
    "bpf_task_work",
    "bpf_spin_lock",
    "bpf_res_spin_lock",
    "bpf_list_head",
    "bpf_list_node",
    "bpf_rb_root",
    "bpf_rb_node",
    "bpf_refcount",
    "kptr",
    "kptr_untrusted",
    "percpu_kptr",
    "uptr",
)
_WAYS = {
    MapType.HASH: Way.BATCH,
    MapType.PERCPU_HASH: Way.BATCH,
    MapType.LRU_HASH: Way.BATCH,
    MapType.LRU_PERCPU_HASH: Way.BATCH,
    MapType.LPM_TRIE: Way.WALK,
    MapType.HASH_OF_MAPS: Way.WALK,
    MapType.PROG_ARRAY: Way.SLOTS,
    MapType.ARRAY_OF_MAPS: Way.SLOTS,
    MapType.QUEUE: Way.POP,
    MapType.STACK: Way.POP,
    MapType.ARRAY: Way.ELEMENTS,
    MapType.PERCPU_ARRAY: Way.ELEMENTS,
    MapType.SK_STORAGE: Way.SOCKETS,
    MapType.RINGBUF: Way.DRAINED,
}
_LRU = {MapType.LRU_HASH, MapType.LRU_PERCPU_HASH}
# those whose accounted memory moves with each entry, where the kernel counts them (Linux 6.4)
_COUNTED = {MapType.HASH, MapType.PERCPU_HASH}


class Rewind:
    """Puts one loaded object back, as often as is wanted.

    Made right after the load, before any program has run. Nothing is believed: a map that cannot be
    shown to be as it was makes :meth:`rewind` fail.

    Args:
        obj: the object.

    Raises:
        NotReusableError: the object has something that cannot be put back.
    """

    def __init__(self, obj: Object) -> None:
        self._function = _native.rewind()
        if self._function is None:
            raise NotReusableError("there is no C compiler")
        _require_plain(obj)
        self._initial: list[Any] = []  # what C points at
        self._has_sockets = False
        plans = [self._plan(one) for one in obj.maps.values()]
        plans += self._sections(obj)
        self._names = [plan.name for plan in plans]
        self._maps = (_native.RewoundMap * len(plans))(*(plan.entry for plan in plans))
        self._written = [plan.counted for plan in plans]
        self.start(obj)

    def start(self, obj: Object) -> None:
        """Have the keys noted that the coming test writes."""
        for one, counted in zip(obj.maps.values(), self._written, strict=False):
            one.written = set() if counted else None

    def rewind(self, obj: Object) -> Object:
        """Return the object as a fresh load gives it, as a new Python object; the old one is dead.

        Args:
            obj: the object as the test leaves it.

        Raises:
            NotReusableError: it cannot be put back; it still has to be closed.
        """
        if obj.observation.escaped:
            raise NotReusableError(obj.observation.escaped)
        if self._has_sockets and _has_children():
            raise NotReusableError("socket storage, and a child process may hold a socket")
        renewed = obj.renewed()
        try:
            self._put_back(renewed, [one.written for one in obj.maps.values()])
        except BaseException:
            renewed.close()
            raise
        self.start(renewed)
        return renewed

    def _put_back(self, obj: Object, written: list[set[bytes] | None]) -> None:
        buffers = []
        for entry, keys in zip(self._maps, written, strict=False):
            entry.known = -1 if keys is None else len(keys)
            if keys:
                buffer = ctypes.create_string_buffer(b"".join(keys))
                buffers.append(buffer)
                entry.keys = ctypes.addressof(buffer)
        reached = self._function(ctypes.byref(self._maps), len(self._maps))
        if reached < len(self._maps):
            error = self._maps[reached].error
            said = errno.errorcode.get(error, str(error)) if error else "it is not as it was"
            raise NotReusableError(f"map {self._names[reached]} could not be put back: {said}")

    # -- the maps

    def _plan(self, one: Map) -> _Plan:
        way = _WAYS.get(one.type)  # type: ignore[call-overload]
        of_type = getattr(one.type, "name", str(one.type)).lower()
        if way is None:
            raise NotReusableError(f"a map of type {of_type}")
        if one.type in _LRU and libbpf.lib().libbpf_num_possible_cpus() > 1:
            # what is evicted first depends on the processors that the tests before ran on
            raise NotReusableError(f"a map of type {of_type}, and several processors")
        if one.type in _LRU and not memory_tells_entries():
            # seen on 5.10: what is evicted first depends on what the map held before
            raise NotReusableError(f"a map of type {of_type}, and a kernel before 6.4")
        if one.flags & ~_PASSABLE_FLAGS and not _is_clone(one):
            raise NotReusableError(f"a map with flags {one.flags:#x}")
        many = one.max_entries > _MOST_ELEMENTS
        many = many or one.max_entries * one.value_stride > _MOST_BYTES
        if many and way in (Way.SLOTS, Way.ELEMENTS, Way.POP):
            raise NotReusableError(f"a map of type {of_type} with many elements")
        if one.type == MapType.PROG_ARRAY and not getattr(one, "users", ()):
            # the kernel ties it for good to the first program that comes into it
            raise NotReusableError("a program array that no program of the object refers to")
        if way in (Way.SLOTS, Way.WALK) and any(True for _ in one):
            raise NotReusableError(f"a map of type {of_type} that is filled by the load")
        if way is Way.SOCKETS:
            self._has_sockets = True
        counted = one.type in _COUNTED and bool(one.flags & _F_NO_PREALLOC)
        counted = (counted or one.type == MapType.LPM_TRIE) and memory_tells_entries()
        return self._entry(
            one.name, one.descriptor, way, one.key_size, one.value_stride, one.max_entries, counted
        )

    def _entry(
        self,
        name: str,
        fd: int,
        way: Way,
        key_size: int,
        value_size: int,
        max_entries: int,
        counted: bool,
        initial: Any = None,
    ) -> _Plan:
        memory, frozen = _native.map_state(fd)
        if frozen < 0:
            raise NotReusableError("the kernel does not say whether a map is frozen")
        self._initial.append(initial)
        entry = _native.RewoundMap(
            fd=fd,
            way=way,
            key_size=key_size,
            value_size=value_size,
            max_entries=max_entries,
            known=-1,
            initial=ctypes.addressof(initial) if initial is not None else None,
            memory=memory if counted else -1,
            frozen=frozen,
        )
        return _Plan(name, entry, counted)

    def _sections(self, obj: Object) -> Iterator[_Plan]:
        for name, fd in obj.sections.descriptors().items():
            if fd < 0:
                continue  # libbpf made none
            if name.startswith((".rodata", ".kconfig")):
                yield self._constant(name, fd)
                continue
            if not name.startswith((".data", ".bss")):
                raise NotReusableError(f"a section {name}")
            info = bpf.object_info(f"inspect section {name}", fd, uapi.MapInfo())
            key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(int(info.value_size))
            attr = uapi.MapElemAttr(
                map_fd=fd, key=ctypes.addressof(key), value=ctypes.addressof(value)
            )
            bpf.call_checked(f"read section {name}", Cmd.MAP_LOOKUP_ELEM, attr)
            yield self._entry(name, fd, Way.ELEMENTS, 4, len(value), 1, False, value)

    def _constant(self, name: str, fd: int) -> _Plan:
        plan = self._entry(name, fd, Way.DRAINED, 4, 0, 1, False)
        if not plan.entry.frozen:
            raise NotReusableError(f"a section {name} that user space can write")
        return plan


class _Plan(NamedTuple):
    """How one map is put back."""

    name: str
    entry: _native.RewoundMap
    counted: bool


def _is_clone(one: Map) -> bool:
    """Whether a storage's flags are only that sockets made by accepting get a copy."""
    return one.type == MapType.SK_STORAGE and not one.flags & ~(_F_NO_PREALLOC | 1 << 9)


def _require_plain(obj: Object) -> None:
    if obj.calls_kernel:
        raise NotReusableError("its programs call functions of the kernel (kfuncs)")
    if _RINGBUF_QUERY in obj.helpers:
        raise NotReusableError("a program asks for the positions of a ring buffer")
    if obj.prints:
        raise NotReusableError("its programs print (bpf_printk)")
    if obj.sections.overrides_configuration:
        raise NotReusableError("values were chosen for externs of the kernel's configuration")
    special = next((name for name in _SPECIAL if obj.types.mentions(name)), None)
    if special:
        raise NotReusableError(f"its types have a {special}")


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@lru_cache(maxsize=1)
def memory_tells_entries() -> bool:
    """Whether this kernel accounts each entry to a hash without preallocation (Linux 6.4).

    Before, the memory is that of a full map whatever it holds, and proves nothing. Tried, not
    guessed from the version: with the entry there it is more, and without it what it was.
    """
    fd = bpf.map_create("bpfunit_count", MapType.HASH, 4, 4, 8, _F_NO_PREALLOC)
    try:
        key = ctypes.c_uint32(1)
        attr = uapi.MapElemAttr(map_fd=fd, key=ctypes.addressof(key), value=ctypes.addressof(key))
        empty, _ = _native.map_state(fd)
        bpf.call_checked("fill a map", Cmd.MAP_UPDATE_ELEM, attr)
        filled, _ = _native.map_state(fd)
        attr.value = 0  # what a deletion does not use has to be zero
        bpf.call_checked("empty a map", Cmd.MAP_DELETE_ELEM, attr)
        again, _ = _native.map_state(fd)
    finally:
        os.close(fd)
    return filled > empty >= 0 and again == empty
