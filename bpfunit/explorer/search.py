"""The search: from what runs compared, asked for and were told, to inputs that take other edges.

In order of what it costs: a lookup that missed is answered with the very key that was asked for; a
helper that succeeded is made to fail; a word of the input is changed to see which comparisons it
reaches, then bit by bit how, and the comparison is solved; then a second run on what the first one
left; then comparisons that are decided already are turned on the way to one that is not.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bpfunit.explorer.facts import (
    ARRAY,
    BRANCH,
    DELETE,
    DELETES,
    KEY,
    LOOKUPS,
    PROGRAMS,
    RESULT,
    SECTION,
    STORAGE,
    TAIL,
    Facts,
    Site,
)
from bpfunit.explorer.wire import Input, Outcome, Record, Step

Edge = tuple[int, bool]
Execute = Callable[[Sequence[Input]], list[Outcome]]

_POINTERS = 0xFFFF_0000_0000_0000  # kernel addresses lie above
_PARENTS = 6  # inputs that are tried for one edge
_PAIRED = 12  # turned comparisons that are followed for one edge
_CHANCES = 64  # rounds of changes by chance that may bring nothing
_MAX_PACKET = 1500
_MIN_PACKET = 14


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


class Cell(NamedTuple):
    """A part of an input that can be changed.

    ``kind`` is "ctx", "data", "value" or "stub"; ``where`` the step, the (map, key) or the slot.
    """

    kind: str
    where: int | tuple[int, bytes]
    offset: int
    width: int


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
        self._alive = facts.edges()
        self._seen: set[Input] = set()
        self._paths: set[int] = set()
        self._pending: list[Case] = []  # kept and not yet expanded
        self._near: dict[int, list[Case]] = {}  # cases that reach a site, by site
        self._influences: dict[Input, dict[int, list[Cell]]] = {}
        self._bits: dict[tuple[Input, Cell], list[tuple[int, dict[int, tuple[int, int]]]]] = {}
        self._tried: set[tuple[Input, int, Edge]] = set()
        self._start = 0.0

    # -- the whole

    def run(self, known: Iterable[Input] = ()) -> Found:
        """Search until every edge is taken, nothing is left to try, or the budget is used.

        Args:
            known: inputs to begin with, for example a corpus of an earlier search.
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
        return self.found

    def kept(self) -> list[Case]:
        """Return every case that was kept, for an edge or for its path, each once."""
        found = {case.given: case for cases in self._near.values() for case in cases}
        return list(found.values())

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
                case = self.case_of(given, outcome)
                cases.append(case)
                self._note(case)
        return cases

    def cases_of(self, inputs: Sequence[Input]) -> list[Case]:
        """Run inputs and return them as cases; nothing of it counts for the search."""
        outcomes = self._execute(inputs)
        return [self.case_of(one, out) for one, out in zip(inputs, outcomes, strict=True)]

    def case_of(self, given: Input, outcome: Outcome) -> Case:
        """Return an input and what it did as a case."""
        records = [record for step in outcome.steps for record in step.records]
        sites, edges, order, cost = self._sites, set(), [], 0
        for number, a, b, _ in records:
            site = sites[number]
            if site.kind == BRANCH:
                edge = (number, site.taken(*site.operands(a, b)))
                edges.add(edge)
                order.append(edge)
                cost += site.cost
        self.found.runs += len(given.steps)
        self.found.instructions += cost
        return Case(given, outcome, records, frozenset(edges), hash(tuple(order)))

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
        for index, (number, _a, _b, key) in enumerate(case.records):
            site = self._sites[number]
            if site.kind == KEY and site.map >= 0:
                if self._missed(case, index):
                    yield from self._answers(given, site, key)
            elif site.kind == RESULT and site.slot >= 0:
                stub = self.facts.stubs[site.slot]
                if not stub.always and site.slot not in dict(given.stubs):
                    yield given.with_stub(site.slot, stub.value)
            elif site.kind == TAIL and site.map >= 0:
                slot = (case.records[index][1] & 0xFFFFFFFF).to_bytes(4, "little")
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
        for context in self.facts.contexts[1:] if given.steps[0].ctx else ():
            steps = []
            for step in given.steps:
                changed = bytearray(context)
                for offset, width in self.facts.words:
                    changed[offset : offset + width] = step.ctx[offset : offset + width]
                steps.append(step._replace(ctx=bytes(changed)))
            yield given._replace(steps=tuple(steps))

    def _answers(self, given: Input, site: Site, key: bytes) -> Iterator[Input]:
        one = self.facts.maps[site.map]
        if one.kind != DELETE or len(key) != one.key_size:
            return
        for value in (self._paint(one.value_size), bytes(one.value_size), b"\1\0\0\0" * 2048):
            yield given.with_entry(site.map, key, self._value(site.map, value))

    def _value(self, number: int, value: bytes) -> bytes:
        """Return a value as the system call takes it: on each CPU the same."""
        one = self.facts.maps[number]
        value = value[: one.value_size].ljust(one.value_size, b"\0")
        if one.stride == one.value_size:
            return value
        each = (one.value_size + 7) // 8 * 8
        return value.ljust(each, b"\0") * (one.stride // each)

    def _missed(self, case: Case, index: int) -> bool:
        """Return whether the call with this key found no entry: NULL of a lookup, an errno else."""
        result, helper = self._result_of(case, index), self._sites[case.records[index][0]].helper
        if result is None:
            return False
        return result == 0 if helper in LOOKUPS else helper == DELETES and result != 0

    def _result_of(self, case: Case, index: int) -> int | None:
        """Return what the call answered whose key is the record at ``index``."""
        insn = self._sites[case.records[index][0]].insn
        for number, a, _, _ in case.records[index + 1 : index + 3]:
            site = self._sites[number]
            if site.kind == RESULT and site.insn == insn:
                return a
        return None

    # -- changing cells

    def _cells(self, case: Case) -> list[Cell]:
        """Return the parts of an input that can be changed."""
        cells: list[Cell] = []
        given = case.given
        for n, step in enumerate(given.steps):
            if step.ctx:
                cells += [Cell("ctx", n, offset, width) for offset, width in self.facts.words]
            for offset in range(0, len(step.data), 4):
                cells.append(Cell("data", n, offset, min(4, len(step.data) - offset)))
        for number, key, _ in given.entries:
            one = self.facts.maps[number]
            if one.kind == PROGRAMS:
                continue
            for offset in range(0, min(one.value_size, 1024), 4):
                width = min(4, one.value_size - offset)
                cells.append(Cell("value", (number, key), offset, width))
        present = {(m, k) for m, k, _ in given.entries}
        for number, one in enumerate(self.facts.maps):
            if one.kind == SECTION and (number, bytes(4)) not in present:
                cells += [
                    Cell("value", (number, bytes(4)), offset, min(4, one.value_size - offset))
                    for offset in range(0, min(one.value_size, 1024), 4)
                ]
        asked = set()
        for passed, _, _, key in case.records:
            site = self._sites[passed]
            if site.kind == RESULT and site.slot >= 0 and self.facts.stubs[site.slot].always:
                asked.add(site.slot)
            elif site.kind == KEY and site.map >= 0 and self.facts.maps[site.map].kind == ARRAY:
                one = self.facts.maps[site.map]
                if (site.map, key) not in present and len(key) == one.key_size:
                    present.add((site.map, key))
                    cells += [
                        Cell("value", (site.map, key), offset, min(4, one.value_size - offset))
                        for offset in range(0, min(one.value_size, 512), 4)
                    ]
        cells += [Cell("stub", slot, 0, 8) for slot in sorted(asked)]
        return cells

    def variants(self, case: Case, chance: random.Random) -> Iterator[Input]:
        """Yield the input with each of its cells changed: by a bit pattern, to 0, by one."""
        for cell in self._cells(case):
            value = self._read(case.given, cell)
            pattern = chance.getrandbits(8 * cell.width)
            for other in (value ^ pattern, 0, value + 1):
                if other != value:
                    yield self._written(case.given, cell, other)

    def changed_by_chance(self, case: Case, chance: random.Random) -> Input:
        """Return the input with some of its cells changed."""
        given, cells = case.given, self._cells(case)
        for _ in range(chance.randint(2, 6)) if cells else ():
            cell = chance.choice(cells)
            others = (0, 1, 2, chance.getrandbits(32), self._read(given, chance.choice(cells)))
            given = self._written(given, cell, chance.choice(others))
        return given

    def painted(self, case: Case) -> Input:
        """Return the input with a number in each of its cells that is zero."""
        given = case.given
        for cell in self._cells(case):
            if cell.kind in ("value", "ctx") and not self._read(given, cell):
                raw = int.from_bytes(self._paint(cell.width), "little")
                other = self._written(given, cell, raw)
                (run,) = self.cases_of([other])
                if run.path == case.path:
                    given = other
        return given

    def _read(self, given: Input, cell: Cell) -> int:
        return int.from_bytes(self._bytes_of(given, cell), "little")

    def _bytes_of(self, given: Input, cell: Cell) -> bytes:
        end = cell.offset + cell.width
        if cell.kind == "stub":
            assert isinstance(cell.where, int)
            answers = dict(given.stubs)
            answer = answers.get(cell.where, self.facts.stubs[cell.where].value)
            return answer.to_bytes(8, "little")
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
        one = self.facts.maps[cell.where[0]]
        return one.initial or bytes(one.stride)

    def _written(self, given: Input, cell: Cell, value: int) -> Input:
        """Return the input with another number in a cell, little-endian."""
        raw = (value & (1 << 8 * cell.width) - 1).to_bytes(cell.width, "little")
        if cell.kind == "stub":
            assert isinstance(cell.where, int)
            return given.with_stub(cell.where, value)
        if cell.kind == "value":
            assert isinstance(cell.where, tuple)
            number, key = cell.where
            whole = bytearray(self._entry(given, cell))
            whole[cell.offset : cell.offset + cell.width] = raw
            return given.with_entry(number, key, self._value(number, bytes(whole)))
        assert isinstance(cell.where, int)
        step = given.steps[cell.where]
        whole = bytearray(step.ctx if cell.kind == "ctx" else step.data)
        whole[cell.offset : cell.offset + cell.width] = raw
        changed = step._replace(**{cell.kind: bytes(whole)})
        return given.with_step(cell.where, changed)

    # -- which cells a comparison depends on, and how

    def _influence(self, case: Case) -> dict[int, list[Cell]]:
        """Return the cells that change the operands of a record, by the record's place."""
        known = self._influences.get(case.given)
        if known is not None:
            return known
        found: dict[int, list[Cell]] = {}
        cells = self._cells(case)
        changed = [
            self._written(case.given, cell, self._read(case.given, cell) ^ 0xA5C3_961D_5AB7_694F)
            for cell in cells
        ]
        for cell, other in zip(cells, self._probe(changed), strict=False):
            for index in self._differences(case, other):
                found.setdefault(index, []).append(cell)
        self._influences[case.given] = found
        return found

    def _probe(self, inputs: Sequence[Input]) -> list[Case]:
        """Run inputs to look at their records, whether or not they ran before."""
        cases = []
        for start in range(0, len(inputs), 256):
            piece = inputs[start : start + 256]
            for given, outcome in zip(piece, self._execute(piece), strict=True):
                case = self.case_of(given, outcome)
                cases.append(case)
                if given not in self._seen:
                    self._seen.add(given)
                    self._note(case)
        return cases

    def _differences(self, case: Case, other: Case) -> dict[int, tuple[int, int]]:
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
            if old != new and old[1] < _POINTERS and sites[old[0]].kind == BRANCH:
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
            if matched and a < _POINTERS and sites[number].kind == BRANCH:
                operands = sites[number].operands(*matched)
                if operands != sites[number].operands(a, b):
                    found[place] = operands
        return found

    def _flips(self, case: Case, cell: Cell) -> list[tuple[int, dict[int, tuple[int, int]]]]:
        """Return, for each bit of a cell, the operands that flipping it changes."""
        place = (case.given, cell)
        known = self._bits.get(place)
        if known is None:
            value = self._read(case.given, cell)
            bits = range(8 * cell.width)
            inputs = [self._written(case.given, cell, value ^ 1 << bit) for bit in bits]
            others = self._probe(inputs)
            known = [
                (bit, self._differences(case, other))
                for bit, other in zip(bits, others, strict=False)
            ]
            self._bits[place] = known
        return known

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
            for candidates in self._candidates(case, index, edge[1]):
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

    def _candidates(self, case: Case, index: int, wanted: bool) -> Iterator[list[Input]]:
        """Yield batches of inputs that may send the jump of a record the other way."""
        number, raw_a, raw_b, _ = case.records[index]
        site = self._sites[number]
        a, b = site.operands(raw_a, raw_b)
        if raw_a >= _POINTERS:
            yield list(self._without_pointer(case, index))
            yield list(self._resized(case, raw_a, raw_b))
        cells = self._influence(case).get(index, [])
        flips: list[tuple[Cell, int, int, int]] = []
        for cell in cells[:24]:
            for bit, differences in self._flips(case, cell):
                if index in differences:
                    changed = differences[index]
                    flips.append((cell, bit, changed[0] ^ a, changed[1] ^ b))
        goals = list(_goals(site, a, b, wanted))
        solved = [
            self._flipped(case.given, chosen)
            for goal in goals
            if (chosen := _solve_bits(flips, goal[0] ^ a | (goal[1] ^ b) << 64)) is not None
        ]
        yield solved
        yield list(self._direct(case, cells, a, b, goals))

    def _flipped(self, given: Input, chosen: Iterable[tuple[Cell, int]]) -> Input:
        for cell, bit in chosen:
            given = self._written(given, cell, self._read(given, cell) ^ 1 << bit)
        return given

    def _direct(
        self, case: Case, cells: Sequence[Cell], a: int, b: int, goals: Sequence[tuple[int, int]]
    ) -> Iterator[Input]:
        """Yield inputs with the wanted operand itself written, or the difference added."""
        for cell in cells[:12]:
            value, width = self._read(case.given, cell), cell.width
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
                        yield self._written(case.given, cell, number)

    def _without_pointer(self, case: Case, index: int) -> Iterator[Input]:
        """Yield inputs for which a lookup or call in front of a record finds nothing."""
        for number, key, _ in case.given.entries:
            yield case.given.with_entry(number, key, None)
        for record, _, _, _ in case.records[max(0, index - 2) : index]:
            slot = self._sites[record].slot
            if slot >= 0:
                yield case.given.with_stub(slot, self.facts.stubs[slot].value)

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

    def _rekeyed(self, case: Case, others: Sequence[Case], *, again: bool) -> list[Case]:
        """Give inputs that ask for another key, and lost an entry by it, that entry again."""
        found: list[Case] = []
        for _ in range(3):
            moved = [one for other in others if (one := self.moved(case, other)) is not None]
            others = self._run(moved, again=again)
            found += others
            if not others:
                break
        return found

    def moved(self, case: Case, other: Case) -> Input | None:
        """Return the other input with the entry that it misses under the key it asks for."""
        found = {
            self._sites[record[0]].map: record[3]
            for index, record in enumerate(case.records)
            if self._sites[record[0]].kind == KEY and not self._missed(case, index)
        }
        entries = {(number, key): value for number, key, value in case.given.entries}
        for index, record in enumerate(other.records):
            site = self._sites[record[0]]
            if site.kind == KEY and self._missed(other, index):
                value = entries.get((site.map, found.get(site.map, b"")))
                if value is None or found[site.map] == record[3]:
                    return None
                return other.given.with_entry(site.map, record[3], value)
        return None

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
                    cells = self._cells(case)
                    for _ in range(self._rng.randint(1, 4)):
                        if not cells:
                            break
                        cell = self._rng.choice(cells)
                        value = self._rng.choice((*values, self._rng.getrandbits(32)))
                        given = self._written(given, cell, value)
                    batch.append(given)
            self._run(batch)


def _goals(site: Site, a: int, b: int, wanted: bool) -> Iterator[tuple[int, int]]:
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


def _solve_bits(
    flips: Sequence[tuple[Cell, int, int, int]], difference: int
) -> list[tuple[Cell, int]] | None:
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


def joined(one: Input, two: Input) -> Input:
    """Return the steps of two inputs in a row, from what both have in their maps."""
    entries = {(m, k): v for m, k, v in two.entries} | {(m, k): v for m, k, v in one.entries}
    stubs = dict(two.stubs) | dict(one.stubs)
    return Input(
        (*one.steps, *two.steps),
        tuple(sorted((m, k, v) for (m, k), v in entries.items())),
        tuple(sorted(stubs.items())),
    )
