"""C types by name, made from BTF, the type format that clang puts into BPF objects.

The encoding is that of ``Documentation/bpf/btf.rst``. Layouts follow BTF's offsets to the bit,
packed structs and padding included, and every class is checked against them when it is made.
"""

from __future__ import annotations

import ctypes
import difflib
import enum
import struct
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from bpfunit._sys import libbpf
from bpfunit.errors import NotFoundError
from bpfunit.values import btfbytes as kinds
from bpfunit.values import records
from bpfunit.values.layout import BtfError, Layout, require_equal

_LISTED = 60  # how many names an error shows: enough for a hook's own types

_QUALIFIERS = {kinds.TYPEDEF, kinds.VOLATILE, kinds.CONST, kinds.RESTRICT, kinds.TYPE_TAG}
# bytes that follow a type's 12-byte head: (fixed, per element of vlen)
_TAIL = {
    kinds.INT: (4, 0),
    kinds.ARRAY: (12, 0),
    kinds.STRUCT: (0, 12),
    kinds.UNION: (0, 12),
    kinds.ENUM: (0, 8),
    kinds.FUNC_PROTO: (0, 8),
    kinds.VAR: (4, 0),
    kinds.DATASEC: (0, 12),
    kinds.DECL_TAG: (4, 0),
    kinds.ENUM64: (0, 12),
}
SPELLED = {"struct": kinds.STRUCT, "union": kinds.UNION, "enum": kinds.ENUM}
# a name alone means, in this order, what C programmers most likely mean
NAMED_KINDS = (
    kinds.TYPEDEF,
    kinds.STRUCT,
    kinds.UNION,
    kinds.ENUM,
    kinds.ENUM64,
    kinds.INT,
    kinds.FLOAT,
)


class _Type(NamedTuple):
    kind: int
    name: str
    size_or_type: int
    vlen: int
    kflag: bool
    tail: int  # offset of what follows the head


class _Member(NamedTuple):
    name: str
    type_id: int
    bit_offset: int
    bits: int  # 0 unless a bit-field


class Variable(NamedTuple):
    """A global variable: its place in the data section (bytes) and its type."""

    section: str
    offset: int
    size: int
    type_id: int


