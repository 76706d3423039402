"""The parts of an input that can be changed, each a number."""

from __future__ import annotations

from typing import NamedTuple

from bpfunit.explorer.case import Case
from bpfunit.explorer.facts import ANSWERED, ARRAY, FIXED, KEY, RESULT, SECTION, Facts
from bpfunit.explorer.wire import Input


class Cell(NamedTuple):
    """A part of an input that can be changed.

    ``kind`` is "ctx", "data", "value" or "stub"; ``where`` the step, the (map, key) or the slot.
    """

    kind: str
    where: int | tuple[int, bytes]
    offset: int
    width: int


class Cells:
    """Finds, reads and writes the cells of one program's inputs."""

    def __init__(self, facts: Facts) -> None:
        self._facts, self._sites = facts, facts.sites

    def of(self, case: Case) -> list[Cell]:
        """Return the parts of an input that can be changed."""
        cells: list[Cell] = []
        given = case.given
        for n, step in enumerate(given.steps):
            if step.ctx:
                cells += [Cell("ctx", n, offset, width) for offset, width in self._facts.words]
            for offset in range(0, len(step.data), 4):
                cells.append(Cell("data", n, offset, min(4, len(step.data) - offset)))
        for number, key, _ in given.entries:
            one = self._facts.maps[number]
            if one.kind in FIXED:
                continue
            for offset in range(0, min(one.value_size, 1024), 4):
                width = min(4, one.value_size - offset)
                cells.append(Cell("value", (number, key), offset, width))
        present = {(m, k) for m, k, _ in given.entries}
        for number, one in enumerate(self._facts.maps):
            if one.kind == SECTION and (number, bytes(4)) not in present:
                cells += [
                    Cell("value", (number, bytes(4)), offset, min(4, one.value_size - offset))
                    for offset in range(0, min(one.value_size, 1024), 4)
                ]
        asked = set()
        for passed, _, _, key in case.records:
            site = self._sites[passed]
            if site.kind == RESULT and site.slot >= 0:
                if site.helper in ANSWERED or self._facts.stubs[site.slot].always:
                    asked.add(site.slot)
            elif site.kind == KEY and site.map >= 0 and self._facts.maps[site.map].kind == ARRAY:
                one = self._facts.maps[site.map]
                if (site.map, key) not in present and len(key) == one.key_size:
                    present.add((site.map, key))
                    cells += [
                        Cell("value", (site.map, key), offset, min(4, one.value_size - offset))
                        for offset in range(0, min(one.value_size, 512), 4)
                    ]
        cells += [Cell("stub", slot, 0, 8) for slot in sorted(asked)]
        return cells

    def read(self, given: Input, cell: Cell) -> int:
        """Return the number in a cell, whose bytes are in the kernel's order."""
        return int.from_bytes(self._bytes_of(given, cell), self._facts.order)

    def _bytes_of(self, given: Input, cell: Cell) -> bytes:
        end = cell.offset + cell.width
        if cell.kind == "stub":
            assert isinstance(cell.where, int)
            answers = dict(given.stubs)
            answer = answers.get(cell.where, self._facts.stubs[cell.where].value)
            return answer.to_bytes(8, self._facts.order)
        if cell.kind == "value":
            return self._entry(given, cell)[cell.offset : end]
        assert isinstance(cell.where, int)
        step = given.steps[cell.where]
        return (step.ctx if cell.kind == "ctx" else step.data)[cell.offset : end]

    def _entry(self, given: Input, cell: Cell) -> bytes:
        assert isinstance(cell.where, tuple)
        for number, key, value in given.entries:
            if (number, key) == cell.where:
                return value
        one = self._facts.maps[cell.where[0]]
        return one.initial or bytes(one.stride)

    def written(self, given: Input, cell: Cell, value: int) -> Input:
        """Return the input with another number in a cell."""
        raw = (value & (1 << 8 * cell.width) - 1).to_bytes(cell.width, self._facts.order)
        if cell.kind == "stub":
            assert isinstance(cell.where, int)
            return given.with_stub(cell.where, value)
        if cell.kind == "value":
            assert isinstance(cell.where, tuple)
            number, key = cell.where
            whole = bytearray(self._entry(given, cell))
            whole[cell.offset : cell.offset + cell.width] = raw
            return given.with_entry(number, key, self.value(number, bytes(whole)))
        assert isinstance(cell.where, int)
        step = given.steps[cell.where]
        whole = bytearray(step.ctx if cell.kind == "ctx" else step.data)
        whole[cell.offset : cell.offset + cell.width] = raw
        changed = step._replace(**{cell.kind: bytes(whole)})
        return given.with_step(cell.where, changed)

    def value(self, number: int, value: bytes) -> bytes:
        """Return a value as the system call takes it: on each CPU the same."""
        one = self._facts.maps[number]
        value = value[: one.value_size].ljust(one.value_size, b"\0")
        if one.stride == one.value_size:
            return value
        each = (one.value_size + 7) // 8 * 8
        return value.ljust(each, b"\0") * (one.stride // each)
