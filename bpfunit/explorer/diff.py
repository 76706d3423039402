"""Whether two builds of a program differ: inputs found for either, run on both.

What a search finds for the one is run on the other as well, both ways round; then variants of those
inputs: each part changed, distinct numbers in place of zeroes, two runs in a row, several changes
by chance. What is compared is what a caller can see: verdict, context, packet, log, maps, storage
and the tail calls that were entered.
"""

from __future__ import annotations

import ctypes
import os
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpfunit._sys import libbpf
from bpfunit.explorer.executor import Executor
from bpfunit.explorer.facts import RESULT, SECTION, TAIL, TAIL_CALL, Facts
from bpfunit.explorer.result import Exploration
from bpfunit.explorer.search import Budget, Case, Search, joined
from bpfunit.explorer.wire import Input, Outcome
from bpfunit.explorer.write import Writer
from bpfunit.objects.globals import data_sections
from bpfunit.objects.object import load
from bpfunit.rewrite import ambient

_BATCH = 192
_PAIRED = 14  # cases of which each pair is run in a row


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
        runs: how often either program ran.
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
    """Search an input on which two builds of a program differ.

    Args:
        old, new: the objects.
        program: the program's name in both.
        seed: of what is chosen by chance.
        seconds: how long to search.
        options: for :func:`bpfunit.load`.

    Raises:
        BpfunitError: one of them cannot be loaded or explored.
    """
    found = Comparison(program)
    start = time.monotonic()
    options = dict(options or {})
    if _code(old, program, options) == _code(new, program, options):
        found.same_code = True
        return found
    with Executor(old, program, options) as one, Executor(new, program, options) as two:
        _Differ(found, one, two, seed, seconds).run()
    found.seconds = time.monotonic() - start
    return found


def _code(path: str | os.PathLike[str], program: str, options: Mapping[str, Any]) -> Any:
    """Return what decides how a program behaves: its instructions, and the data it begins with."""
    taken: list[bytes] = []

    class Reader:
        def rewrite(self, code: Any) -> None:
            if code.name == program:
                taken.append(_without_descriptors(code))

        def loaded(self, unreached: Any) -> None:
            """Nothing is refused."""

    with ambient.none(), load(path, instrument=[Reader()], programs=[program], **options) as obj:
        data = {name: _beginning(handle) for name, handle in data_sections(obj._handle)}
    return taken, data


def _beginning(handle: int) -> bytes:
    size = ctypes.c_size_t()
    base = libbpf.lib().bpf_map__initial_value(handle, ctypes.byref(size))
    return ctypes.string_at(base, size.value) if base else b""


class _Differ:
    def __init__(
        self, found: Comparison, one: Executor, two: Executor, seed: int, seconds: float
    ) -> None:
        self._found, self._one, self._two = found, one, two
        self._there = _Translation(one.facts, two.facts)
        self._back = _Translation(two.facts, one.facts)
        self._end = time.monotonic() + seconds
        budget = Budget(seconds=seconds / 3)
        self._search = Search(one.facts, one.execute, seed, budget)
        self._other = Search(two.facts, two.execute, seed, budget)
        self._chance = random.Random(seed)
        # a section whose size changed has its variables elsewhere, and cannot be compared as bytes
        sizes = [{m.name: m.stride for m in e.facts.maps if m.kind == SECTION} for e in (one, two)]
        self._moved = {
            name for name in sizes[0].keys() | sizes[1] if sizes[0].get(name) != sizes[1].get(name)
        }
        self._seen: set[Input] = set()

    def run(self) -> None:
        """Search, and keep the smallest input on which the two differ."""
        self._search.run()
        known = [self._there(case.given) for case in self._search.kept()]
        self._other.run(known)
        for search in (self._search, self._other):
            found = search.found
            self._found.reached.append((len(found.first), len(search.facts.edges())))
        difference = self._first_difference()
        if difference is not None:
            self._tell(difference)
        self._found.runs = self._search.found.runs + self._other.found.runs

    def _first_difference(self) -> Case | None:
        batch: list[Input] = []
        for given in self._inputs():
            if given in self._seen:
                continue
            self._seen.add(given)
            batch.append(given)
            if len(batch) == _BATCH:
                if (case := self._differing(batch)) is not None:
                    return case
                batch = []
                if time.monotonic() > self._end:
                    return None
        return self._differing(batch)

    def _inputs(self) -> Iterator[Input]:
        cases = self._search.kept()
        yield from (case.given for case in cases)
        others = [self._back(case.given) for case in self._other.kept()]
        yield from others
        cases += [one for one in self._search.cases_of(others) if one.path]
        paths: dict[int, Case] = {}
        for case in cases:
            paths.setdefault(case.path, case)
        cases = list(paths.values())
        for case in cases:
            yield self._search.painted(case)
        for case in cases:
            yield case.given._replace(steps=case.given.steps * 2)
        for case in cases:
            yield from self._search.variants(case, self._chance)
        longest = sorted(cases, key=lambda one: -len(one.records))[:_PAIRED]
        shortest = cases[:_PAIRED]
        for first in (*shortest, *longest):
            for second in longest:
                yield joined(first.given, second.given)
                yield joined(second.given, first.given)
        while time.monotonic() < self._end:
            for case in cases:
                yield self._search.changed_by_chance(case, self._chance)

    def _differing(self, batch: Sequence[Input]) -> Case | None:
        if not batch:
            return None
        cases = self._search.cases_of(batch)
        there = self._two.execute([self._there(given) for given in batch])
        self._found.runs += len(batch)
        for case, outcome in zip(cases, there, strict=True):
            if self._told(case, outcome):
                # a second time, for what chance alone would do
                (again,) = self._search.cases_of([case.given])
                (other,) = self._two.execute([self._there(case.given)])
                if self._told(again, other) and self._told(case, outcome):
                    return case
        return None

    def _told(self, case: Case, outcome: Outcome) -> list[str]:
        here = visible(self._one, case.outcome, self._moved)
        there = visible(self._two, outcome, self._moved)
        return [
            f"{what}: {here.get(what, 'nothing')} before, {there.get(what, 'nothing')} now"
            for what in sorted(here.keys() | there.keys())
            if here.get(what) != there.get(what)
        ]

    def _tell(self, case: Case) -> None:
        found = Exploration(self._one.facts, self._search.found, 0, {})
        writer = Writer(self._one, found, self._search)

        def differs(other: Case) -> bool:
            (outcome,) = self._two.execute([self._there(other.given)])
            return bool(self._told(other, outcome))

        smallest = writer.smallest_that(case, differs)
        (outcome,) = self._two.execute([self._there(smallest.given)])
        self._found.given = smallest.given
        self._found.differences = self._told(smallest, outcome)
        self._found.test = writer.body(smallest)


