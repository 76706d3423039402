"""Types made from BTF: exact layouts, forgiving assignment, errors that list what there is."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path
from typing import Any

import pytest

from bpfunit import BtfError, FieldError, FieldValueError, NotFoundError, Types, ip, load_types
from bpfunit.values.records import encode
from tests.objects import compiled


@pytest.fixture(scope="module")
def types() -> Types:
    return load_types(compiled("layouts"))


def test_packed_and_natural_layouts_follow_the_compiler(types: Types) -> None:
    assert (ctypes.sizeof(types.packed), types.packed.b.offset) == (12, 1)
    assert (ctypes.sizeof(types.unpacked), types.unpacked.b.offset) == (24, 8)
    assert types.unpacked.d.offset == 18


def test_typedef_of_an_anonymous_struct_is_named_by_the_typedef(types: Types) -> None:
    assert types.frontend_key.__name__ == "frontend_key"
    assert ctypes.sizeof(types.frontend_key) == 16


def test_struct_keyword_selects_the_tag(types: Types) -> None:
    assert types["struct ip_addr"] is types.ip_addr
    with pytest.raises(NotFoundError, match="union ip_addr"):
        types["union ip_addr"]


def test_bit_fields_sit_where_btf_says(types: Types) -> None:
    value = types.bits(low=5, negative=-3, wide=(1 << 40) - 2, after=0xAB, inner=9, last=6)
    first = int.from_bytes(bytes(value)[:6], "little")
    assert first & 7 == 5
    assert first >> 3 & 31 == -3 & 31
    assert first >> 8 & (1 << 40) - 1 == (1 << 40) - 2
    assert bytes(value)[6] == 0xAB
    assert 0x69 in bytes(value)[7:]
    assert (value.low, value.negative, value.wide) == (5, -3, (1 << 40) - 2)
    assert (value.inner, value.last) == (9, 6)


def test_bit_field_out_of_range_names_its_range(types: Types) -> None:
    with pytest.raises(FieldValueError, match=r"bits\.negative: 16 is out of range -16\.\.15"):
        types.bits(negative=16)


def test_enum_values_go_into_fields_and_arrays(types: Types) -> None:
    value = types.everything(colour=types.colour.GREEN, colours=[1, types.colour.GREEN], sign=-1)
    assert (value.colour, list(value.colours), value.sign) == (7, [1, 7, 0], -1)


def test_nested_values_are_written_as_dicts_and_lists(types: Types) -> None:
    value = types.everything(
        nested={"b": 1 << 60}, row=[{"a": 1}, (2, 3)], grid={1: [7, 8, 9]}, text="hello"
    )
    assert value.nested.b == 1 << 60
    assert (value.row[0].a, value.row[1].a, value.row[1].b) == (1, 2, 3)
    assert value.asdict()["grid"] == [[0, 0, 0], [7, 8, 9]]
    assert value.text == b"hello"


def test_members_of_anonymous_unions_and_structs_are_fields(types: Types) -> None:
    value = types.everything(either={"first": 0x1122, "second": 0x3344})
    assert value.either.number == 0x33441122
    assert value.either.bytes == [0x22, 0x11, 0x44, 0x33] + [0] * 8


def test_every_member_of_a_packed_struct_lies_behind_the_one_before(types: Types) -> None:
    fields = ["colour", "colours", "sign", "yes", "text", "pointer", "nested", "row", "grid"]
    fields += ["either", "qualified", "real", "longer_real", "huge", "key", "self"]
    everything = types.everything
    for one, following in itertools.pairwise(fields):
        end = getattr(everything, one).offset + getattr(everything, one).size
        assert getattr(everything, following).offset == end, following
    assert ctypes.sizeof(everything) == everything.self.offset + 8


def test_address_fits_struct_key_and_words(types: Types) -> None:
    assert bytes(types.ip_addr(ip4=ip("10.0.0.1"))) == b"\n\0\0\1" + bytes(12)
    assert bytes(types.frontend_key(addr=ip("fd00::1"))) == ip("fd00::1").packed
    assert types.frontend_key(addr={"ip6": ip("fd00::1")}).addr == ip("fd00::1")
    assert encode("key", types.frontend_key, ip("10.0.0.1")) == b"\n\0\0\1" + bytes(12)
    assert types.frontend_key(addr=ip("10.0.0.1")).addr != ip("10.0.0.2")


def test_address_of_the_wrong_family_is_refused(types: Types) -> None:
    with pytest.raises(FieldValueError, match=r'ip\("fd00::1"\) does not fit'):
        types.ip_addr(ip4=ip("fd00::1"))
    with pytest.raises(FieldValueError, match="does not fit"):
        types.ip_addr(ip6=ip("10.0.0.1"))


def test_wrong_field_name_lists_the_fields(types: Types) -> None:
    with pytest.raises(FieldError, match="packed: no field 'e'; it has: a, b, c, d"):
        types.packed(e=1)
    with pytest.raises(FieldError, match="it has: a, b, c, d"):
        _ = types.packed().e
    with pytest.raises(FieldError, match="it has: a, b, c, d"):
        types.packed().e = 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("colour", -1, r"everything\.colour: -1 is out of range 0\.\.4294967295"),
        ("qualified", 40000, r"out of range -32768\.\.32767"),
        ("yes", 2, "expected a bool, found 2"),
        ("text", "longer than seven", r"do not fit char\[7\]"),
        ("colours", [1, 2, 3, 4], r"index 3 is out of range 0\.\.2"),
        ("nested", 3, "expected packed .or a dict of a, b, c, d., found 3"),
        ("nested", {"a": 256}, r"packed\.a: 256 is out of range 0\.\.255"),
        ("colour", "red", "expected an integer"),
    ],
)
def test_value_that_does_not_fit_says_what_would(
    types: Types, field: str, value: Any, message: str
) -> None:
    with pytest.raises(FieldValueError, match=message):
        types.everything(**{field: value})


def test_array_element_out_of_range_is_refused(types: Types) -> None:
    value = types.everything()
    with pytest.raises(FieldValueError, match=r"out of range 0\.\.65535"):
        value.grid[0][1] = 65536
    value.grid[0][1] = 65535
    assert value.grid[0] == [0, 65535, 0]


def test_equal_values_are_equal_and_print_their_fields(types: Types) -> None:
    one, other = types.packed(a=1, c=3), types.packed(a=1, c=3)
    assert one == other
    assert hash(one) == hash(other)
    assert one != types.packed(a=1)
    assert repr(one) == "packed(a=1, c=3)"
    assert repr(types.frontend_key(addr=ip("10.0.0.1"))) == 'frontend_key(addr=ip("10.0.0.1"))'


def test_unknown_type_offers_the_nearest_names_first(types: Types) -> None:
    with pytest.raises(NotFoundError, match="no 'frontend_keys'; there is: frontend_key, "):
        _ = types.frontend_keys


def test_file_without_btf_says_how_to_make_it(tmp_path: Path) -> None:
    broken = tmp_path / "empty.o"
    broken.write_bytes(b"not an object at all")
    with pytest.raises(BtfError, match="compile it with clang -g -target bpf"):
        load_types(broken)


def test_malformed_btf_is_an_error() -> None:
    with pytest.raises(BtfError, match="no BTF magic"):
        Types(b"\0" * 40, "nothing")
