"""Encoders made once for a type: they give what records give, errors included."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bpfunit
from bpfunit import _native, ip
from bpfunit.values import encoders, records
from bpfunit.values.encoders import encoder
from tests.objects import compiled

HOOK_TYPES = [
    "manager_key", "frontend_key", "frontend_value", "service_key", "service_value",
    "endpoint_key", "endpoint_value", "backend_key", "backend_value", "ip_addr",
    "sock_storage_data", "log_event", "__u32", "__u64", "_Bool",
]  # fmt: skip
HEADER = Path(__file__).parents[2] / "bpf" / "hook" / "types.h"


@pytest.fixture(scope="module")
def types() -> Any:
    return bpfunit.load_types(HEADER, ["-include", "linux/bpf.h", "-include", "stdbool.h"])


def outcome(encode: Any, *args: Any) -> Any:
    try:
        return encode(*args)
    except Exception as error:
        return type(error), str(error)


def some_value(ctype: Any, chance: random.Random, depth: int = 0) -> Any:
    """Return what a test might write for a type, often right and sometimes wrong."""
    wrong = ["text", -1, 1 << 70, 1.5, None, {"no_such_field": 1}, [1] * 100, b"1", True]
    if chance.random() < 0.06:
        return chance.choice(wrong)
    if chance.random() < 0.1:
        return chance.choice([ip("10.0.0.1"), ip("fd00::1"), 7, bytes(16), [1, 2], (3,)])
    if isinstance(ctype, type) and issubclass(ctype, records._Record):
        names = [name for name in ctype._members_ if name != "self"]  # no keyword can be
        chosen = chance.sample(names, chance.randrange(len(names) + 1))
        value = {
            name: some_value(ctype._members_[name] or int, chance, depth + 1) for name in chosen
        }
        if chance.random() < 0.1:
            built = outcome(lambda: ctype(**value))
            return built if isinstance(built, ctype) else value
        return value
    if hasattr(ctype, "_length_"):
        if chance.random() < 0.2:
            return {chance.randrange(ctype._length_ + 1): 1}
        return [
            some_value(ctype._type_, chance) for _ in range(chance.randrange(ctype._length_ + 1))
        ]
    return chance.choice([0, 1, 255, 256, 1 << 16, (1 << 32) - 1, 1 << 32, chance.randrange(99)])


@pytest.fixture(params=["in C", "in Python"])
def made_anew(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Encoders as they are with the extension, and as they are without."""
    if request.param == "in Python":
        monkeypatch.setattr(_native, "extension", lambda: None)
    else:
        assert _native.extension() is not None
    encoder.cache_clear()
    yield
    encoder.cache_clear()


@pytest.mark.usefixtures("made_anew")
@pytest.mark.parametrize("name", HOOK_TYPES)
def test_encoders_give_what_records_give(types: Any, name: str) -> None:
    ctype = types[name]
    chance = random.Random(name)
    encode = encoder(ctype)
    accepted = 0
    for _ in range(1500):
        value = some_value(ctype, chance)
        expected = outcome(records.encode, "map m, value", ctype, value)
        assert outcome(encode, "map m, value", value) == expected, value
        accepted += isinstance(expected, bytes)
    assert accepted > 200


def test_c_writes_what_tests_write_most(types: Any) -> None:
    extension = _native.extension()
    value = {"lb_policy": 1, "service_port": [0x5000], "target_port": (1, 2)}
    raw = extension.encode(encoders.plan(types["service_value"]), value)
    assert raw == records.encode("m", types["service_value"], value)
    assert extension.encode(encoders.plan(types["log_event"]), {"ret": 1, "msg": "é"}) is not None


@pytest.mark.usefixtures("made_anew")
def test_encoders_of_awkward_layouts() -> None:
    """Bit-fields, packed and anonymous members, unions in structures, nested arrays."""
    awkward = bpfunit.load_types(compiled("layouts"))
    chance = random.Random(1)
    tried = 0
    for name in awkward:
        ctype: Any = awkward[name]
        if not (isinstance(ctype, type) and issubclass(ctype, records._Record)):
            continue
        quick = encoder(awkward[name])
        for _ in range(200):
            value = some_value(ctype, chance)
            expected = outcome(records.encode, "map m, key", ctype, value)
            assert outcome(quick, "map m, key", value) == expected, (name, value)
            tried += 1
    assert tried > 1000
