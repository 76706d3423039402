"""Bit-fields of either byte order, whatever this machine's is."""

from __future__ import annotations

import ctypes

import pytest

from bpfunit.values.records import BitField


class Little(ctypes.Structure):
    _fields_ = (("raw", ctypes.c_uint8 * 4),)
    three = BitField("three", 0, 3, False, "little")
    across = BitField("across", 3, 7, False, "little")
    signed = BitField("signed", 10, 4, True, "little")


class Big(ctypes.Structure):
    _fields_ = (("raw", ctypes.c_uint8 * 4),)
    three = BitField("three", 0, 3, False, "big")
    across = BitField("across", 3, 7, False, "big")
    signed = BitField("signed", 10, 4, True, "big")


# what a C compiler makes of {unsigned three:3, across:7; int signed:4;} = {5, 0x55, -3}
@pytest.mark.parametrize(
    ("record", "raw"), [(Little, 0b1101_1010101_101), (Big, 0b101_1010101_1101 << 2)]
)
def test_bits_are_where_the_byte_order_puts_them(record: type, raw: int):
    order = "little" if record is Little else "big"
    made = record()
    made.three, made.across, made.signed = 5, 0x55, -3
    assert bytes(made)[:2] == raw.to_bytes(2, order)  # type: ignore[arg-type]
    assert (made.three, made.across, made.signed) == (5, 0x55, -3)
    made.across = 0
    assert (made.three, made.across, made.signed) == (5, 0, -3)
