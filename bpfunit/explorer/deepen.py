"""Inputs beyond those that a search for edges needs: what each part of a path depends on.

A path at a time, those that together take every edge first: numbers that can be told apart in
place of zeroes, each part changed, each comparison on the way turned and both its borders tried,
the state that a run before left, two paths in a row. What takes a new path is a path to go on from.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from bpfunit.explorer.case import Case, joined, moved
from bpfunit.explorer.cells import Cell
from bpfunit.explorer.facts import BRANCH
from bpfunit.explorer.influence import Influence
from bpfunit.explorer.minimise import covering
from bpfunit.explorer.search import Search
from bpfunit.explorer.solver import Solver
from bpfunit.explorer.wire import Input

_BATCH = 256
_PAIRED = 14  # cases of which each pair is run in a row
_TURNED = 6  # inputs that are tried to turn one comparison of one case
_CHANCES = 64  # inputs changed by chance, behind each case
_FOLLOWED = 2000  # paths


class Deepening:
    """Runs ever more inputs of a program, beginning with those that a search kept.

    Args:
        search: it has run; its ``cases_of`` runs inputs here as well.
        seed: of what is chosen by chance.
    """

    def __init__(self, search: Search, seed: int) -> None:
        self._search, self._facts, self._cells = search, search.facts, search.cells
        influence = Influence(self._facts.sites, self._cells, self._run)
        self._solver = Solver(self._facts, self._cells, influence)
        self._chance = random.Random(seed)
        self._paths: set[int] = set()
        self._waiting: deque[Case] = deque()
        self._end = 0.0

    def run(self, end: float) -> None:
        """Run inputs until nothing is left to try, or it is ``end`` by ``time.monotonic()``."""
        self._end = end
        first = [case for case, _ in covering(self._search.found)]
        cases = self._painted([*first, *self._search.kept()])
        self._waiting.clear()
        self._paths = {case.path for case in cases}
        cases = list({case.path: case for case in reversed(cases)}.values())[::-1]
        self._run([case.given._replace(steps=case.given.steps * 2) for case in cases])
        self._waiting.extendleft(reversed(cases))
        done: list[Case] = []
        while self._waiting and not self._over():
            case = self._waiting.popleft()
            self._run(self._variants(case))
            self._turn(case)
            done.append(case)
            self._run([self._by_chance(self._chance.choice(done)) for _ in range(_CHANCES)])
            if len(done) == len(cases):
                self._in_a_row(cases)
        while done and not self._over():
            self._run([self._by_chance(self._chance.choice(done)) for _ in range(_BATCH)])

    def _over(self) -> bool:
        return time.monotonic() > self._end

    def _run(self, inputs: Sequence[Input]) -> list[Case]:
        """Run inputs, and have those wait that take a new path; fewer when it is the end."""
        found: list[Case] = []
        for start in range(0, len(inputs), _BATCH):
            if self._over():
                break
            for case in self._search.cases_of(inputs[start : start + _BATCH]):
                found.append(case)
                if case.path not in self._paths and len(self._paths) < _FOLLOWED:
                    self._paths.add(case.path)
                    self._waiting.append(case)
        return found

    # -- numbers that can be told apart

    def _painted(self, cases: Sequence[Case]) -> list[Case]:
        """Return cases with numbers in their zeroes, as far as they keep their paths.

        All zeroes of a case at once, then the halves of those that do not go together; the cases
        beside each other, so that a batch is large.
        """
        current = list({case.given: case for case in cases}.values())
        spans: list[list[list[Cell]]] = []
        for case in current:
            blank = [
                cell
                for cell in self._cells.of(case)
                if cell.kind in ("value", "ctx") and not self._cells.read(case.given, cell)
            ]
            spans.append([blank] if blank else [])
        while any(spans) and not self._over():
            turns = [n for n, left in enumerate(spans) if left]
            inputs = [self._with_numbers(current[n].given, spans[n][0]) for n in turns]
            for n, other in zip(turns, self._run(inputs), strict=False):
                span = spans[n].pop(0)
                if other.path == current[n].path:
                    current[n] = other
                elif len(span) > 1:
                    spans[n] += [span[: len(span) // 2], span[len(span) // 2 :]]
        return current

    def _with_numbers(self, given: Input, cells: Iterable[Cell]) -> Input:
        for cell in cells:
            raw = bytes(self._chance.randrange(1, 0x7F) for _ in range(cell.width))
            given = self._cells.written(given, cell, int.from_bytes(raw, "little"))
        return given

    # -- one case

    def _variants(self, case: Case) -> list[Input]:
        """Return the input with each of its cells changed: to 0, by one, to another's number."""
        found, given = [], case.given
        cells = self._cells.of(case)
        for cell in cells:
            value = self._cells.read(given, cell)
            numbers = [0, value + 1, value - 1]
            if cells:
                numbers.append(self._cells.read(given, self._chance.choice(cells)))
            for number in numbers:
                if number != value:
                    found.append(self._cells.written(given, cell, number))
        return found

    def _turn(self, case: Case) -> None:
        """Run inputs that turn each comparison of a case, and those that follow their keys."""
        inputs: list[Input] = []
        for index in self._places(case):
            if self._over():
                return
            site = self._facts.sites[case.records[index][0]]
            taken = site.taken(*site.operands(*case.records[index][1:3]))
            for candidates in self._solver.candidates(case, index, not taken):
                inputs += candidates[:_TURNED]
        others = self._run(list(dict.fromkeys(inputs)))
        for _ in range(3):
            followed = [moved(self._facts.sites, case, other) for other in others]
            others = self._run([one for one in followed if one is not None])

    def _places(self, case: Case) -> Iterator[int]:
        """Yield where records of jumps are, of a loop those of the first and the last pass."""
        passed: dict[int, list[int]] = {}
        for index, record in enumerate(case.records):
            if self._facts.sites[record[0]].kind == BRANCH:
                passed.setdefault(record[0], []).append(index)
        for places in passed.values():
            yield from dict.fromkeys([places[0], places[-1]])

    def _by_chance(self, case: Case) -> Input:
        """Return the input with some of its cells changed."""
        given, cells = case.given, self._cells.of(case)
        for _ in range(self._chance.randint(2, 6)) if cells else ():
            cell = self._chance.choice(cells)
            other = self._cells.read(given, self._chance.choice(cells))
            numbers = (0, 1, 2, self._chance.getrandbits(32), other)
            given = self._cells.written(given, cell, self._chance.choice(numbers))
        return given

    # -- several

    def _in_a_row(self, cases: Sequence[Case]) -> None:
        """Run cases one after another, on what the one before left."""
        longest = sorted(cases, key=lambda one: -len(one.records))[:_PAIRED]
        inputs = []
        for first in {case.given: case for case in (*cases[:_PAIRED], *longest)}.values():
            for second in longest:
                inputs.append(joined(first.given, second.given))
                inputs.append(joined(second.given, first.given))
        self._run(inputs)
