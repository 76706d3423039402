"""Which cells of an input a comparison depends on, and how: seen by changing them and running."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bpfunit.explorer.case import POINTERS, Case, moved
from bpfunit.explorer.cells import Cell, Cells
from bpfunit.explorer.facts import BRANCH, Site
from bpfunit.explorer.wire import Input

_KEYS = 3  # lookups one behind another whose keys one part of an input makes
_WORD = (1 << 64) - 1
_TELLING = 0xA5C3_961D_5AB7_694F  # bits of a cell that are changed to see what depends on it

Probe = Callable[[Sequence[Input]], list[Case]]
"""Runs inputs, fewer when the budget ends, whether or not they ran before."""

Operands = dict[int, tuple[int, int]]
"""What jumps compared, by the record's place."""

Flip = tuple[Cell, int, int, int]
"""A cell, the number of a bit of it, and what flipping that changes of operand a and of b."""


class Influence:
    """What changes of cells do to the comparisons of cases; remembers what was tried."""

    def __init__(self, sites: Sequence[Site], cells: Cells, probe: Probe) -> None:
        self._sites, self._cells, self._probe = sites, cells, probe
        self._known: dict[Input, dict[int, list[Cell]]] = {}
        # what jumps compared when bits of a cell were changed, by input, cell and those bits
        self._seen: dict[tuple[Input, Cell], dict[int, Operands]] = {}

    def cells_of(self, case: Case) -> dict[int, list[Cell]]:
        """Return the cells that change the operands of a record, by the record's place."""
        known = self._known.get(case.given)
        if known is not None:
            return known
        found: dict[int, list[Cell]] = {}
        cells = self._cells.of(case)
        narrow: list[Cell] = []
        for cell, other in self._changed(case, [(cell, _TELLING) for cell in cells]):
            for index in self._differences(case, other):
                found.setdefault(index, []).append(cell)
            if cell.kind in ("data", "value") and other.path != case.path:
                # several fields may share it, and one of them sent the run another way
                narrow += [
                    cell._replace(offset=cell.offset + n, width=1) for n in range(cell.width)
                ]
        for pattern in (0xFF, 1):  # whatever bit is asked for; and less than a range is wide
            for cell, other in self._changed(case, [(cell, pattern) for cell in narrow]):
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

    def cells_behind(self, case: Case, index: int) -> dict[Cell, int]:
        """Return the cells that change what a record compared, and at which record that is seen.

        Of a value that is compared again and again, as by a switch, a change that was seen at an
        earlier comparison may have led the run away from this one.
        """
        influence = self.cells_of(case)
        found = dict.fromkeys(influence.get(index, ()), index)
        value = case.records[index][1]
        for earlier in range(index):
            number, a, _, _ = case.records[earlier]
            if a == value and self._sites[number].kind == BRANCH:
                for cell in influence.get(earlier, ()):
                    found.setdefault(cell, earlier)
        return found

    def flips(self, case: Case, cells: Mapping[Cell, int], index: int) -> list[Flip]:
        """Return which bits of cells change what a record compared, and how.

        Args:
            case: the input.
            cells: some of :meth:`cells_behind`.
            index: the record.

        What moves, masks, shifts and byte orders do to bits is told by few runs: a bit of an
        operand says by the runs in which it changed from which bit of the cell it comes. A cell
        for which that does not say what was seen has its bits flipped one by one.
        """
        wanted = [
            (cell, pattern)
            for cell in cells
            for pattern in _codes(8 * cell.width)
            if pattern not in self._seen.get((case.given, cell), ())
        ]
        self._changed(case, wanted)
        columns = {cell: self._decoded(case, cell, place) for cell, place in cells.items()}
        wanted = [
            (cell, 1 << bit)
            for cell in cells
            if columns[cell] is None
            for bit in range(8 * cell.width)
            if 1 << bit not in self._seen.get((case.given, cell), ())
        ]
        self._changed(case, wanted)
        found: list[Flip] = []
        for cell in cells:
            changes = columns[cell]
            if changes is not None and cells[cell] != index:  # the same value at another jump
                changes = {bit: change & _WORD for bit, change in changes.items()}
            if changes is None:
                changes = {}
                for bit in range(8 * cell.width):
                    if change := self._change(case, cell, 1 << bit, index):
                        changes[bit] = change
            found += [(cell, n, one & _WORD, one >> 64) for n, one in sorted(changes.items())]
        return found

    def _decoded(self, case: Case, cell: Cell, index: int) -> dict[int, int] | None:
        """Return what each bit of a cell changes of a record's operands, a's below b's.

        None where no such answer agrees with all that was seen.
        """
        bits = 8 * cell.width
        whole, *codes = [self._change(case, cell, code, index) or 0 for code in _codes(bits)]
        columns: dict[int, int] = {}
        left = whole
        while left:
            lowest = left & -left
            bit = sum(1 << n for n, code in enumerate(codes) if code & lowest)
            columns[bit] = columns.get(bit, 0) | lowest
            left ^= lowest
        if not columns or max(columns) >= bits:
            return None
        for pattern in self._seen[case.given, cell]:
            told = 0
            for bit, change in columns.items():
                told ^= change if pattern >> bit & 1 else 0
            seen = self._change(case, cell, pattern, index)
            if (seen or 0) != told:
                return None
        return columns

    def _change(self, case: Case, cell: Cell, pattern: int, index: int) -> int | None:
        """Return the bits that changed of a record's operands, None where it was not seen."""
        known = self._seen.get((case.given, cell), {}).get(pattern, {})
        if index not in known:
            return None
        number, raw_a, raw_b, _ = case.records[index]
        a, b = self._sites[number].operands(raw_a, raw_b)
        return known[index][0] ^ a | (known[index][1] ^ b) << 64

    def _changed(self, case: Case, wanted: Sequence[tuple[Cell, int]]) -> list[tuple[Cell, Case]]:
        """Run the input with bits of cells changed; remember what its jumps compared."""
        inputs = [
            self._cells.written(case.given, cell, self._cells.read(case.given, cell) ^ pattern)
            for cell, pattern in wanted
        ]
        found = []
        for (cell, pattern), other in zip(wanted, self._followed(case, inputs), strict=False):
            kept = pattern & (1 << 8 * cell.width) - 1
            differences = self._differences(case, other)
            self._seen.setdefault((case.given, cell), {})[kept] = differences
            found.append((cell, other))
        return found

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


def _codes(bits: int) -> list[int]:
    """Return changes by which bits are told: all of them, then those whose number has a bit set."""
    numbers = range(bits)
    return [
        (1 << bits) - 1,
        *(
            sum(1 << n for n in numbers if n >> place & 1)
            for place in range((bits - 1).bit_length())
        ),
    ]
