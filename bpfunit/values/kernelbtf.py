"""Where members of the running kernel's structures are, from its own BTF."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from functools import lru_cache

from bpfunit._sys import libbpf
from bpfunit.errors import NotFoundError
from bpfunit.values import btfbytes as kinds

_HEAD, _MEMBER = struct.Struct("=III"), struct.Struct("=III")  # struct btf_type, btf_member
_THROUGH = (kinds.TYPEDEF, kinds.CONST, kinds.VOLATILE)


@lru_cache(maxsize=1)
def _kernel() -> int:
    return int(libbpf.lib().btf__load_vmlinux_btf())


def function(name: str) -> int:
    """Return the BTF id of a function of the kernel.

    Raises:
        NotFoundError: it has none of that name.
        SyscallError: it has no BTF (``CONFIG_DEBUG_INFO_BTF``).
    """
    return _find(name, kinds.FUNC)


def offset(name: str, *members: str) -> int:
    """Return the offset in bytes of a member of a struct, or of one inside of that.

    Args:
        name: of the struct.
        *members: from the outermost to the wanted one; those of anonymous members count as the
            struct's own.

    Raises:
        NotFoundError: there is no such struct or member.
        SyscallError: the kernel has no BTF (``CONFIG_DEBUG_INFO_BTF``).
    """
    type_id, total = _find(name, kinds.STRUCT), 0
    for member in members:
        known = dict(_members(type_id, 0))
        if member not in known:
            raise NotFoundError(f"look up member of the kernel's struct {name}", member, [])
        type_id, bits = known[member]
        total += bits // 8
    return total


def _find(name: str, kind: int) -> int:
    found = int(libbpf.lib().btf__find_by_name_kind(_kernel(), name.encode(), kind))
    if found < 0:
        raise NotFoundError("look up in the kernel's BTF", name, [])
    return found


def _members(type_id: int, base: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name, type and offset in bits of each."""
    lib, at = libbpf.lib(), 0
    while True:
        at = lib.btf__type_by_id(_kernel(), type_id)
        _, info, referred = _HEAD.unpack(ctypes.string_at(at, _HEAD.size))
        if info >> 24 & 31 not in _THROUGH:
            break
        type_id = referred
    if info >> 24 & 31 not in (kinds.STRUCT, kinds.UNION):
        return
    raw = ctypes.string_at(at + _HEAD.size, _MEMBER.size * (info & 0xFFFF))
    for name, inner, bits in _MEMBER.iter_unpack(raw):
        if info >> 31:
            bits &= 0xFFFFFF  # the size of a bit-field is above
        text = lib.btf__name_by_offset(_kernel(), name).decode()
        if text:
            yield text, (inner, base + bits)
        else:
            yield from _members(inner, base + bits)
