"""What a search deals in: inputs that ran, what they took, and what the whole found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bpfunit.explorer.facts import BRANCH, DELETES, KEY, LOOKUPS, RESULT, Site
from bpfunit.explorer.wire import Input, Outcome, Record

Edge = tuple[int, bool]
Execute = Callable[[Sequence[Input]], list[Outcome]]

POINTERS = 0xFFFF_0000_0000_0000  # kernel addresses lie above


@dataclass(frozen=True)
class Budget:
    """How much a search may take.

    Attributes:
        seconds: by the clock; a search that ends by it may find less on a slower machine.
        instructions: of the program, as it ran without records.
        runs: of the program.
    """

    seconds: float = 60.0
    instructions: int = 50_000_000
    runs: int = 200_000


class Case(NamedTuple):
    """An input that was run.

    Attributes:
        records: those of all its steps, in order.
        edges: the branch edges that it took.
        path: a number for the order of its edges.
    """

    given: Input
    outcome: Outcome
    records: list[Record]
    edges: frozenset[Edge]
    path: int


@dataclass
class Found:
    """What a search found.

    Attributes:
        cases: the inputs that took an edge first, in the order of finding.
        first: the case that took an edge first, by edge.
        runs, instructions, seconds: what it took.
        progress: (seconds, edges) as edges were found.
    """

    cases: list[Case] = field(default_factory=list)
    first: dict[Edge, Case] = field(default_factory=dict)
    runs: int = 0
    instructions: int = 0
    seconds: float = 0.0
    progress: list[tuple[float, int]] = field(default_factory=list)


def case_of(sites: Sequence[Site], given: Input, outcome: Outcome) -> Case:
    """Return an input and what it did as a case."""
    records = [record for step in outcome.steps for record in step.records]
    order: list[Edge] = []
    for number, a, b, _ in records:
        site = sites[number]
        if site.kind == BRANCH:
            order.append((number, site.taken(*site.operands(a, b))))
    return Case(given, outcome, records, frozenset(order), hash(tuple(order)))


def cost_of(sites: Sequence[Site], case: Case) -> int:
    """Return how many instructions of the program a case ran, without those of the records."""
    return sum(sites[record[0]].cost for record in case.records)


def missed(sites: Sequence[Site], case: Case, index: int) -> bool:
    """Return whether the call with this key found no entry: NULL of a lookup, an errno else."""
    helper = sites[case.records[index][0]].helper
    result = _result_of(sites, case, index)
    if result is None:
        return False
    return result == 0 if helper in LOOKUPS else helper == DELETES and result != 0


def _result_of(sites: Sequence[Site], case: Case, index: int) -> int | None:
    """Return what the call answered whose key is the record at ``index``."""
    insn = sites[case.records[index][0]].insn
    for number, a, _, _ in case.records[index + 1 : index + 3]:
        site = sites[number]
        if site.kind == RESULT and site.insn == insn:
            return a
    return None


def moved(sites: Sequence[Site], case: Case, other: Case) -> Input | None:
    """Return the other input with the entry that it misses under the key it asks for.

    A lookup that finds nothing in either is passed over, as one that a new entry is made for.
    """
    found = {
        sites[record[0]].map: record[3]
        for index, record in enumerate(case.records)
        if sites[record[0]].kind == KEY and not missed(sites, case, index)
    }
    entries = {(number, key): value for number, key, value in case.given.entries}
    for index, record in enumerate(other.records):
        site = sites[record[0]]
        if site.kind == KEY and missed(sites, other, index):
            value = entries.get((site.map, found.get(site.map, b"")))
            if value is None or found[site.map] == record[3]:
                continue
            return other.given.with_entry(site.map, record[3], value)
    return None


def joined(one: Input, two: Input) -> Input:
    """Return the steps of two inputs in a row, from what both have in their maps."""
    entries = {(m, k): v for m, k, v in two.entries} | {(m, k): v for m, k, v in one.entries}
    stubs = dict(two.stubs) | dict(one.stubs)
    return Input(
        (*one.steps, *two.steps),
        tuple(sorted((m, k, v) for (m, k), v in entries.items())),
        tuple(sorted(stubs.items())),
    )
