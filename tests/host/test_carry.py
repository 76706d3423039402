"""Everything becomes what execnet carries: as it is where it can be, else as its text."""

from __future__ import annotations

import collections
import enum
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import execnet
import pytest
from execnet.gateway_base import dumps_internal
from hypothesis import given
from hypothesis import strategies as st

from bpfunit import _native
from bpfunit.plugin.carry import carried, portable
from bpfunit.plugin.verdict import DEATHS, worst
from bpfunit.values.net import Endpoint

pytestmark = pytest.mark.host


class Number(enum.IntEnum):
    THREE = 3


class Whole(int):
    """A subclass that is still a number, as those of numpy are."""


class Two(NamedTuple):
    a: int
    b: Path


class Odd:
    def __str__(self) -> str:
        raise SystemExit(0)


def sent(value: object) -> Any:
    return execnet.loads(execnet.dumps(carried(value)))


PLAIN = (None, True, 0, -(2**31), 2**80, 1.5, b"\xff", "é", [1, (2, {3})], {"a": {1: None}})


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_what_the_channel_carries_is_left_as_it_is(value: object):
    assert sent(value) == value
    assert type(sent(value)) is type(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Number.THREE, str(Number.THREE)),
        (Path("/a/b"), "/a/b"),
        (Endpoint.parse("10.0.0.1:80"), "10.0.0.1:80"),
        (-(2**31) - 1, "-2147483649"),
        (-(10**5000), hex(-(10**5000))),
        (Whole(7), 7),
        ("\udc80", "\\udc80"),
        (collections.OrderedDict(a=Path("x")), {"a": "x"}),
        (Two(1, Path("x")), (1, "x")),
        (Odd(), "<Odd without a text: SystemExit>"),
        ({Path("k"): [object]}, {"k": ["<class 'object'>"]}),
    ],
    ids=[f"odd-{number}" for number in range(11)],
)
def test_anything_else_becomes_its_text(value: object, expected: object):
    assert sent(value) == expected


def test_a_container_within_itself_and_one_without_bottom_are_cut():
    own: list[object] = [1]
    own.append(own)
    assert sent(own) == [1, "[1, [...]]"]
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    assert str(sent(deep)).count("[") < 100


@given(st.recursive(st.integers() | st.text(st.characters()) | st.floats() | st.binary(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_every_value_can_be_sent(value: object):
    sent(value)


@pytest.fixture(scope="module")
def dumps() -> Any:
    """What writes plain values in C."""
    extension = _native.extension()
    assert extension is not None, "no C compiler, or Python's headers are missing"
    return extension.dumps


@pytest.mark.parametrize("value", [one for one in PLAIN if "{3}" not in repr(one)], ids=repr)
def test_plain_values_are_written_in_c_as_execnet_writes_them(dumps: Any, value: object):
    assert dumps(value) == dumps_internal(value)


@pytest.mark.parametrize(
    "value",
    [
        {1},
        Number.THREE,
        Whole(7),
        Path("/a"),
        -(2**31) - 1,
        "\udc80",
        Two(1, Path("x")),
        pytest.param([object()], id="[object()]"),  # its address differs from process to process
    ],
    ids=repr,
)
def test_what_has_to_be_put_in_another_form_first_is_left_to_python(dumps: Any, value: object):
    assert dumps(value) is None
    assert dumps([("a", {"b": value})]) is None


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(st.characters())
                    | st.floats() | st.binary(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
                    | st.tuples(inner, inner)))  # fmt: skip
def test_nothing_is_written_in_c_that_python_would_write_otherwise(dumps: Any, value: object):
    raw = dumps(value)
    assert raw is None or raw == dumps_internal(value)


class Own(UserWarning):
    def __init__(self, a: object, b: object) -> None:
        super().__init__(a, b)


def recorded(warning: Warning) -> warnings.WarningMessage:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warnings.warn(warning, stacklevel=1)
    (message,) = found
    portable(message)
    return message


def test_a_warning_of_a_class_of_the_suites_own_keeps_its_name_and_becomes_a_known_one():
    message = recorded(Own(1, "x"))
    assert message.category is UserWarning
    assert str(message.message) == f"{__name__}.Own: (1, 'x')"


def test_a_warning_of_pytest_stays_one():
    message = recorded(pytest.PytestWarning("\udc80"))
    assert message.category is pytest.PytestWarning
    assert str(message.message) == "\\udc80"


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [((0, 0), 0), ((0, 5), 5), ((5, 1), 1), ((1, 42), 42), ((42, 2), 2), ((256,), 1),
     ((2, DEATHS), DEATHS), ((DEATHS, 3), 3), ((1, 0), 1)],
    ids=str,
)  # fmt: skip
def test_the_worst_status_wins(statuses: tuple[int, ...], expected: int):
    assert worst(*statuses) == worst(*reversed(statuses)) == expected
