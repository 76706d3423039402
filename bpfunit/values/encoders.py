"""Encoders made once for a type, which write what tests give most without a ctypes object.

They give the bytes of :func:`bpfunit.values.records.encode`. What C has no way for goes to Python's
quick way, and what that has none for, wrong values above all, to ``records``, and so do its errors.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from bpfunit import _native
from bpfunit.values import records
from bpfunit.values.net import IP

Encoder = Callable[[str, Any], bytes]

_INTEGER, _ARRAY, _STRUCT, _CHARS, _OTHER = range(5)  # enum kind of _native/calls.c

_FORMATS: dict[Any, str] = {
    ctype: "bhiq"[size.bit_length() - 1].upper() if not signed else "bhiq"[size.bit_length() - 1]
    for (size, signed), ctype in records.INTEGERS.items()
}


@lru_cache(maxsize=1024)
def plan(ctype: Any) -> tuple[Any, ...]:
    """Return how C puts values into this type: see ``enum kind`` of ``_native/calls.c``.

    Args:
        ctype: a type made from BTF, or a ctypes integer.
    """
    if ctype in _FORMATS:
        return _INTEGER, ctypes.sizeof(ctype), int(_FORMATS[ctype].islower())
    if not isinstance(ctype, type):
        return (_OTHER,)
    if issubclass(ctype, records.ArrayRecord):
        element = ctype._type_
        inner = plan(element)
        if inner[0] == _OTHER:
            return (_OTHER,)
        size, length = ctypes.sizeof(ctype), ctype._length_
        return _ARRAY, size, length, ctypes.sizeof(element), inner, records.address_sizes(ctype)
    if issubclass(ctype, ctypes.Array) and _element(ctype) is ctypes.c_char:
        return _CHARS, ctypes.sizeof(ctype)
    if issubclass(ctype, (records.StructRecord, records.UnionRecord)):
        return _plan_of_struct(ctype)
    return (_OTHER,)


def _element(array: Any) -> Any:
    return array._type_


def _plan_of_struct(ctype: Any) -> tuple[Any, ...]:
    members = ctype._members_
    if None in members.values():  # bit-fields share their bytes
        return (_OTHER,)
    places = {name: (getattr(ctype, name).offset, plan(of)) for name, of in members.items()}
    spans = [(getattr(ctype, name).offset, ctypes.sizeof(of)) for name, of in members.items()]
    only = next(iter(places.values())) if len(places) == 1 else None
    overlap, addresses = int(_overlap(spans)), records.address_sizes(ctype)
    return _STRUCT, ctypes.sizeof(ctype), overlap, places, addresses, only


@lru_cache(maxsize=1024)
def encoder(ctype: Any) -> Encoder:
    """Return what turns a value into the bytes of this type.

    It takes where the value goes, for errors, and the value.

    Args:
        ctype: a type made from BTF, or a ctypes integer.
    """
    in_python = _in_python(ctype)
    extension, planned = _native.extension(), plan(ctype)
    if extension is None or planned[0] == _OTHER:
        return in_python
    in_c = extension.encode
    extension.addresses(IP)

    def encode(label: str, value: Any) -> bytes:
        raw: bytes | None = in_c(planned, value)
        return in_python(label, value) if raw is None else raw

    return encode


def _in_python(ctype: Any) -> Encoder:
    if ctype in _FORMATS:
        return _integer(ctype)
    if isinstance(ctype, type) and issubclass(ctype, records.StructRecord):
        return _struct(ctype)
    if isinstance(ctype, type) and issubclass(ctype, records.UnionRecord):
        return _struct(ctype)
    if isinstance(ctype, type) and issubclass(ctype, records.ArrayRecord):
        return _array(ctype)
    return lambda label, value: records.encode(label, ctype, value)


def _integer(ctype: Any) -> Encoder:
    pack = struct.Struct(f"={_FORMATS[ctype]}").pack

    def encode(label: str, value: Any) -> bytes:
        if type(value) is int:
            try:
                return pack(value)
            except struct.error:
                pass
        return records.encode(label, ctype, value)

    return encode


def _array(ctype: Any) -> Encoder:
    element, length, size = ctype._type_, ctype._length_, ctypes.sizeof(ctype)
    code = _FORMATS.get(element)

    def encode(label: str, value: Any) -> bytes:
        if code is not None and type(value) in (list, tuple) and len(value) <= length:
            for one in value:
                if type(one) is not int:
                    break
            else:
                try:
                    return struct.pack(f"={len(value)}{code}", *value).ljust(size, b"\0")
                except struct.error:
                    pass
        return records.encode(label, ctype, value)

    return encode


def _struct(ctype: Any) -> Encoder:
    members = ctype._members_
    if None in members.values():  # bit-fields share their bytes
        return lambda label, value: records.encode(label, ctype, value)
    size, name = ctypes.sizeof(ctype), ctype.__name__
    places = {
        member: (getattr(ctype, member).offset, ctypes.sizeof(of_type), _in_python(of_type))
        for member, of_type in members.items()
    }
    overlaps = _overlap([(start, length) for start, length, _ in places.values()])

    def encode(label: str, value: Any) -> bytes:
        if type(value) is not dict or (overlaps and len(value) != 1):
            return records.encode(label, ctype, value)
        raw = bytearray(size)
        for member, one in value.items():
            place = places.get(member)
            if place is None:
                return records.encode(label, ctype, value)  # which says what there is
            start, length, encode_member = place
            raw[start : start + length] = encode_member(f"{name}.{member}", one)
        return bytes(raw)

    return encode


def _overlap(places: list[tuple[int, int]]) -> bool:
    end = 0
    for start, length in sorted(places):
        if start < end:
            return True
        end = start + length
    return False
