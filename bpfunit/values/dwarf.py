"""The C types of an object's DWARF, as BTF: what the compiler saw and its BTF left out.

clang keeps in BTF what maps, signatures and globals refer to. DWARF (``.debug_info``, there unless
``llvm-strip -g`` took it) has every type that the code used, those of inlined functions included.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from bpfunit.errors import BpfunitError
from bpfunit.values import btfbytes
from bpfunit.values.btfbytes import Writer

# DW_ATE_* of DWARF 5, section 7.8
_BOOLEAN, _FLOAT, _SIGNED, _SIGNED_CHAR, _UNSIGNED_CHAR, _UTF = 2, 4, 5, 6, 8, 16
_QUALIFIERS = {
    "DW_TAG_pointer_type": btfbytes.PTR,
    "DW_TAG_reference_type": btfbytes.PTR,
    "DW_TAG_rvalue_reference_type": btfbytes.PTR,
    "DW_TAG_const_type": btfbytes.CONST,
    "DW_TAG_volatile_type": btfbytes.VOLATILE,
    "DW_TAG_restrict_type": btfbytes.RESTRICT,
    "DW_TAG_atomic_type": btfbytes.VOLATILE,
    "DW_TAG_immutable_type": btfbytes.CONST,
    "DW_TAG_typedef": btfbytes.TYPEDEF,
}
_RECORDS = {
    "DW_TAG_structure_type": btfbytes.STRUCT,
    "DW_TAG_class_type": btfbytes.STRUCT,
    "DW_TAG_union_type": btfbytes.UNION,
}
_OTHERS = {
    "DW_TAG_base_type",
    "DW_TAG_array_type",
    "DW_TAG_enumeration_type",
    "DW_TAG_subroutine_type",
}


# clang's name for the type of an array's index: 8 bytes here, 4 in its BTF, and in no program
_INDEX_TYPE = "__ARRAY_SIZE_TYPE__"


class DwarfError(BpfunitError):
    """DWARF that cannot be read."""


def btf_from(elf: bytes, source: str) -> bytes | None:
    """Return the types of an ELF file's DWARF as BTF, None when it has no DWARF.

    Args:
        elf: the file's content.
        source: its name, for errors.

    Raises:
        DwarfError: the DWARF is malformed, or of a version that pyelftools does not know.
    """
    # imported here: it costs a fifth of a second, and most objects never need it
    from elftools.common.exceptions import DWARFError, ELFError, ELFParseError
    from elftools.construct import ConstructError
    from elftools.elf.elffile import ELFFile

    try:
        file = ELFFile(io.BytesIO(elf))
        if file.get_section_by_name(".debug_info") is None:
            return None
        info = file.get_dwarf_info(relocate_dwarf_sections=True)
        return _Converter(unit for unit in info.iter_CUs()).bytes()
    except (ELFError, ELFParseError, DWARFError, ConstructError, KeyError, ValueError) as error:
        raise DwarfError(
            f"read DWARF of {source}: {type(error).__name__}: {error}; compile it anew, or take the"
            " DWARF off (llvm-strip -g) and name its types (types=, --bpf-types)"
        ) from error


class _Converter:
    """Gives each type DIE an id, then writes them in that order."""

    def __init__(self, units: Iterator[Any]) -> None:
        self._writer = Writer()
        self._ids: dict[int, int] = {}
        self._extra = 0  # ids beyond those of the DIEs: the outer dimensions of arrays
        dies = [die for unit in units for die in unit.iter_DIEs() if _is_type(die)]
        # the last id of an array's row of types is the array itself, so that references are simple
        number = 1
        for die in dies:
            number += self._rows(die) - 1
            self._ids[die.offset] = number
            number += 1
        self._index = number  # an integer type for array indices, after all others
        for die in dies:
            self._write(die)
        self._writer.integer("", 4, signed=False, char=False, boolean=False)

    def bytes(self) -> bytes:
        return self._writer.bytes()

    @staticmethod
    def _rows(die: Any) -> int:
        return len(_lengths(die)) if die.tag == "DW_TAG_array_type" else 1

    def _target(self, die: Any) -> int:
        if "DW_AT_type" not in die.attributes:
            return 0
        return self._ids.get(die.get_DIE_from_attribute("DW_AT_type").offset, 0)

    def _write(self, die: Any) -> None:
        tag, name = die.tag, _text(die)
        if tag in _QUALIFIERS:
            kind = _QUALIFIERS[tag]
            typedef = name if kind == btfbytes.TYPEDEF else ""
            self._writer.reference(kind, typedef, self._target(die))
        elif tag in _RECORDS:
            self._write_record(die, _RECORDS[tag], name)
        elif tag == "DW_TAG_base_type":
            self._write_base(die, name)
        elif tag == "DW_TAG_array_type":
            element, number = self._target(die), self._ids[die.offset]
            lengths = _lengths(die)
            for row, length in enumerate(reversed(lengths)):
                self._writer.array(element, self._index, length)
                element = number - len(lengths) + 1 + row
        elif tag == "DW_TAG_enumeration_type":
            values = [
                (_text(child), _number(child, "DW_AT_const_value"))
                for child in die.iter_children()
                if child.tag == "DW_TAG_enumerator"
            ]
            self._writer.enumeration(name, _number(die, "DW_AT_byte_size", 4), values)
        else:
            self._writer.function()

    def _write_base(self, die: Any, name: str) -> None:
        if name == _INDEX_TYPE:
            name = ""
        size, encoding = _number(die, "DW_AT_byte_size"), _number(die, "DW_AT_encoding")
        if encoding == _FLOAT:
            self._writer.floating(name, size)
            return
        self._writer.integer(
            name,
            size,
            signed=encoding in (_SIGNED, _SIGNED_CHAR),
            char=encoding in (_SIGNED_CHAR, _UNSIGNED_CHAR, _UTF) and size == 1,
            boolean=encoding == _BOOLEAN,
        )

    def _write_record(self, die: Any, kind: int, name: str) -> None:
        if "DW_AT_declaration" in die.attributes:
            self._writer.declared(name, union=kind == btfbytes.UNION)
            return
        members = [
            (_text(child), self._target(child), *_place(child))
            for child in die.iter_children()
            if child.tag == "DW_TAG_member" and "DW_AT_external" not in child.attributes
        ]
        self._writer.record(kind, name, _number(die, "DW_AT_byte_size", 0), members)


def _is_type(die: Any) -> bool:
    return die.tag in _QUALIFIERS or die.tag in _RECORDS or die.tag in _OTHERS


def _text(die: Any) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return attribute.value.decode(errors="replace") if attribute else ""


def _number(die: Any, name: str, default: int = 0) -> int:
    attribute = die.attributes.get(name)
    if attribute is None or not isinstance(attribute.value, int):
        return default
    return int(attribute.value)


def _lengths(die: Any) -> list[int]:
    """Return the dimensions of an array, outermost first; [] in C is a length of 0."""
    found = []
    for child in die.iter_children():
        if child.tag == "DW_TAG_subrange_type":
            upper = _number(child, "DW_AT_upper_bound", -1)
            found.append(_number(child, "DW_AT_count", upper + 1))
    return found or [0]


def _place(member: Any) -> tuple[int, int]:
    """Return a member's bit offset and, of a bit-field, its width."""
    bits = _number(member, "DW_AT_bit_size")
    first = _number(member, "DW_AT_data_member_location") * 8
    if "DW_AT_data_bit_offset" in member.attributes:  # DWARF 4 on, section 5.7.6
        return _number(member, "DW_AT_data_bit_offset"), bits
    if "DW_AT_bit_offset" in member.attributes:  # DWARF 3: counted from the unit's highest bit
        unit = member.attributes.get("DW_AT_byte_size")
        size = int(unit.value) if unit else _storage_size(member)
        return first + size * 8 - _number(member, "DW_AT_bit_offset") - bits, bits
    return first, bits


def _storage_size(member: Any) -> int:
    die = member.get_DIE_from_attribute("DW_AT_type")
    while die.tag in _QUALIFIERS and "DW_AT_type" in die.attributes:
        die = die.get_DIE_from_attribute("DW_AT_type")
    return _number(die, "DW_AT_byte_size", 4)
