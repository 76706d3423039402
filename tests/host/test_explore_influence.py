"""How few runs tell which bit of an input comes to which of a comparison: without a kernel."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pytest

from bpfunit.explorer.case import Case, case_of
from bpfunit.explorer.cells import Cell, Cells
from bpfunit.explorer.facts import BRANCH, Facts, Site
from bpfunit.explorer.influence import Influence
from bpfunit.explorer.solver import solve_bits
from bpfunit.explorer.wire import Input, Outcome, Step, StepOutcome

pytestmark = pytest.mark.host

SITES = [Site(BRANCH, 0, op=0x10, narrow=False, imm=None, cost=1)]  # made(word) == 1
WORD = Cell("ctx", 0, 0, 4)
FACTS = Facts(
    *("prog", "cgroup/connect4", "none", "cgroup_sock_addr", SITES, frozenset(), {}, [], []),
    *([(0, 4)], [bytes(4)]),
)


class Program:
    """One comparison of what is made of the context's word; counts its runs."""

    def __init__(self, made: Callable[[int], int]) -> None:
        self._made = made
        self.runs = 0

    def cases(self, inputs: Sequence[Input]) -> list[Case]:
        self.runs += len(inputs)
        found = []
        for one in inputs:
            ctx = one.steps[0].ctx
            records = [(0, self._made(*struct.unpack("<I", ctx)), 1, b"")]
            step = StepOutcome(0, 1, 0, ctx, b"", 0, records, [])
            found.append(case_of(SITES, one, Outcome(0, [step], {})))
        return found

    def flips(self, word: int) -> dict[int, int]:
        """Return what flipping each bit of a word changes of the comparison's first operand."""
        influence = Influence(SITES, Cells(FACTS), self.cases)
        (case,) = self.cases([Input((Step(struct.pack("<I", word), b""),))])
        found = influence.flips(case, influence.cells_behind(case, 0), 0)
        assert all((cell, change_b) == (WORD, 0) for cell, _, _, change_b in found)
        assert solve_bits(found, found[0][2])
        return {bit: change for _, bit, change, _ in found}


def swapped(word: int) -> int:
    return int.from_bytes(word.to_bytes(4, "little"), "big")


@pytest.mark.parametrize(
    ("made", "changes"),
    [
        (lambda word: word, {bit: 1 << bit for bit in range(32)}),
        (swapped, {bit: 1 << (bit ^ 24) for bit in range(32)}),
        (lambda word: word >> 4 & 0xFF, {bit: 1 << (bit - 4) for bit in range(4, 12)}),
        (lambda word: (word & 3) * 5, {0: 5, 1: 10}),
    ],
    ids=["moved", "byte order", "shift and mask", "bits that go to several"],
)
def test_what_moves_bits_is_told_by_a_few_runs(
    made: Callable[[int], int], changes: dict[int, int]
) -> None:
    program = Program(made)
    assert program.flips(0) == changes
    assert program.runs <= 8  # the case, the cell, all of its bits, the five bits of their numbers


def test_what_only_looks_like_moving_bits_has_each_of_them_flipped() -> None:
    program = Program(lambda word: word + 3 & 0xFFFF_FFFF)
    assert program.flips(1) == {bit: (1 << bit) + 4 ^ 4 for bit in range(1, 32)} | {0: 7}
    assert program.runs == 8 + 32


def test_a_second_comparison_of_the_same_cell_costs_nothing() -> None:
    program = Program(swapped)
    influence = Influence(SITES, Cells(FACTS), program.cases)
    (case,) = program.cases([Input((Step(bytes(4), b""),))])
    cells = influence.cells_behind(case, 0)
    first = influence.flips(case, cells, 0)
    before = program.runs
    assert influence.flips(case, cells, 0) == first
    assert program.runs == before
