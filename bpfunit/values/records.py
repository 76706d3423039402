"""Structures, unions and arrays made from BTF: ctypes memory with checked, forgiving assignment.

A field takes what a test author writes: a nested dict or list, an address, text for ``char[]``.
What does not fit (an unknown field, a number out of range) is an error that says what would.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from bpfunit.errors import FieldError, FieldValueError
from bpfunit.values.net import IP

_SIGNED = (ctypes.c_int8, ctypes.c_int16, ctypes.c_int32, ctypes.c_int64)
_UNSIGNED = (ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64)
INTEGERS: dict[tuple[int, bool], Any] = {
    **{(ctypes.sizeof(t), True): t for t in _SIGNED},
    **{(ctypes.sizeof(t), False): t for t in _UNSIGNED},
}
_RANGES: dict[Any, tuple[int, int]] = {
    **{t: (-(1 << ctypes.sizeof(t) * 8 - 1), (1 << ctypes.sizeof(t) * 8 - 1) - 1) for t in _SIGNED},
    **{t: (0, (1 << ctypes.sizeof(t) * 8) - 1) for t in _UNSIGNED},
}


class BitField:
    """Descriptor of a C bit-field, placed by its bit offset alone.

    ctypes lays bit-fields out by rules that differ between compilers and Python versions; BTF says
    where the bits are, so this reads and writes exactly those. Offsets count from a byte's lowest
    bit where the byte order is little-endian, and from its highest where it is big-endian.

    Args:
        name: of the field.
        bit_offset: from the record's first bit.
        bits: how many there are.
        signed: whether the highest is a sign.
        order: the byte order, by default this machine's.
    """

    def __init__(
        self,
        name: str,
        bit_offset: int,
        bits: int,
        signed: bool,
        order: Literal["little", "big"] = sys.byteorder,
    ) -> None:
        self.name, self.bits, self.signed, self.order = name, bits, signed, order
        self.first, before = divmod(bit_offset, 8)
        self.length = (before + bits + 7) // 8
        self.shift = before if order == "little" else 8 * self.length - before - bits

    def __get__(self, record: Any, owner: Any = None) -> Any:
        if record is None:
            return self
        raw = ctypes.string_at(ctypes.addressof(record) + self.first, self.length)
        value = int.from_bytes(raw, self.order) >> self.shift & (1 << self.bits) - 1
        return value - (1 << self.bits) if self.signed and value >> self.bits - 1 else value

    def __set__(self, record: Any, value: int) -> None:
        low = -(1 << self.bits - 1) if self.signed else 0
        high = (1 << self.bits - int(self.signed)) - 1
        if not isinstance(value, int) or not low <= value <= high:
            raise FieldValueError(
                f"{type(record).__name__}.{self.name}: {value!r} is out of range {low}..{high}"
                f" of a {self.bits}-bit field"
            )
        address = ctypes.addressof(record) + self.first
        whole = int.from_bytes(ctypes.string_at(address, self.length), self.order)
        mask = (1 << self.bits) - 1 << self.shift
        whole = whole & ~mask | (value << self.shift & mask)
        ctypes.memmove(address, whole.to_bytes(self.length, self.order), self.length)


class _Record:
    """What structures and unions made from BTF share."""

    # field name -> its ctypes type, those of anonymous members included; None for a bit-field
    _members_: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, **fields: Any) -> None:
        names = list(self._members_)
        if len(args) > len(names):
            raise FieldError(
                f"{type(self).__name__}: {len(args)} values for {len(names)} fields:"
                f" {', '.join(names)}"
            )
        super().__init__()
        for name, value in zip(names, args):  # noqa: B905 (zip(strict=) would refuse a short list)
            setattr(self, name, value)
        for name, value in fields.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            ctype = self._members_[name]
        except KeyError:
            raise self._no_field(name) from None
        if ctype is not None:
            value = coerce(f"{type(self).__name__}.{name}", ctype, value)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        # only reached for a name that does not exist
        raise self._no_field(name)

    def _no_field(self, name: str) -> FieldError:
        return FieldError(
            f"{type(self).__name__}: no field {name!r}; it has: {', '.join(self._members_)}"
        )

    def asdict(self) -> dict[str, Any]:
        """Return the fields as plain Python: nested dicts, lists, ints."""
        return {name: plain(getattr(self, name)) for name in self._members_}

    def __eq__(self, other: object) -> bool:
        if isinstance(other, IP):
            return other == self
        if isinstance(other, _Record):
            return type(self).__name__ == type(other).__name__ and bytes(self) == bytes(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(bytes(self))

    def __repr__(self) -> str:
        if is_address(type(self)):
            return repr(read_address(bytes(self)))
        shown = self._members_
        if isinstance(self, ctypes.Union):
            shown = _covering_members(self)
        values = ((name, getattr(self, name)) for name in shown)
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in values if _nonzero(v))})"


class StructRecord(_Record, ctypes.Structure):
    """Base of the structures made from BTF."""


class UnionRecord(_Record, ctypes.Union):
    """Base of the unions made from BTF."""


class ArrayRecord(ctypes.Array):  # type: ignore[type-arg]
    """Base of the arrays made from BTF; prints and compares as a list."""

    _type_ = ctypes.c_uint8
    _length_ = 0

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice):
            value = [coerce(f"[{index}]", self._type_, item) for item in value]
        else:
            value = coerce(f"[{index}]", self._type_, value)
        super().__setitem__(index, value)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, IP):
            return other == self
        if isinstance(other, (ctypes.Array, Sequence)):
            return list(self) == list(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(bytes(self))

    def __repr__(self) -> str:
        return repr(list(self))


def array_type(element: Any, length: int) -> Any:
    """Return the array type of ``length`` elements; ``char`` arrays are plain and read as bytes."""
    if element is ctypes.c_char:
        return element * length
    name = f"{element.__name__}_Array_{length}"
    return type(name, (ArrayRecord,), {"_type_": element, "_length_": length})


def _nonzero(value: Any) -> bool:
    return any(bytes(value)) if isinstance(value, (_Record, ctypes.Array)) else bool(value)


def _covering_members(union: Any) -> dict[str, Any]:
    """Return the first member of a union beyond which every byte is zero: it shows all there is."""
    raw = bytes(union)
    for name, ctype in union._members_.items():
        if ctype is not None and not any(raw[ctypes.sizeof(ctype) :]):
            return {name: ctype}
    return dict(union._members_)


def plain(value: Any) -> Any:
    """Turn records and arrays into dicts and lists, all the way down."""
    if isinstance(value, _Record):
        return value.asdict()
    if isinstance(value, ctypes.Array) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    return value


def _holds_words(ctype: Any, element_size: int, length: int) -> bool:
    if not (isinstance(ctype, type) and issubclass(ctype, ctypes.Array)):
        return False
    array: Any = ctype  # to mypy, _type_ and _length_ are those of the base class
    return ctypes.sizeof(array._type_) == element_size and array._length_ == length


def _is_ip6_array(ctype: Any) -> bool:
    return _holds_words(ctype, 4, 4) or _holds_words(ctype, 1, 16)


def is_address(ctype: Any) -> bool:
    """Tell whether a record is made for an address of either family, as ``struct ip_addr`` is."""
    return (
        issubclass(ctype, _Record)
        and ctypes.sizeof(ctype) == 16
        and ctypes.c_uint32 in ctype._members_.values()
        and any(_is_ip6_array(member) for member in ctype._members_.values())
    )


def address_sizes(ctype: Any) -> int:
    """Return the sizes of the addresses that an array or record takes, in bytes, added up."""
    if is_address(ctype):
        return 4 + 16
    return 16 * _is_ip6_array(ctype) + 4 * _holds_words(ctype, 1, 4)


def read_address(raw: bytes) -> IP:
    """Read 16 bytes as ``struct ip_addr`` has them: IPv4 when all behind the first word is zero."""
    return IP(raw) if any(raw[4:]) else IP(raw[:4])


def _from_ip(label: str, ctype: Any, value: IP) -> Any:
    if ctype is ctypes.c_uint32 and value.version == 4:
        return value.words()[0]
    fits = issubclass(ctype, (_Record, ctypes.Array)) and (
        is_address(ctype)
        or (_is_ip6_array(ctype) and value.version == 6)
        or (_holds_words(ctype, 1, 4) and value.version == 4)
    )
    if not fits:
        raise FieldValueError(
            f"{label}: {value!r} does not fit {ctype.__name__} of {ctypes.sizeof(ctype)} bytes"
        )
    return ctype.from_buffer_copy(value.packed.ljust(ctypes.sizeof(ctype), b"\0"))


def _to_integer(label: str, ctype: Any, value: Any) -> int:
    low, high = _RANGES[ctype]
    try:
        number = value.__index__()
    except AttributeError:
        raise FieldValueError(
            f"{label}: expected an integer {low}..{high} ({ctype.__name__}), found {value!r}"
        ) from None
    if not low <= number <= high:
        raise FieldValueError(f"{label}: {number} is out of range {low}..{high} ({ctype.__name__})")
    return int(number)


def _to_array(label: str, ctype: Any, value: Any) -> Any:
    if ctype._type_ is ctypes.c_char:
        raw = value.encode() if isinstance(value, str) else bytes(value)
        if len(raw) > ctype._length_:
            raise FieldValueError(f"{label}: {len(raw)} bytes do not fit char[{ctype._length_}]")
        return raw
    if isinstance(value, (bytes, bytearray)) and len(value) == ctypes.sizeof(ctype):
        return ctype.from_buffer_copy(value)
    pairs: Any = value.items() if isinstance(value, Mapping) else None
    if pairs is None:
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise FieldValueError(
                f"{label}: expected up to {ctype._length_} values in a list, or a dict by index,"
                f" found {value!r}"
            )
        pairs = enumerate(value)
    array = ctype()
    for index, item in pairs:
        if not 0 <= index < ctype._length_:
            raise FieldValueError(f"{label}: index {index} is out of range 0..{ctype._length_ - 1}")
        ctypes.Array.__setitem__(array, index, coerce(f"{label}[{index}]", ctype._type_, item))
    return array


def _to_record(label: str, ctype: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        return ctype(**value)
    if isinstance(value, (bytes, bytearray)):
        if len(value) != ctypes.sizeof(ctype):
            raise FieldValueError(
                f"{label}: {len(value)} bytes for {ctype.__name__} of {ctypes.sizeof(ctype)} bytes"
            )
        return ctype.from_buffer_copy(value)
    if isinstance(value, (list, tuple)):
        return ctype(*value)
    if isinstance(value, _Record) and type(value).__name__ == ctype.__name__:
        return ctype.from_buffer_copy(bytes(value))
    if len(ctype._members_) == 1:
        return ctype(value)  # a one-field key such as {__u32 service_id} may be given bare
    raise FieldValueError(
        f"{label}: expected {ctype.__name__} (or a dict of {', '.join(ctype._members_)}),"
        f" found {value!r}"
    )


def coerce(label: str, ctype: Any, value: Any) -> Any:
    """Turn what a test author wrote into a value of ``ctype``.

    Args:
        label: where the value goes, for errors ("service_value.lb_policy").
        ctype: an integer, array or record type.
        value: the value; see the module's docstring.

    Raises:
        FieldValueError: it does not fit.
        FieldError: a nested dict names a field that does not exist.
    """
    if type(value) is ctype:
        return value
    if isinstance(value, IP) and not (
        issubclass(ctype, _Record) and not is_address(ctype) and len(ctype._members_) == 1
    ):
        return _from_ip(label, ctype, value)
    if ctype in _RANGES:
        return _to_integer(label, ctype, value)
    if ctype is ctypes.c_bool:
        if value not in (0, 1):
            raise FieldValueError(f"{label}: expected a bool, found {value!r}")
        return bool(value)
    if issubclass(ctype, ctypes.Array):
        return _to_array(label, ctype, value)
    if issubclass(ctype, _Record):
        return _to_record(label, ctype, value)
    if issubclass(ctype, (ctypes.Structure, ctypes.Union)) and isinstance(value, Mapping):
        return _to_foreign(label, ctype, value)
    return value


def _to_foreign(label: str, ctype: Any, value: Mapping[str, Any]) -> Any:
    """Fill a structure that was not made here, such as the ``Leaf`` of a table of bcc's."""
    fields = [field[0] for field in ctype._fields_]
    if unknown := [name for name in value if name not in fields]:
        raise FieldError(
            f"{label}: {ctype.__name__} has no field {unknown[0]!r}; there is: {', '.join(fields)}"
        )
    return ctype(**value)


def encode(label: str, ctype: Any, value: Any) -> bytes:
    """Return the bytes of ``value`` as a ``ctype``; see :func:`coerce`."""
    coerced = coerce(label, ctype, value)
    if isinstance(coerced, (ctypes.Structure, ctypes.Union, ctypes.Array)):
        return bytes(coerced)
    if isinstance(coerced, bytes):
        return coerced.ljust(ctypes.sizeof(ctype), b"\0")
    return bytes(ctype(coerced))


def decode(ctype: Any, raw: bytes) -> Any:
    """Read ``raw`` as a ``ctype``: a record or array, or a plain int or bool."""
    value = ctype.from_buffer_copy(raw)
    return value.value if isinstance(value, ctypes._SimpleCData) else value