class Types:
    """The C types of one object: ``types.frontend_key``, ``types["struct ip_addr"]``.

    Structs and unions are ``ctypes`` classes, typedefs of anonymous structs are named by the
    typedef, enums are ``IntEnum`` classes, integers are the ctypes integers.

    Args:
        raw: BTF as the ``.BTF`` section holds it.
        source: what the BTF came from, for errors.

    Raises:
        BtfError: the BTF is malformed or of the other byte order.
    """

    def __init__(self, raw: bytes, source: str = "BTF") -> None:
        self._raw = raw
        self._source = source
        self._types = [_Type(0, "void", 0, 0, False, 0), *self._parse()]
        self._made: dict[int, Any] = {}
        self._index: dict[str, list[int]] = {}
        for type_id, info in enumerate(self._types):
            if info.name and info.kind in NAMED_KINDS:
                self._index.setdefault(info.name, []).append(type_id)

    def _parse(self) -> Iterator[_Type]:
        raw = self._raw
        if len(raw) < 24 or struct.unpack_from("=H", raw)[0] != kinds.MAGIC:
            raise BtfError(f"read BTF of {self._source}: no BTF magic of this byte order")
        (header, type_off, type_len, str_off, str_len) = struct.unpack_from("=IIIII", raw, 4)
        strings = raw[header + str_off : header + str_off + str_len]
        position, end = header + type_off, header + type_off + type_len
        while position < end:
            name_off, info, size_or_type = struct.unpack_from("=III", raw, position)
            kind, vlen = info >> 24 & 0x1F, info & 0xFFFF
            name = strings[name_off : strings.index(b"\0", name_off)].decode()
            yield _Type(kind, name, size_or_type, vlen, bool(info >> 31), position + 12)
            fixed, each = _TAIL.get(kind, (0, 0))
            position += 12 + fixed + each * vlen
        self._strings = strings

    def mentions(self, name: str) -> bool:
        """Whether anything at all has this name in the BTF: a type, a member, a tag."""
        return b"\0" + name.encode() + b"\0" in self._strings

    def _name_at(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def __getitem__(self, name: str) -> Any:
        """Return the type of this C name ("frontend_key", "struct ip_addr", "__u32").

        Raises:
            NotFoundError: there is no such type; the nearest names come first.
        """
        found = self.find(name)
        if found is None:
            raise self._missing(name)
        return found

    @property
    def source(self) -> str:
        """What the types came from, for errors."""
        return self._source

    def find(self, name: str) -> Any | None:
        """Return the type of this C name, None when there is none.

        Raises:
            BtfError: several types have the name and differ, as in an object linked of several.
        """
        candidates = self._candidates(name)
        return self._unambiguous(name, candidates) if candidates else None

    def _missing(self, name: str) -> NotFoundError:
        return self._not_found(name)

    def _not_found(self, name: str, hint: str = "") -> NotFoundError:
        names = list(self)
        near = difflib.get_close_matches(name.rpartition(" ")[2], names, n=5)
        others = sorted(n for n in names if n not in near)
        operation = f"look up type in {self._source}"
        return NotFoundError(operation, name, [*near, *others][:_LISTED], hint)

    def _unambiguous(self, name: str, candidates: list[int]) -> Any:
        """Return the one type that a name means; an object linked of several may have more."""
        kind = min(NAMED_KINDS.index(self._types[i].kind) for i in candidates)
        same = [i for i in candidates if self._types[i].kind == NAMED_KINDS[kind]]
        first = self.by_id(same[0])
        for other in same[1:]:
            require_equal(name, (self._source, first), (self._source, self.by_id(other)))
        return first

    def _candidates(self, name: str) -> list[int]:
        # "unsigned int" has a space too, so only the keywords of tags are taken off
        prefix, _, rest = name.partition(" ")
        if prefix not in SPELLED:
            return self._index.get(name, [])
        return [i for i in self._index.get(rest, ()) if self._types[i].kind == SPELLED[prefix]]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return self[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._candidates(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._index]

    def __repr__(self) -> str:
        return f"<types of {self._source}: {len(self._index)} names>"

    def by_id(self, type_id: int) -> Any:
        """Return the Python type of a BTF type id, as map definitions refer to it.

        Raises:
            BtfError: it has no value in memory (void, a function, a declaration only).
        """
        if type_id not in self._made:
            self._made[type_id] = self._make(type_id, "")
        return self._made[type_id]

    @cached_property
    def variables(self) -> dict[str, list[Variable]]:
        """The variables of the object's sections by name; static ones may share theirs."""
        found: dict[str, list[Variable]] = {}
        for section in self._types:
            if section.kind != kinds.DATASEC:
                continue
            for i in range(section.vlen):
                type_id, offset, size = struct.unpack_from("=III", self._raw, section.tail + 12 * i)
                var = self._types[type_id]
                if var.kind == kinds.VAR:
                    variable = Variable(section.name, offset, size, var.size_or_type)
                    found.setdefault(var.name, []).append(variable)
        return found

    def _make(self, type_id: int, typedef: str) -> Any:
        info = self._types[type_id]
        if info.kind in _QUALIFIERS:
            name = info.name if info.kind == kinds.TYPEDEF else typedef
            target = self._types[info.size_or_type]
            # one class per type, but an anonymous struct is a class per typedef that names it
            return (
                self.by_id(info.size_or_type)
                if target.name
                else self._make(info.size_or_type, name)
            )
        makers: dict[int, Callable[[_Type, str], Any]] = {
            kinds.INT: self._make_int,
            kinds.PTR: lambda *_: ctypes.c_uint64,
            kinds.ARRAY: self._make_array,
            kinds.STRUCT: self._make_record,
            kinds.UNION: self._make_record,
            kinds.ENUM: self._make_enum,
            kinds.ENUM64: self._make_enum,
            kinds.FLOAT: lambda i, _: ctypes.c_float if i.size_or_type == 4 else ctypes.c_double,
        }
        if info.kind not in makers:
            raise BtfError(
                f"make type {info.name or type_id} of {self._source}: it has no layout"
                f" (BTF kind {info.kind})"
            )
        return makers[info.kind](info, info.name or typedef or f"anonymous_{type_id}")

    def _make_int(self, info: _Type, _name: str) -> Any:
        encoding = struct.unpack_from("=I", self._raw, info.tail)[0] >> 24
        if encoding & 4:
            return ctypes.c_bool
        if info.size_or_type == 16:
            return records.array_type(ctypes.c_uint64, 2)
        return records.INTEGERS[info.size_or_type, bool(encoding & 1)]

    def _make_array(self, info: _Type, _name: str) -> Any:
        element, _index, length = struct.unpack_from("=III", self._raw, info.tail)
        resolved = self._strip(element)
        if self._types[resolved].kind == kinds.INT and self._types[resolved].name == "char":
            return records.array_type(ctypes.c_char, length)
        return records.array_type(self._storage(element), length)

    def _make_enum(self, info: _Type, name: str) -> Any:
        found = kinds.enum_members(
            self._raw,
            info.tail,
            info.vlen,
            wide=info.kind == kinds.ENUM64,
            signed=self._enum_signed(info),
        )
        return enum.IntEnum(name, {self._name_at(offset): value for offset, value in found})

    def _strip(self, type_id: int) -> int:
        while self._types[type_id].kind in _QUALIFIERS:
            type_id = self._types[type_id].size_or_type
        return type_id

    def _storage(self, type_id: int) -> Any:
        """Return the ctypes type that holds such a value in memory; enums become integers."""
        info = self._types[self._strip(type_id)]
        if info.kind in (kinds.ENUM, kinds.ENUM64):
            return records.INTEGERS[info.size_or_type, self._enum_signed(info)]
        return self.by_id(type_id)

    def _enum_signed(self, info: _Type) -> bool:
        # LLVM before 16 does not say whether an enum is signed; its values then read as __s32, and
        # a negative one is far likelier than one above 2^31
        if info.kflag or info.kind == kinds.ENUM64:
            return info.kflag
        values = (
            struct.unpack_from("=i", self._raw, info.tail + 8 * i + 4) for i in range(info.vlen)
        )
        return any(value < 0 for (value,) in values)

    def storage_by_id(self, type_id: int) -> Any:
        """Return the ctypes type that holds a value of BTF type ``type_id``; enums as integers."""
        return self._storage(type_id)

    def _members(self, info: _Type) -> Iterator[_Member]:
        for i in range(info.vlen):
            name_off, type_id, offset = struct.unpack_from("=III", self._raw, info.tail + 12 * i)
            bits = offset >> 24 if info.kflag else 0
            offset = offset & 0xFFFFFF if info.kflag else offset
            target = self._types[self._strip(type_id)]
            if not info.kflag and target.kind == kinds.INT:
                # before kind_flag, the width sat in the integer type itself
                word = struct.unpack_from("=I", self._raw, target.tail)[0]
                width, shift = word & 0xFF, word >> 16 & 0xFF
                if width != target.size_or_type * 8:
                    bits, offset = width, offset + shift
            yield _Member(self._name_at(name_off), type_id, offset, bits)

    def _make_record(self, info: _Type, name: str) -> Any:
        union = info.kind == kinds.UNION
        layout = Layout(name, info.size_or_type, union)
        for member in self._members(info):
            if member.bits:
                signed = self._is_signed(member.type_id)
                layout.add_bits(member.name, member.bit_offset, member.bits, signed)
            else:
                layout.add(member.name, member.bit_offset // 8, self._storage(member.type_id))
        return layout.finish(self._source)

    def _is_signed(self, type_id: int) -> bool:
        info = self._types[self._strip(type_id)]
        if info.kind == kinds.INT:
            return bool(struct.unpack_from("=I", self._raw, info.tail)[0] >> 24 & 1)
        return self._enum_signed(info)


@lru_cache(maxsize=64)
def types_of(raw: bytes, source: str) -> Types:
    """Return the types of this BTF, parsed once per process: each test loads its object afresh."""
    return Types(raw, source)


def raw_btf(handle: int) -> bytes:
    """Copy the raw data out of libbpf's ``struct btf *``."""
    size = ctypes.c_uint32()
    address = libbpf.lib().btf__raw_data(handle, ctypes.byref(size))
    return ctypes.string_at(address, size.value)
