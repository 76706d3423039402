"""The search: from what runs compared, asked for and were told, to inputs that take other edges.

In order of what it costs: a lookup that missed is answered with the very key that was asked for; a
helper that succeeded is made to fail; a word of the input is changed to see which comparisons it
reaches, then bit by bit how, and the comparison is solved; then a second run on what the first one
left; then comparisons that are decided already are turned on the way to one that is not.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Iterable, Iterator, Sequence

from bpfunit.errors import BpfunitError
from bpfunit.explorer.case import (
    Budget,
    Case,
    Edge,
    Execute,
    Found,
    case_of,
    cost_of,
    joined,
    missed,
    moved,
)
from bpfunit.explorer.cells import Cells
from bpfunit.explorer.facts import (
    ANSWERED,
    BRANCH,
    DELETE,
    GROUP,
    KEY,
    RESULT,
    SECTION,
    SOCKETS,
    STORAGE,
    TAIL,
    UPDATE,
    Facts,
    Site,
)
from bpfunit.explorer.influence import Influence
from bpfunit.explorer.solver import Solver
from bpfunit.explorer.wire import Input, Outcome, Step

__all__ = ["Budget", "Case", "Edge", "Found", "Search"]

_PARENTS = 6  # inputs that are tried for one edge
_PAIRED = 12  # turned comparisons that are followed for one edge
_CHANCES = 64  # rounds of changes by chance that may bring nothing


class Search:
    """One search.

    Args:
        facts: the program.
        execute: runs inputs.
        seed: of all that is chosen by chance.
        budget: when to end.
    """

    def __init__(
        self, facts: Facts, execute: Execute, seed: int = 0, budget: Budget | None = None
    ) -> None:
        self.facts, self._execute = facts, execute
        self._sites = facts.sites
        self._rng = random.Random(seed)
        self.budget = budget or Budget()
        self.found = Found()
        self.cells = Cells(facts)
        self._solver = Solver(facts, self.cells, Influence(facts.sites, self.cells, self._probe))
        self._alive = facts.edges()
        self._seen: set[Input] = set()
        self._paths: set[int] = set()
        self._pending: list[Case] = []  # kept and not yet expanded
        self._near: dict[int, list[Case]] = {}  # cases that reach a site, by site
        self._tried: set[tuple[Input, int, Edge]] = set()
        self._start = 0.0
        self._refused = -1  # the errno of all runs so far, 0 once one was not refused

    # -- the whole

    def run(self, known: Iterable[Input] = ()) -> Found:
        """Search until every edge is taken, nothing is left to try, or the budget is used.

        Args:
            known: inputs to begin with, for example a corpus of an earlier search.

        Raises:
            BpfunitError: the kernel refused every run, so that nothing was seen of the program.
        """
        self._start = time.monotonic()
        self._run([*known, *self._beginnings()])
        stages = (self._solve_targets, self._second_runs, self._turn_pairs, self._by_chance)
        stage = 0
        while stage < len(stages) and not self._over():
            self._expand_pending()
            before = len(self.found.first)
            stages[stage]()
            moved = len(self.found.first) > before
            stage = 0 if moved or self._pending else stage + 1
        self.found.seconds = time.monotonic() - self._start
        if self.found.runs and self._refused:
            error = errno.errorcode.get(self._refused, str(self._refused))
            raise BpfunitError(
                f"explore {self.facts.program}: the kernel refused every run of this"
                f" {self.facts.type} program, with {error}: `bpfunit run` says what it has against"
                " one"
            )
        return self.found

    def only(self, inputs: Iterable[Input]) -> Found:
        """Run these inputs and look for no others."""
        self._start = time.monotonic()
        self._run(inputs)
        self.found.seconds = time.monotonic() - self._start
        return self.found

    def kept(self) -> list[Case]:
        """Return every case that was kept, for an edge or for its path, each once."""
        found = {case.given: case for cases in self._near.values() for case in cases}
        return list(found.values())

    def keep(self, inputs: Sequence[Input]) -> None:
        """Run inputs that are of use to whoever asks for :meth:`kept`."""
        for case in self.cases_of(inputs):
            if case.path not in self._paths:
                self._keep(case)

    def targets(self) -> list[Edge]:
        """Return the edges that are not taken yet."""
        return [edge for edge in self._alive if edge not in self.found.first]

    def compared(self) -> dict[int, list[tuple[int, int]]]:
        """Return what the jumps compared whose edges were not all taken, by site."""
        seen: dict[int, list[tuple[int, int]]] = {}
        for number, _ in self.targets():
            for case in self._near.get(number, ()):
                for record in case.records:
                    pair = self._sites[number].operands(record[1], record[2])
                    if record[0] == number and pair not in seen.setdefault(number, []):
                        seen[number].append(pair)
        return seen

    def _over(self) -> bool:
        spent = self.found
        return (
            len(spent.first) >= len(self._alive)
            or time.monotonic() - self._start > self.budget.seconds
            or spent.runs >= self.budget.runs
            or spent.instructions >= self.budget.instructions
        )

    def _beginnings(self) -> list[Input]:
        if self.facts.pairs:
            pairs = self.facts.pairs
            painted = [(self._painted(ctx), data) for ctx, data in pairs]
            return [Input((Step(ctx, data),)) for ctx, data in (*pairs, *painted)]
        packets = self.facts.packets or [b""]
        return [Input((Step(ctx, data),)) for ctx in self.facts.contexts for data in packets] + [
            Input((Step(self._painted(ctx), data),))
            for ctx in self.facts.contexts
            for data in packets[:1]
        ]

    def _painted(self, ctx: bytes) -> bytes:
        """Return a context whose words are distinct and not zero, so that they can be told."""
        painted = bytearray(ctx)
        for offset, width in self.facts.words:
            painted[offset : offset + width] = self._paint(width)
        return bytes(painted)

    def _paint(self, size: int) -> bytes:
        """Return bytes of which each is distinct from its neighbours and none is zero."""
        return bytes(self._rng.randrange(1, 0x7F) for _ in range(size))

    # -- running

    def _run(self, inputs: Iterable[Input], *, again: bool = False) -> list[Case]:
        """Run inputs, unless ``again`` only new ones; keep those that take a new edge."""
        fresh: list[Input] = []
        for one in inputs:
            if (again or one not in self._seen) and len(fresh) < 4096:
                self._seen.add(one)
                fresh.append(one)
        cases = []
        for start in range(0, len(fresh), 256):
            if self._over():
                break
            piece = fresh[start : start + 256]
            for given, outcome in zip(piece, self._execute(piece), strict=True):
                case = self._counted(given, outcome)
                cases.append(case)
                self._note(case)
        return cases

    def cases_of(self, inputs: Sequence[Input]) -> list[Case]:
        """Run inputs and return them as cases; nothing of it counts for the search."""
        outcomes = self._execute(inputs)
        return [case_of(self._sites, one, out) for one, out in zip(inputs, outcomes, strict=True)]

    def _counted(self, given: Input, outcome: Outcome) -> Case:
        case = case_of(self._sites, given, outcome)
        self.found.runs += len(given.steps)
        self.found.instructions += cost_of(self._sites, case)
        if self._refused:
            errors = [step.errno for step in outcome.steps]
            self._refused = 0 if 0 in errors else errors[0]
        return case

    def _note(self, case: Case) -> None:
        found = self.found
        new = [edge for edge in case.edges if edge not in found.first]
        if new:
            for edge in new:
                found.first[edge] = case
            found.cases.append(case)
            found.progress.append((time.monotonic() - self._start, len(found.first)))
            self._keep(case)

    def _keep(self, case: Case) -> None:
        self._pending.append(case)
        self._paths.add(case.path)
        for number in {record[0] for record in case.records}:
            self._near.setdefault(number, []).append(case)

    # -- answers to lookups, failures of helpers

    def _expand_pending(self) -> None:
        while self._pending and not self._over():
            batch, self._pending = self._pending, []
            self._run([one for case in batch for one in self._expansions(case)])

    def _expansions(self, case: Case) -> Iterator[Input]:
        """Yield the input with one of its lookups, calls or entries the other way."""
        given = case.given
        present = {(number, key) for number, key, _ in given.entries}
        for index, (number, a, _b, key) in enumerate(case.records):
            site = self._sites[number]
            if site.kind == KEY and site.map >= 0:
                absent = site.helper == UPDATE and (site.map, key) not in present
                if absent or missed(self._sites, case, index):
                    yield from self._answers(given, site, key)
            elif site.kind == RESULT and site.slot >= 0:
                stub = self.facts.stubs[site.slot]
                if not stub.always and site.slot not in dict(given.stubs):
                    yield given.with_stub(site.slot, stub.value)
                    if site.helper in ANSWERED and a:
                        yield given.with_stub(site.slot, 0)
            elif site.kind == TAIL and site.map >= 0:
                slot = (case.records[index][1] & 0xFFFFFFFF).to_bytes(4, self.facts.order)
                yield given.with_entry(site.map, slot, bytes(4))
        yield from self._other_sockets(given)
        for number, key, _ in given.entries:
            if self.facts.maps[number].kind != SECTION:
                yield given.with_entry(number, key, None)
        for failed, _ in given.stubs:
            if not self.facts.stubs[failed].always:
                yield given.with_stub(failed, None)
        for number, one in enumerate(self.facts.maps):
            if one.kind == STORAGE and not any(m == number for m, _, _ in given.entries):
                for value in (bytes(one.stride), self._paint(one.stride)):
                    yield given.with_entry(number, bytes(one.key_size), value)

    def _other_sockets(self, given: Input) -> Iterator[Input]:
        """Yield the input with contexts of another kind of socket, all else the same."""
        for context in self.facts.contexts if given.steps[0].ctx else ():
            steps = []
            for step in given.steps:
                changed = bytearray(context)
                for offset, width in self.facts.words:
                    changed[offset : offset + width] = step.ctx[offset : offset + width]
                steps.append(step._replace(ctx=bytes(changed)))
            yield given._replace(steps=tuple(steps))

    def _answers(self, given: Input, site: Site, key: bytes) -> Iterator[Input]:
        one = self.facts.maps[site.map]
        if one.kind in (SOCKETS, GROUP):
            yield given.with_entry(site.map, key, bytes(one.stride))
        if one.kind != DELETE or len(key) != one.key_size:
            return
        for value in (self._paint(one.value_size), bytes(one.value_size), b"\1\0\0\0" * 2048):
            yield given.with_entry(site.map, key, self.cells.value(site.map, value))

    def _probe(self, inputs: Sequence[Input]) -> list[Case]:
        """Run inputs to look at their records, whether or not they ran before."""
        cases = []
        for start in range(0, len(inputs), 256):
            piece = inputs[start : start + 256]
            for given, outcome in zip(piece, self._execute(piece), strict=True):
                case = self._counted(given, outcome)
                cases.append(case)
                if given not in self._seen:
                    self._seen.add(given)
                    self._note(case)
        return cases

    # -- solving one comparison

    def _solve_targets(self) -> None:
        """Try every edge that is not taken from inputs that come to its jump."""
        for attempt in range(_PARENTS):
            for edge in self.targets():
                if self._over():
                    return
                if edge in self.found.first:
                    continue
                parents = self._near.get(edge[0], ())
                if attempt < len(parents):
                    self._solve(parents[attempt], edge)
            if self._pending:
                return

    def _solve(self, case: Case, edge: Edge, *, keep_on_path: bool = False) -> list[Case]:
        """Try to have an input take an edge at a jump that it comes to."""
        found: list[Case] = []
        places = [n for n, record in enumerate(case.records) if record[0] == edge[0]]
        # the first and the last pass of a loop; those between are alike
        for index in dict.fromkeys([*places[:2], *places[-1:]]):
            if (case.given, index, edge) in self._tried and not keep_on_path:
                continue
            self._tried.add((case.given, index, edge))
            for candidates in self._solver.candidates(case, index, edge[1]):
                if keep_on_path:
                    candidates = candidates[:3]
                cases = self._run(candidates, again=keep_on_path)
                cases += self._rekeyed(case, cases, again=keep_on_path)
                found += cases
                if edge in self.found.first and not keep_on_path:
                    return found
                if keep_on_path and candidates:
                    break
        return found

    def _rekeyed(self, case: Case, others: Sequence[Case], *, again: bool) -> list[Case]:
        """Give inputs that ask for another key, and lost an entry by it, that entry again."""
        found: list[Case] = []
        for _ in range(3):
            inputs = [moved(self._sites, case, other) for other in others]
            others = self._run([one for one in inputs if one is not None], again=again)
            found += others
            if not others:
                break
        return found

    # -- when comparisons alone do not do

    def _second_runs(self) -> None:
        """Run inputs twice, and one after another, on what the first run left."""
        cases = self.found.cases
        self._run([one.given._replace(steps=one.given.steps * 2) for one in cases[:400]])
        if self._over() or self._pending:
            return
        shapes: dict[frozenset[Edge], Case] = {}
        for case in sorted(cases, key=lambda one: -len(one.records)):
            shapes.setdefault(case.edges, case)
        chosen = list(shapes.values())[:16]
        self._run(
            [joined(one.given, two.given) for one in chosen for two in chosen if one is not two]
        )

    def _turn_pairs(self) -> None:
        """Turn decided comparisons on the way to a jump, and try the jump again from there."""
        for edge in self.targets():
            ways = list(self._near.get(edge[0], ()))[:3]
            ways += self._from_elsewhere(ways, edge)
            for case in ways:
                if edge in self.found.first or self._over():
                    break
                ways += self._other_ways(case, edge)[: _PAIRED - len(ways)]

    def _from_elsewhere(self, ways: Sequence[Case], edge: Edge) -> list[Case]:
        """Send cases that went another way just before a jump to it, having tried it there."""
        found: list[Case] = []
        for case in ways[:1]:
            place = next(n for n, one in enumerate(case.records) if one[0] == edge[0])
            before = [r for r in case.records[:place] if self._sites[r[0]].kind == BRANCH]
            for number, a, b, _ in reversed(before[-3:]):
                site = self._sites[number]
                last = (number, site.taken(*site.operands(a, b)))
                others = [one for one in self._near.get(number, ()) if last not in one.edges]
                for other in others[:_PAIRED]:
                    # what the one did that the other did not: one of it makes the difference
                    sites = {record[0] for record in other.records}
                    for wanted in sorted(case.edges - other.edges):
                        if edge in self.found.first or self._over():
                            return found
                        if wanted[0] in sites:
                            for way in self._solve(other, wanted, keep_on_path=True):
                                found += self._arrived(way, edge)
        return found

    def _arrived(self, case: Case, edge: Edge) -> list[Case]:
        """Keep a case that comes to a jump by a new path, and try the jump from there."""
        reaches = any(record[0] == edge[0] for record in case.records)
        if not reaches or case.path in self._paths:
            return []
        self._keep(case)
        self._solve(case, edge)
        return [case]

    def _other_ways(self, case: Case, edge: Edge) -> list[Case]:
        """Return cases that come to the jump of an edge by other paths, having tried it there."""
        found: list[Case] = []
        place = next(n for n, one in enumerate(case.records) if one[0] == edge[0])
        earlier = dict.fromkeys(
            number for number, _, _, _ in case.records[:place] if self._sites[number].kind == BRANCH
        )
        for number in earlier:
            if edge in self.found.first or self._over():
                break
            turned = (number, (number, True) not in case.edges)
            for other in self._solve(case, turned, keep_on_path=True):
                found += self._arrived(other, edge)
        return found

    def _by_chance(self) -> None:
        """Change several cells of inputs that come to a jump, for as long as the budget lasts."""
        values = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
        for _ in range(_CHANCES):
            if self._over() or self._pending:
                return
            batch = []
            for edge in self.targets():
                for case in self._near.get(edge[0], ())[:8]:
                    given = case.given
                    cells = self.cells.of(case)
                    for _ in range(self._rng.randint(1, 4)):
                        if not cells:
                            break
                        cell = self._rng.choice(cells)
                        value = self._rng.choice((*values, self._rng.getrandbits(32)))
                        given = self.cells.written(given, cell, value)
                    batch.append(given)
            self._run(batch)
