"""Which cells of an input a comparison depends on, and how: seen by changing them and running."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bpfunit.explorer.case import POINTERS, Case, moved
from bpfunit.explorer.cells import Cell, Cells
from bpfunit.explorer.facts import BRANCH, Site
from bpfunit.explorer.wire import Input

_KEYS = 3  # lookups one behind another whose keys one part of an input makes

Probe = Callable[[Sequence[Input]], list[Case]]
"""Runs inputs, fewer when the budget ends, whether or not they ran before."""

Operands = dict[int, tuple[int, int]]
"""What jumps compared, by the record's place."""


class Influence:
    """What changes of cells do to the comparisons of cases; remembers what was tried."""

    def __init__(self, sites: Sequence[Site], cells: Cells, probe: Probe) -> None:
        self._sites, self._cells, self._probe = sites, cells, probe
        self._known: dict[Input, dict[int, list[Cell]]] = {}
        self._bits: dict[tuple[Input, Cell], list[tuple[int, Operands]]] = {}

    def cells_of(self, case: Case) -> dict[int, list[Cell]]:
        """Return the cells that change the operands of a record, by the record's place."""
        known = self._known.get(case.given)
        if known is not None:
            return known
        found: dict[int, list[Cell]] = {}
        cells = self._cells.of(case)
        changed = [
            self._cells.written(
                case.given, cell, self._cells.read(case.given, cell) ^ 0xA5C3_961D_5AB7_694F
            )
            for cell in cells
        ]
        narrow: list[Cell] = []
        for cell, other in zip(cells, self._followed(case, changed), strict=False):
            for index in self._differences(case, other):
                found.setdefault(index, []).append(cell)
            if cell.kind in ("data", "value") and other.path != case.path:
                # several fields may share it, and one of them sent the run another way
                narrow += [
                    cell._replace(offset=cell.offset + n, width=1) for n in range(cell.width)
                ]
        for pattern in (0xFF, 1):  # whatever bit is asked for; and less than a range is wide
            changed = [
                self._cells.written(case.given, cell, self._cells.read(case.given, cell) ^ pattern)
                for cell in narrow
            ]
            for cell, other in zip(narrow, self._followed(case, changed), strict=False):
                for index in self._differences(case, other):
                    if cell not in found.setdefault(index, []):
                        found[index].append(cell)
        self._known[case.given] = found
        return found

    def _followed(self, case: Case, inputs: Sequence[Input]) -> list[Case]:
        """Run inputs; one that asks for another key than the case did is given the entry under it.

        What a key is made of is often compared as well, behind the lookup.
        """
        cases = self._probe(inputs)
        for _ in range(_KEYS):
            again = {
                n: given
                for n, other in enumerate(cases)
                if other.path != case.path and (given := moved(self._sites, case, other))
            }
            for n, other in zip(again, self._probe(list(again.values())), strict=False):
                cases[n] = other
            if not again:
                break
        return cases

    def cells_behind(self, case: Case, index: int) -> list[Cell]:
        """Return the cells that change what a record compared.

        Of a value that is compared again and again, as by a switch, a change that was seen at an
        earlier comparison may have led the run away from this one.
        """
        influence = self.cells_of(case)
        found = list(influence.get(index, ()))
        value = case.records[index][1]
        for earlier in range(index):
            number, a, _, _ = case.records[earlier]
            if a == value and self._sites[number].kind == BRANCH:
                found += [cell for cell in influence.get(earlier, ()) if cell not in found]
        return found

    def flips(self, case: Case, cell: Cell) -> list[tuple[int, Operands]]:
        """Return, for each bit of a cell, the operands that flipping it changes."""
        place = (case.given, cell)
        known = self._bits.get(place)
        if known is None:
            value = self._cells.read(case.given, cell)
            bits = range(8 * cell.width)
            inputs = [self._cells.written(case.given, cell, value ^ 1 << bit) for bit in bits]
            others = self._followed(case, inputs)
            known = [
                (bit, self._differences(case, other))
                for bit, other in zip(bits, others, strict=False)
            ]
            self._bits[place] = known
        return known

    def _differences(self, case: Case, other: Case) -> Operands:
        """Return the operands that differ, by the record's place in the first case.

        Where the paths part, records are matched by their site and how often it was passed before:
        an address that is compared twice is still seen at the second comparison. Addresses in the
        kernel differ from run to run and say nothing.
        """
        found = {}
        sites, passed = self._sites, {}
        parted = False
        for index, (old, new) in enumerate(zip(case.records, other.records, strict=False)):
            if old[0] != new[0]:
                parted = True
                break
            if old != new and old[1] < POINTERS and sites[old[0]].kind == BRANCH:
                site = sites[old[0]]
                operands = site.operands(new[1], new[2])
                if operands != site.operands(old[1], old[2]):
                    found[index] = operands
        if not parted:
            return found
        counts: dict[int, int] = {}
        for number, a, b, _ in other.records[index:]:
            counts[number] = counts.get(number, 0) + 1
            passed[number, counts[number]] = a, b
        counts = {}
        for place in range(index, len(case.records)):
            number, a, b, _ = case.records[place]
            counts[number] = counts.get(number, 0) + 1
            matched = passed.get((number, counts[number]))
            if matched and a < POINTERS and sites[number].kind == BRANCH:
                operands = sites[number].operands(*matched)
                if operands != sites[number].operands(a, b):
                    found[place] = operands
        return found