class _Translation:
    """Inputs of one build as inputs of another: maps by name, stubs by helper and number."""

    def __init__(self, source: Facts, target: Facts) -> None:
        names = {one.name: n for n, one in enumerate(target.maps)}
        self._maps = {n: names.get(one.name) for n, one in enumerate(source.maps)}
        slots = {(stub.helper, stub.number): n for n, stub in enumerate(target.stubs)}
        self._slots = {n: slots.get((s.helper, s.number)) for n, s in enumerate(source.stubs)}
        self._target = target

    def __call__(self, given: Input) -> Input:
        entries = []
        for number, key, value in given.entries:
            other = self._maps[number]
            if other is None:
                continue
            one = self._target.maps[other]
            if one.key_size == len(key) and one.stride == len(value):
                entries.append((other, key, value))
        stubs = [(slot, a) for s, a in given.stubs if (slot := self._slots[s]) is not None]
        return given._replace(entries=tuple(sorted(entries)), stubs=tuple(sorted(stubs)))


def visible(executor: Executor, outcome: Outcome, without: Collection[str]) -> dict[str, str]:
    """Return what a caller can see of an outcome, by name, as text, ``without`` some sections."""
    facts = executor.facts
    found = {}
    for n, step in enumerate(outcome.steps):
        run = f"run {n + 1}, " if len(outcome.steps) > 1 else ""
        found[f"{run}errno"] = str(step.errno)
        found[f"{run}return value"] = str(step.retval)
        found[f"{run}verdict"] = str(step.verdict)
        found[f"{run}context"] = step.ctx[:60].hex(" ", 4)
        if step.data:
            found[f"{run}packet"] = step.data.hex(" ", 4)
        for ring, raw in step.log:
            name = f"{run}record in {executor.ring_names[ring]}"
            while name in found:
                name += " and another"
            found[name] = repr(raw.rstrip(b"\0"))
        found[f"{run}tail calls entered"] = ", ".join(_entered(facts, step.records)) or "none"
    for (number, key), value in outcome.entries.items():
        one = facts.maps[number]
        if one.name in without:
            continue
        found[f"{one.name}[{key.hex()}]"] = value.hex(" ", 4)
    return found


def _entered(facts: Facts, records: Sequence[Any]) -> Iterator[str]:
    for place, (number, index, _, _) in enumerate(records):
        site = facts.sites[number]
        if site.kind != TAIL:
            continue
        behind = records[place + 1] if place + 1 < len(records) else None
        came_back = behind is not None and (
            facts.sites[behind[0]].kind == RESULT and facts.sites[behind[0]].helper == TAIL_CALL
        )
        name = facts.maps[site.map].name if site.map >= 0 else "an array"
        if not came_back:
            yield f"{name}[{index & 0xFFFFFFFF}]"


def _without_descriptors(code: Any) -> bytes:
    """Return a program's instructions with map descriptors left out, which differ by load."""
    return b"".join(
        bytes((insn.code, insn.dst, insn.src))
        + insn.off.to_bytes(2, "little", signed=True)
        + (0 if insn.loads_map else insn.imm).to_bytes(4, "little", signed=True)
        for insn in code.insns
    )
