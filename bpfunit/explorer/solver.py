"""Inputs that may send one comparison the other way, from an input that comes to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bpfunit.explorer.case import POINTERS, Case
from bpfunit.explorer.cells import Cell, Cells
from bpfunit.explorer.facts import Facts, Site
from bpfunit.explorer.influence import Flip, Influence
from bpfunit.explorer.wire import Input

_MAX_PACKET = 1500
_LOADS = (26, 68, 189)  # skb_load_bytes, skb_load_bytes_relative, xdp_load_bytes
_MIN_PACKET = 14


class Solver:
    """Proposes inputs for one comparison at a time."""

    def __init__(self, facts: Facts, cells: Cells, influence: Influence) -> None:
        self._facts, self._sites = facts, facts.sites
        self._cells, self._influence = cells, influence

    def candidates(self, case: Case, index: int, wanted: bool) -> Iterator[list[Input]]:
        """Yield batches of inputs that may send the jump of a record the other way."""
        number, raw_a, raw_b, _ = case.records[index]
        site = self._sites[number]
        a, b = site.operands(raw_a, raw_b)
        if raw_a >= POINTERS:
            yield list(self._without_pointer(case, index))
            yield [*self._resized(case, raw_a, raw_b), *self._lengthened(case, index)]
        cells = self._influence.cells_behind(case, index)
        flips = self._influence.flips(case, dict(list(cells.items())[:24]), index)
        goals = list(goals_of(site, a, b, wanted))
        solved = [
            self._flipped(case.given, chosen)
            for goal in goals
            if (chosen := solve_bits(flips, goal[0] ^ a | (goal[1] ^ b) << 64)) is not None
        ]
        yield solved
        yield list(self._direct(case, list(cells), a, b, goals))

    def _flipped(self, given: Input, chosen: Iterable[tuple[Cell, int]]) -> Input:
        for cell, bit in chosen:
            given = self._cells.written(given, cell, self._cells.read(given, cell) ^ 1 << bit)
        return given

    def _direct(
        self, case: Case, cells: Sequence[Cell], a: int, b: int, goals: Sequence[tuple[int, int]]
    ) -> Iterator[Input]:
        """Yield inputs with the wanted operand itself written, or the difference added."""
        for cell in cells[:12]:
            value, width = self._cells.read(case.given, cell), cell.width
            bits = 8 * width
            for want_a, want_b in goals[:4]:
                for want, have in ((want_a, a), (want_b, b)):
                    if want == have:
                        continue
                    numbers = {want, value + want - have, value - want + have}
                    for size in (2, 4, 8):
                        if want < 1 << 8 * size:
                            numbers.add(int.from_bytes(want.to_bytes(size, "little"), "big"))
                    for number in sorted(n & (1 << bits) - 1 for n in numbers):
                        yield self._cells.written(case.given, cell, number)

    def _without_pointer(self, case: Case, index: int) -> Iterator[Input]:
        """Yield inputs for which a lookup or call in front of a record finds nothing."""
        for number, key, _ in case.given.entries:
            yield case.given.with_entry(number, key, None)
        for record, _, _, _ in case.records[max(0, index - 2) : index]:
            slot = self._sites[record].slot
            if slot >= 0:
                yield case.given.with_stub(slot, self._facts.stubs[slot].value)

    def _lengthened(self, case: Case, index: int) -> Iterator[Input]:
        """Yield inputs with more zeroes at the end of packets that a load went beyond."""
        before = [self._sites[record[0]] for record in case.records[max(0, index - 1) : index]]
        if not any(site.helper in _LOADS for site in before):
            return
        for n, step in enumerate(case.given.steps):
            for more in (4, 16, 64, 256) if step.data else ():
                size = len(step.data) + more
                if size <= _MAX_PACKET:
                    data = step.data.ljust(size, b"\0")
                    yield case.given.with_step(n, step._replace(data=data))

    def _resized(self, case: Case, a: int, b: int) -> Iterator[Input]:
        """Yield inputs with shorter and longer packets, by the distance of two pointers."""
        distance = a - b
        if abs(distance) > 1 << 16:
            return
        for n, step in enumerate(case.given.steps):
            size = len(step.data)
            for other in (size + distance, size - distance):
                for near in (other, other - 1, other + 1):
                    if step.data and _MIN_PACKET <= near <= _MAX_PACKET and near != size:
                        data = step.data[:near].ljust(near, b"\0")
                        yield case.given.with_step(n, step._replace(data=data))


def goals_of(site: Site, a: int, b: int, wanted: bool) -> Iterator[tuple[int, int]]:
    """Yield operands with which a jump goes the wanted way, near those that it had first."""
    top = (1 << site.bits) - 1
    half = 1 << site.bits - 1
    near_a = (b, b + 1, b - 1, a | b, a & ~b, a | (b & -b), a + 1, a - 1, 0, top, half, half - 1)
    near_b = (a, a + 1, a - 1)
    tried = set()
    for pair in (*((n & top, b) for n in near_a), *((a, n & top) for n in near_b)):
        if pair not in tried and pair != (a, b) and site.taken(*pair) == wanted:
            tried.add(pair)
            yield pair
    # any value that differs does for most inequalities
    for shift in range(0, site.bits, 4):
        pair = (a ^ 1 << shift, b)
        if pair not in tried and site.taken(*pair) == wanted:
            tried.add(pair)
            yield pair


def solve_bits(flips: Sequence[Flip], difference: int) -> list[tuple[Cell, int]] | None:
    """Return bits of cells that together make a difference to the operands, None for no such.

    Each flip is (cell, bit, change of a, change of b), the difference a's and above 64 bits b's.
    Gaussian elimination over single bits: it is right for moves, masks, shifts and byte orders, and
    a guess for everything else.
    """
    basis: dict[int, tuple[int, int]] = {}  # by highest bit: a change, and the flips it takes
    for n, (_cell, _bit, change_a, change_b) in enumerate(flips):
        change, taken = change_a | change_b << 64, 1 << n
        while change:
            top = change.bit_length()
            if top not in basis:
                basis[top] = change, taken
                break
            change, taken = change ^ basis[top][0], taken ^ basis[top][1]
    chosen = 0
    while difference:
        found = basis.get(difference.bit_length())
        if found is None:
            return None
        difference, chosen = difference ^ found[0], chosen ^ found[1]
    return [(flip[0], flip[1]) for n, flip in enumerate(flips) if chosen >> n & 1]
