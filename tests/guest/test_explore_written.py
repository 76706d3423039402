"""The file that is written for the connect hook: a test for each edge, failed by a mutant of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import bpfunit
from bpfunit.explorer import Budget, WrittenTest, block, explore_and_write

from ..hook.mesh import MAP_TYPES
from ..objects import HOOK
from .turned import Inverted, LedOut

pytestmark = [pytest.mark.guest, pytest.mark.bpf_plain]

PROGRAM = "cgroup_connect4_prog"
PARTS = 4  # of the tests, so that none takes minutes where guests are emulated
MOST_ENTRIES = 5

Load = Callable[..., bpfunit.Object]


class File(NamedTuple):
    """What was written, and its functions by name."""

    alive: int
    tests: list[WrittenTest]
    functions: dict[str, Any]


@pytest.fixture(scope="module")
def file() -> File:
    options: dict[str, Any] = {"map_types": MAP_TYPES}
    written = explore_and_write(HOOK, PROGRAM, budget=Budget(seconds=240), **options)
    text = block(written.exploration, written.tests, f"Path({str(HOOK)!r})", options)
    functions: dict[str, Any] = {}
    exec(compile(text, "explored", "exec"), functions)
    return File(written.exploration.alive, written.tests, functions)


def test_each_edge_has_one_test_of_few_entries(file: File) -> None:
    assert len({test.name for test in file.tests}) == len({test.edge for test in file.tests})
    assert len(file.tests) == file.alive > 150
    for test in file.tests:
        entries = re.findall(r"^ +obj\.maps\.\w+\[.*\] = ", test.text, re.MULTILINE)
        assert len(entries) <= MOST_ENTRIES, test.text


def part_of(file: File, part: int) -> list[WrittenTest]:
    tests = file.tests[part::PARTS]
    assert tests
    return tests


@pytest.mark.parametrize("part", range(PARTS))
def test_every_test_passes(file: File, part: int, bpf_load: Load) -> None:
    for test in part_of(file, part):
        file.functions[test.name](bpf_load)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_test_fails_on_a_mutant_of_its_branch(
    file: File, part: int, record_property: Callable[[str, object], None]
) -> None:
    """The jump turned around, or, where the verifier wants it as it is, the edge led elsewhere."""
    inverted, unnoticed = 0, []
    for test in (tests := part_of(file, part)):
        fails = False
        for mutant in mutants(test):
            fails = noticed(file.functions[test.name], mutant)
            if fails:
                inverted += isinstance(mutant, Inverted)
                break
        if not fails:
            unnoticed.append(test.name)
    assert not unnoticed
    record_property("inverted", f"{inverted} of {len(tests)}")


def mutants(test: WrittenTest) -> list[Any]:
    insn, taken = test.edge
    verdict = re.search(r"assert run\.retval == ([01])$", test.text, re.MULTILINE)
    assert verdict, test.text
    return [Inverted(PROGRAM, insn), LedOut(PROGRAM, insn, taken, 1 - int(verdict[1]))]


def noticed(test: Callable[[Load], None], mutant: Any) -> bool:
    """Return whether a test fails of a mutant; a mutant that does not load is none."""
    loaded: list[bpfunit.Object] = []

    def load(path: Path, *, instrument: list[Any], **options: Any) -> bpfunit.Object:
        obj = bpfunit.load(path, instrument=[mutant, *instrument], **options)
        loaded.append(obj)
        return obj

    try:
        test(load)
    except bpfunit.VerifierError:
        assert not loaded
        return False
    except AssertionError:
        return True
    finally:
        for obj in loaded:
            obj.close()
    return False
