"""Whether two builds of a program differ: inputs found for either, run on both.

Each input that the search for one build's branches tries is run on the other as well, both ways
round; then more of them: distinct numbers in place of zeroes, every comparison on the way turned,
each part changed, two runs in a row, several changes by chance. What is compared is what a caller
can see: verdict, context, packet, log, maps, storage and the tail calls that were entered.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bpfunit.explorer.builds import Seen, Translation
from bpfunit.explorer.case import Budget, Case
from bpfunit.explorer.deepen import Deepening
from bpfunit.explorer.facts import SECTION
from bpfunit.explorer.minimise import Minimiser
from bpfunit.explorer.search import Search
from bpfunit.explorer.side import Here, Side, codes_of
from bpfunit.explorer.wire import Input, Outcome

_SEARCHES = 1 / 4  # of the time, each search for branches at most


@dataclass
class Comparison:
    """What comparing one program of two builds said.

    Attributes:
        program: its name.
        same_code: whether the instructions and constants are the same, so that nothing was run.
        given: the smallest input found on which they differ, None for none.
        differences: what differs, for people.
        test: a test of that input, which passes on the old build, as lines.
        reached: of the old and the new build, (edges reached, edges alive).
        runs: how often either program ran, until they differed.
    """

    program: str
    same_code: bool = False
    given: Input | None = None
    differences: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    reached: list[tuple[int, int]] = field(default_factory=list)
    runs: int = 0
    seconds: float = 0.0

    @property
    def differs(self) -> bool:
        """Whether there is an input on which they differ."""
        return self.given is not None


def compare(
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    program: str,
    *,
    seed: int = 0,
    seconds: float = 60.0,
    options: Mapping[str, Any] | None = None,
) -> Comparison:
    """Search an input on which two builds of a program differ, in this kernel.

    Args:
        old, new: the objects.
        program: the program's name in both.
        seed: of what is chosen by chance.
        seconds: how long to search.
        options: for :func:`bpfunit.load`.

    Raises:
        BpfunitError: one of them cannot be loaded or explored.
    """
    options = dict(options or {})
    if codes_of(old, [program], options) == codes_of(new, [program], options):
        return Comparison(program, same_code=True)
    with Here(old, program, options) as one, Here(new, program, options) as two:
        return compare_sides(one, two, seed=seed, seconds=seconds)


def compare_sides(one: Side, two: Side, *, seed: int = 0, seconds: float = 60.0) -> Comparison:
    """Search an input on which two builds of a program differ, wherever either is loaded."""
    start = time.monotonic()
    found = Comparison(one.described.facts.program)
    _Differ(found, one, two, seed, start + seconds).run()
    found.seconds = time.monotonic() - start
    return found


class _Differ:
    def __init__(self, found: Comparison, one: Side, two: Side, seed: int, end: float) -> None:
        self._found, self._sides, self._end = found, (one, two), end
        facts = [side.described.facts for side in self._sides]
        self._translations = (Translation(*facts), Translation(*reversed(facts)))
        # a section whose size changed has its variables elsewhere, and cannot be compared as bytes
        sizes = [{m.name: m.stride for m in f.maps if m.kind == SECTION} for f in facts]
        without = {n for n in sizes[0].keys() | sizes[1] if sizes[0].get(n) != sizes[1].get(n)}
        self._seen = tuple(Seen(side.described, without) for side in self._sides)
        budget = Budget(seconds=(end - time.monotonic()) * _SEARCHES)
        self._searches = tuple(
            Search(fact, partial(self._execute, n), seed, budget) for n, fact in enumerate(facts)
        )
        self._seed = seed

    def run(self) -> None:
        """Search, and keep the smallest input on which the two differ."""
        try:
            self._search()
        except _ToldApartError as told:
            self._tell(told.given)
        self._found.reached = [
            (len(search.found.first), len(search.facts.edges())) for search in self._searches
        ]

    def _search(self) -> None:
        one, two = self._searches
        there, back = self._translations
        one.run()
        two.run([there(case.given) for case in one.kept()])
        one.keep([back(case.given) for case in two.kept()])
        Deepening(one, self._seed).run(self._end)

    def _execute(self, number: int, inputs: Sequence[Input]) -> list[Outcome]:
        """Run inputs of one build on both; return what that build did.

        Raises:
            _ToldApartError: the other does something else, time and again.
        """
        translate, others = self._translations[number], 1 - number
        mine = self._sides[number].begin(inputs)
        theirs = self._sides[others].begin([translate(given) for given in inputs])
        found, suspects = [], []
        for given, here, there in zip(inputs, mine, theirs, strict=True):
            self._found.runs += len(given.steps)
            # an answer that the other build cannot be given makes another input of it
            alike = translate.carries(given)
            if alike and self._seen[number].of(here) != self._seen[others].of(there):
                suspects.append(given)
            found.append(here)
        for given in suspects:
            # a second time, for what chance alone would do
            old = given if number == 0 else translate(given)
            if self._differences(old):
                raise _ToldApartError(old)
        return found

    def _differences(self, given: Input) -> list[str]:
        """Return how the builds differ on an input of the old one, in words; run each twice."""
        outcomes = [
            self._sides[0].execute([given] * 2),
            self._sides[1].execute([self._translations[0](given)] * 2),
        ]
        told = [
            [seen.told(one) for one in both]
            for seen, both in zip(self._seen, outcomes, strict=True)
        ]
        if any(both[0] != both[1] for both in told):
            return []
        here, there = told[0][0], told[1][0]
        return [
            f"{what}: {here.get(what, 'nothing')} before, {there.get(what, 'nothing')} now"
            for what in sorted(here.keys() | there.keys())
            if here.get(what) != there.get(what)
        ]

    def _tell(self, given: Input) -> None:
        old, described = self._sides[0], self._sides[0].described
        search = Search(described.facts, old.execute)
        minimiser = Minimiser(
            search,
            lambda number, part, offset: described.roles.get((number, part, offset), ""),
            lambda offset: described.context_roles.get(offset, ""),
        )

        def differs(other: Case) -> bool:
            return bool(self._differences(other.given))

        (case,) = search.cases_of([given])
        smallest = minimiser.smallest_that(case, differs).given
        self._found.given = smallest
        self._found.differences = self._differences(smallest)
        self._found.test = old.body(smallest)


class _ToldApartError(Exception):
    """An input, of the old build, on which the two differ."""

    def __init__(self, given: Input) -> None:
        super().__init__()
        self.given = given
