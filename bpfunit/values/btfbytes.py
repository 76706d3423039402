"""BTF made here: a table of types as bytes, in the encoding of ``Documentation/bpf/btf.rst``."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

MAGIC = 0xEB9F
_VERSION, _HEADER = 1, 24

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT = range(9, 17)
DECL_TAG, TYPE_TAG, ENUM64 = 17, 18, 19
_SIGNED, _CHAR, _BOOL = 1, 2, 4  # BTF_INT_* encodings


def enum_members(
    raw: bytes, offset: int, vlen: int, *, wide: bool = False, signed: bool = True
) -> Iterator[tuple[int, int]]:
    """Yield the members of an enum: the offset of the name in the string table, and the value.

    Args:
        raw: BTF.
        offset: where the members begin, bytes.
        vlen: how many there are.
        wide: whether it is an ENUM64.
        signed: whether the values are.
    """
    for at in range(offset, offset + (12 if wide else 8) * vlen, 12 if wide else 8):
        if wide:
            name, low, high = struct.unpack_from("=III", raw, at)
            value = low | high << 32
            value -= (1 << 64) if signed and high >> 31 else 0
        else:
            name, value = struct.unpack_from("=Ii" if signed else "=II", raw, at)
        yield name, value


class Writer:
    """Collects types; ids count from 1 in the order in which they are added."""

    def __init__(self) -> None:
        self._types = bytearray()
        self._strings = bytearray(b"\0")
        self._offsets: dict[str, int] = {"": 0}

    def _name(self, name: str) -> int:
        if name not in self._offsets:
            self._offsets[name] = len(self._strings)
            self._strings += name.encode() + b"\0"
        return self._offsets[name]

    def _head(self, name: str, kind: int, size_or_type: int, vlen: int = 0, flag: int = 0) -> None:
        info = flag << 31 | kind << 24 | vlen
        self._types += struct.pack("=III", self._name(name), info, size_or_type)

    def integer(self, name: str, size: int, *, signed: bool, char: bool, boolean: bool) -> None:
        """Add an integer of ``size`` bytes."""
        self._head(name, INT, size)
        encoding = _SIGNED * signed | _CHAR * char | _BOOL * boolean
        self._types += struct.pack("=I", encoding << 24 | size * 8)

    def floating(self, name: str, size: int) -> None:
        """Add a floating-point number of ``size`` bytes."""
        self._head(name, FLOAT, size)

    def reference(self, kind: int, name: str, target: int) -> None:
        """Add a pointer, typedef or qualifier of type ``target``, 0 for void."""
        self._head(name, kind, target)

    def function(self) -> None:
        """Add a function's type; nothing but pointers refers to it, so it has no parameters."""
        self._head("", FUNC_PROTO, 0)

    def declared(self, name: str, *, union: bool) -> None:
        """Add a struct or union of which nothing but the name is known."""
        self._head(name, FWD, 0, 0, int(union))

    def array(self, element: int, index: int, length: int) -> None:
        """Add an array."""
        self._head("", ARRAY, 0)
        self._types += struct.pack("=III", element, index, length)

    def record(
        self, kind: int, name: str, size: int, members: Sequence[tuple[str, int, int, int]]
    ) -> None:
        """Add a struct or union.

        Args:
            kind: STRUCT or UNION.
            name: its tag, "" without one.
            size: bytes.
            members: (name, type id, bit offset, bits of a bit-field or 0).
        """
        flag = int(any(bits for *_, bits in members))
        self._head(name, kind, size, len(members), flag)
        for member, type_id, offset, bits in members:
            word = bits << 24 | offset
            self._types += struct.pack("=III", self._name(member), type_id, word)

    def enumeration(self, name: str, size: int, values: Sequence[tuple[str, int]]) -> None:
        """Add an enum; one of 8 bytes becomes an ENUM64."""
        signed = int(any(value < 0 for _, value in values))
        if size == 8:
            self._head(name, ENUM64, size, len(values), signed)
            for item, value in values:
                low, high = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
                self._types += struct.pack("=III", self._name(item), low, high)
            return
        self._head(name, ENUM, size, len(values), signed)
        for item, value in values:
            self._types += struct.pack("=II", self._name(item), value & 0xFFFFFFFF)

    def bytes(self) -> bytes:
        """Return the whole as a ``.BTF`` section holds it."""
        types, strings = bytes(self._types), bytes(self._strings)
        header = struct.pack(
            "=HBBIIIII", MAGIC, _VERSION, 0, _HEADER, 0, len(types), len(types), len(strings)
        )
        return header + types + strings
