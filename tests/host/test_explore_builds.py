"""Two builds of one program side by side: inputs carried over, what is seen of both compared."""

from __future__ import annotations

from typing import Any

import pytest

from bpfunit.explorer.builds import Seen, Translation
from bpfunit.explorer.cells import Cell, Cells
from bpfunit.explorer.facts import (
    ARRAY,
    DELETE,
    RESULT,
    SECTION,
    TAIL,
    TAIL_CALL,
    Facts,
    MapFacts,
    Site,
    StubFacts,
)
from bpfunit.explorer.side import Description
from bpfunit.explorer.wire import Input, Outcome, Step, StepOutcome

pytestmark = pytest.mark.host

HASH = MapFacts("hash", DELETE, 1, 4, 8, 8, 16)
SLOTS = MapFacts("slots", ARRAY, 2, 4, 8, 8, 4)
DATA = MapFacts(".data", SECTION, 2, 4, 4, 4, 1, b"\2\0\0\0")
TIME, GETS_NULL = StubFacts(5, 0, True, 1), StubFacts(131, 1, False, 0)


def facts(maps: list[MapFacts], stubs: list[StubFacts] | None = None) -> Facts:
    sites = [Site(TAIL, 1, helper=TAIL_CALL, map=0), Site(RESULT, 1, helper=TAIL_CALL)]
    return Facts(
        *("prog", "cgroup/connect4", "6.12", "cgroup_sock_addr", sites, frozenset(), {}, maps),
        *(stubs or [], [(4, 4)], [bytes(72)]),
    )


def outcome(entries: dict[tuple[int, bytes], bytes] | None = None, **changed: Any) -> Outcome:
    step = StepOutcome(0, 1, 0, bytes(72), b"", 0, [], [])._replace(**changed)
    return Outcome(0, [step], entries or {})


def test_an_input_is_carried_over_by_the_names_of_maps_and_calls() -> None:
    old, new = facts([HASH, DATA], [TIME, GETS_NULL]), facts([DATA, HASH], [GETS_NULL])
    given = Input(
        (Step(b"ctx"),), ((0, b"keys", b"12345678"), (1, bytes(4), b"\3\0\0\0")), ((0, 7), (1, 0))
    )
    there = Translation(old, new)(given)
    assert there.entries == ((0, bytes(4), b"\3\0\0\0"), (1, b"keys", b"12345678"))
    assert there.stubs == ((0, 0),)
    assert Translation(new, old)(there) == given.with_stub(0, None)


def test_a_failure_is_the_same_only_where_the_calls_are_of_the_same_lines_in_order() -> None:
    def build(*lines: str) -> Facts:
        stubs = [StubFacts(131, n, False, 0) for n in range(len(lines))]
        found = facts([HASH], stubs)
        found.sites = [Site(RESULT, n, helper=131, slot=n) for n in range(len(lines))]
        found.places = {n: ("a.c", n, 0, line) for n, line in enumerate(lines)}
        return found

    first, second = (Input((Step(b""),), (), ((slot, 0),)) for slot in (0, 1))
    there = Translation(build("one();", "two();"), build("one();", "two();"))
    assert there(first) == first
    assert there.carries(second)
    for lines in (("two();", "one();"), ("one();", "two();", "one();"), ("one();",)):
        assert not Translation(build("one();", "two();"), build(*lines)).carries(first), lines
    assert Translation(build("one();", "two();"), build()).carries(first)


def test_entries_of_a_map_that_the_other_build_has_otherwise_stay_behind() -> None:
    wider = HASH._replace(value_size=12, stride=12)
    given = Input((Step(b""),), ((0, b"keys", b"12345678"),))
    assert Translation(facts([HASH]), facts([wider]))(given).entries == ()
    assert Translation(facts([HASH]), facts([SLOTS]))(given).entries == ()


def test_what_a_caller_sees_differs_by_each_of_its_parts() -> None:
    seen = Seen(Description(facts([HASH, SLOTS, DATA]), ["log"]), ())
    base = seen.of(outcome())
    others = [
        outcome(retval=0),
        outcome(verdict=-1),
        outcome(errno=22),
        outcome(ctx=b"\1" + bytes(71)),
        outcome(data=b"packet"),
        outcome(log=[(0, b"line")]),
        outcome(records=[(0, 3, 0, b"")]),
        outcome({(0, b"keys"): bytes(8)}),
        outcome({(1, bytes(4)): b"\1" + bytes(7)}),
    ]
    for other in others:
        assert seen.of(other) != base, other
        assert seen.told(other) != seen.told(outcome()), other


def test_zeroes_of_an_array_and_sections_laid_out_otherwise_are_no_difference() -> None:
    seen = Seen(Description(facts([HASH, SLOTS, DATA]), []), {".data"})
    assert seen.of(outcome({(1, bytes(4)): bytes(8)})) == seen.of(outcome())
    assert seen.of(outcome({(2, bytes(4)): b"\3\0\0\0"})) == seen.of(outcome())


def test_the_descriptor_in_a_context_is_no_difference() -> None:
    described = Description(facts([HASH]), [], fd_offset=64)
    seen = Seen(described, ())
    one, two = (outcome(ctx=bytes(64) + bytes([n]) + bytes(7)) for n in (5, 6))
    assert seen.of(one) == seen.of(two) != seen.of(outcome())
    assert seen.of(outcome(ctx=bytes(63) + b"\5" + bytes(8))) != seen.of(outcome())


def test_a_tail_call_that_came_back_was_not_entered() -> None:
    seen = Seen(Description(facts([HASH]), []), ())
    came_back = outcome(records=[(0, 3, 0, b""), (1, 0, 0, b"")])
    assert seen.of(came_back) == seen.of(outcome())
    assert "hash[3]" in str(seen.told(outcome(records=[(0, 3, 0, b"")])))


def test_a_description_crosses_a_channel() -> None:
    roles = {(0, "key", 4): "addr"}
    described = Description(facts([HASH], [TIME]), ["log"], roles, {4: "port"}, 64)
    again = Description.from_plain(described.to_plain())
    assert again.to_plain() == described.to_plain()
    assert again.facts.maps[0].name == "hash"
    assert (again.roles, again.context_roles, again.fd_offset) == (roles, {4: "port"}, 64)


def test_a_cell_of_an_input_is_read_and_written_where_it_stands() -> None:
    cells = Cells(facts([HASH, DATA], [TIME]))
    given = Input((Step(bytes(range(72))),), ((0, b"keys", b"12345678"),))
    assert cells.read(given, Cell("ctx", 0, 4, 4)) == 0x07060504
    assert cells.read(given, Cell("value", (1, bytes(4)), 0, 4)) == 2
    assert cells.read(given, Cell("stub", 0, 0, 8)) == 1
    given = cells.written(given, Cell("value", (0, b"keys"), 4, 4), 0x01020304)
    given = cells.written(given, Cell("stub", 0, 0, 8), -1)
    assert given.entries == ((0, b"keys", b"1234\4\3\2\1"),)
    assert given.stubs == ((0, (1 << 64) - 1),)
