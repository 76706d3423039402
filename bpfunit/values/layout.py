"""Structs and unions laid out to the byte, and how two layouts of one name differ."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Iterator
from typing import Any

from bpfunit.errors import BpfunitError
from bpfunit.values import records


class BtfError(BpfunitError):
    """Types that are missing, malformed, contradictory, or of a layout that cannot be made."""


class Layout:
    """One struct or union under construction: ctypes fields with the padding spelled out.

    Names made here have characters that no C name has, so that they are nobody's field.
    """

    def __init__(self, name: str, size: int, union: bool) -> None:
        self.name, self.size, self.union = name, size, union
        self.fields: list[tuple[str, Any]] = []
        self.anonymous: list[str] = []
        self.bits: list[records.BitField] = []
        self.members: dict[str, Any] = {}
        self.expected: dict[str, int] = {}
        self.end = 0

    def _pad_to(self, offset: int) -> None:
        if not self.union and offset > self.end:
            self.fields.append(
                (f"<padding {len(self.fields)}>", ctypes.c_uint8 * (offset - self.end))
            )
            self.end = offset

    def add(self, name: str, offset: int, ctype: Any) -> None:
        """Place a member at a byte offset; an empty name is an anonymous struct or union."""
        self._pad_to(offset)
        field = name or f"<anonymous {len(self.fields)}>"
        self.fields.append((field, ctype))
        self.expected[field] = offset
        if name:
            self.members[name] = ctype
        else:
            self.anonymous.append(field)
            self.members.update(ctype._members_)
            for inner, member in _bit_fields(ctype):
                moved = 8 * (offset + member.first) + member.shift
                self.bits.append(records.BitField(inner, moved, member.bits, member.signed))
        self.end = max(self.end, offset + ctypes.sizeof(ctype))

    def add_bits(self, name: str, bit_offset: int, bits: int, signed: bool) -> None:
        """Place a bit-field; unnamed ones are padding."""
        if name:
            self.bits.append(records.BitField(name, bit_offset, bits, signed))
            self.members[name] = None

    def finish(self, source: str) -> Any:
        """Make the class and hold it against BTF's size and offsets."""
        self._pad_to(self.size)
        if self.union and self.end < self.size:
            self.fields.append(("<padding>", ctypes.c_uint8 * self.size))
        base = records.UnionRecord if self.union else records.StructRecord
        namespace = {
            "_pack_": 1,
            "_layout_": "ms",  # Python 3.14 wants it said; without bit-fields it changes nothing
            "_anonymous_": tuple(self.anonymous),
            "_fields_": self.fields,
            "_members_": self.members,
            "__doc__": f"``{self.name}`` of {source}, {self.size} bytes.",
            **{bit.name: bit for bit in self.bits},
        }
        made: Any = type(self.name, (base,), namespace)
        offsets = {field: getattr(made, field).offset for field in self.expected}
        if ctypes.sizeof(made) != self.size or offsets != self.expected:
            raise BtfError(
                f"make type {self.name} of {source}: laid out as {ctypes.sizeof(made)} bytes"
                f" {offsets}, BTF says {self.size} bytes {self.expected}"
            )
        return made


def _bit_fields(ctype: Any) -> Iterator[tuple[str, records.BitField]]:
    for name, member in ctype._members_.items():
        if member is None:
            yield name, getattr(ctype, name)


def layout_lines(ctype: Any, name: str = "", offset: int = 0) -> list[str]:
    """Return the layout of a type, one line for each number or array: offset, name, type."""
    if isinstance(ctype, type) and issubclass(ctype, enum.IntEnum):
        return [f"{item.name} = {item.value}" for item in ctype]
    members = getattr(ctype, "_members_", None)
    if members is None:
        return [f"+{offset} {name or 'value'}: {_spelled(ctype)}"]
    lines = []
    for field, field_type in members.items():
        dotted = f"{name}.{field}" if name else field
        member = getattr(ctype, field)
        if field_type is None:
            first = 8 * (offset + member.first) + member.shift
            sign = "signed " if member.signed else ""
            lines.append(
                f"+{first // 8} {dotted}: {sign}bits {first % 8} to {first % 8 + member.bits - 1}"
            )
        else:
            lines += layout_lines(field_type, dotted, offset + member.offset)
    return lines


def _spelled(ctype: Any) -> str:
    if issubclass(ctype, ctypes.Array):
        array: Any = ctype
        if hasattr(array._type_, "_members_"):
            inner = "; ".join(layout_lines(array._type_))
            return f"{ctypes.sizeof(array._type_)} bytes {{{inner}}}[{array._length_}]"
        return f"{_spelled(array._type_)}[{array._length_}]"
    spelled: str = ctype.__name__.removeprefix("c_")
    if issubclass(ctype, ctypes._SimpleCData) and ctype in records.INTEGERS.values():
        signed = ctype in (records.INTEGERS[ctypes.sizeof(ctype), True],)
        return f"{'s' if signed else 'u'}{8 * ctypes.sizeof(ctype)}"
    return spelled


def require_equal(name: str, one: tuple[str, Any], other: tuple[str, Any]) -> None:
    """Refuse a name that means two layouts.

    Args:
        name: the type's.
        one: where it was found, and the type.
        other: the same of the second find.

    Raises:
        BtfError: they differ; both are in the message.
    """
    layouts = [(where, _size(ctype), layout_lines(ctype)) for where, ctype in (one, other)]
    if layouts[0][1:] == layouts[1][1:]:
        return
    parts = [f"look up type {name}: two sources differ, keep the one the program was built from"]
    for where, size, lines in layouts:
        parts.append(f"  {where}, {size} bytes:")
        parts += [f"    {line}" for line in lines]
    raise BtfError("\n".join(parts))


def _size(ctype: Any) -> int:
    return 0 if issubclass(ctype, enum.IntEnum) else ctypes.sizeof(ctype)
