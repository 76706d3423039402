"""What a comparison of two builds tries of one program beyond its edges: here without a kernel."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence

import pytest

from bpfunit.explorer.case import Budget
from bpfunit.explorer.deepen import Deepening
from bpfunit.explorer.diff import compare_sides
from bpfunit.explorer.facts import BRANCH, Facts, Site
from bpfunit.explorer.search import Search
from bpfunit.explorer.side import Description
from bpfunit.explorer.wire import Input, Outcome, StepOutcome

pytestmark = pytest.mark.host

SITES = [
    Site(BRANCH, 0, op=0x10, narrow=True, imm=7, cost=3),  # a == 7
    Site(BRANCH, 1, op=0x20, narrow=True, imm=100, cost=3),  # b > 100
    Site(BRANCH, 2, op=0x10, narrow=True, imm=None, cost=3),  # b == c
]
WORDS = [(0, 4), (4, 4), (8, 4)]
FACTS = Facts(
    *("prog", "cgroup/connect4", "none", "cgroup_sock_addr", SITES, frozenset(), {}, [], []),
    *(WORDS, [bytes(12)]),
)


class Program:
    """Three nested comparisons of three words; remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: set[tuple[int, ...]] = set()

    def execute(self, inputs: Sequence[Input]) -> list[Outcome]:
        return [Outcome(0, [self.run(step.ctx) for step in one.steps], {}) for one in inputs]

    def run(self, ctx: bytes) -> StepOutcome:
        a, b, c = struct.unpack("<III", ctx)
        self.calls.add((a, b, c))
        records = [(0, a, 7, b"")]
        if a == 7:
            records.append((1, b, 100, b""))
            if b > 100:
                records.append((2, b, c, b""))
        return StepOutcome(0, 1, 0, ctx, b"", 0, records, [])


def test_each_path_is_tried_at_its_borders_with_zeroes_and_with_numbers() -> None:
    program = Program()
    search = Search(FACTS, program.execute, 0, Budget(seconds=30, runs=5000))
    search.run()
    program.calls.clear()
    Deepening(search, 0).run(time.monotonic() + 2)
    inside = {(b, c) for a, b, c in program.calls if a == 7}
    assert {b for b, _ in inside} >= {0, 100, 101}
    assert any(a in (6, 8) for a, _, _ in program.calls)
    assert any(b > 100 and c == b for b, c in inside)
    assert any(b > 100 and c == 0 for b, c in inside)
    assert any(b > 100 and c not in (0, b) for b, c in inside)


def test_inputs_run_twice_and_one_behind_another() -> None:
    lengths: set[tuple[bytes, ...]] = set()
    program = Program()

    def execute(inputs: Sequence[Input]) -> list[Outcome]:
        lengths.update(tuple(step.ctx for step in one.steps) for one in inputs)
        return program.execute(inputs)

    search = Search(FACTS, execute, 0, Budget(seconds=30, runs=5000))
    search.run()
    lengths.clear()
    Deepening(search, 0).run(time.monotonic() + 2)
    pairs = [steps for steps in lengths if len(steps) == 2]
    assert any(one == two for one, two in pairs)
    assert any(one != two for one, two in pairs)


class Build(Program):
    """The program as a side of a comparison, which returns a number of its own at one border."""

    def __init__(self, returns: int) -> None:
        super().__init__()
        self.described = Description(FACTS, [])
        self.returns = returns

    def run(self, ctx: bytes) -> StepOutcome:
        a, b, _ = struct.unpack("<III", ctx)
        outcome = super().run(ctx)
        return outcome._replace(retval=self.returns if a == 7 and b == 101 else 1)

    def begin(self, inputs: Sequence[Input]) -> Iterator[Outcome]:
        return iter(self.execute(inputs))

    def body(self, given: Input) -> list[str]:
        return [given.steps[0].ctx.hex()]


def test_builds_that_differ_at_one_border_are_told_apart_and_the_same_are_not() -> None:
    found = compare_sides(Build(0), Build(2), seconds=20)
    assert found.differs
    assert found.differences == ["return value: 0 before, 2 now"]
    assert found.test == [struct.pack("<III", 7, 101, 0).hex()]
    assert not compare_sides(Build(2), Build(2), seconds=2).differs
