"""From jumps to what the C reader sees: branches at a place in the source, with their outcomes.

Compilers invert conditions, split one `if` into several jumps, and copy it (inlining, unrolling).
So jumps are merged by file, line and column, and an outcome is known by where it leads:

- Jumps at one place that lead to each other are one decision (a ``switch``, a 128-bit comparison);
  only edges that leave the place are outcomes.
- A copy's outcomes are those of the first with the same destination. Where a copy's destination
  differs (an inlined function returns elsewhere), it is matched by elimination, else by the sense
  of its condition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from bpfunit.coverage.counts import BlockCounts
from bpfunit.coverage.data import CoverageData, ProgramData
from bpfunit.coverage.model import Location, Model
from bpfunit.coverage.path import landing
from bpfunit.coverage.probes import Probe, ProbePoint

# Conditions that are each other's opposite: taken of the one is fall-through of the other.
_OPPOSITES = {"!=": "==", "<": ">=", "<=": ">", "s<": "s>=", "s<=": "s>"}


@dataclass
class Outcome:
    """One way that control may leave a branch.

    Attributes:
        targets: where it leads; copies of the branch may lead to different places.
        counts: how often it was taken, by kernel release; 0 where it was not.
        tests: indices of the tests that took it.
        dead_on: kernels whose verifier proved every copy of it unreachable.
        excluded: why it is not to be counted, from the exclusions file; "" if it is.
    """

    targets: list[Location | None]
    counts: dict[str, int] = field(default_factory=dict)
    tests: set[int] = field(default_factory=set)
    alive_on: set[str] = field(default_factory=set)
    sense: str = ""
    excluded: str = ""

    @property
    def count(self) -> int:
        """How often it was taken on all kernels together."""
        return sum(self.counts.values())

    @property
    def reachable(self) -> bool:
        """Whether some kernel's verifier could not rule it out, or it was taken."""
        return bool(self.alive_on) or self.count > 0

    @property
    def dead_on(self) -> list[str]:
        """The kernels whose verifier proved it unreachable."""
        return [kernel for kernel in self.counts if kernel not in self.alive_on]

    @property
    def counted(self) -> bool:
        """Whether it belongs to the total."""
        return self.reachable and not self.excluded

    def leads_to(self, home: str) -> str:
        """Return the destination as text, the file only if it is not ``home``."""
        target = self.targets[0]
        if target is None:
            return "end"
        name = target.file.rsplit("/", 1)[-1]
        return str(target.line) if target.file == home else f"{name}:{target.line}"


@dataclass
class Branch:
    """A decision at one place in the source.

    Attributes:
        at: the place.
        copies: how many decisions of loaded programs were merged into it.
        condition: the machine's condition of the first one.
    """

    at: Location
    condition: str
    outcomes: list[Outcome] = field(default_factory=list)
    copies: int = 0


class _Edge(NamedTuple):
    point: ProbePoint
    block: int


class _Decision(NamedTuple):
    """Jumps of one program at one place; the edges that leave it, by where they lead."""

    at: Location
    condition: str
    edges: dict[Location | None, list[_Edge]]
    senses: dict[Location | None, str]


def _sense(point: ProbePoint, condition: str) -> str:
    """Return the same text for edges that mean the same on either side of an inversion."""
    left, operator, right = condition.split(" ", 2) if " " in condition else (condition, "", "")
    taken = point is ProbePoint.TAKEN
    if operator in _OPPOSITES:
        operator, taken = _OPPOSITES[operator], not taken
    constant = right if not right.startswith(("r", "w")) else ""
    del left
    return f"{operator} {constant} {taken}"


def _decisions(model: Model) -> Iterator[_Decision]:
    """Yield the decisions of a program, in the order of their first jumps."""
    homes = {n: block.end for n, block in enumerate(model.blocks) if block.condition and block.end}
    group = {n: n for n in homes}

    def root(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    leaving: list[tuple[int, ProbePoint, int]] = []
    for number, at in homes.items():
        for point, target in _ways(model, number):
            block = model.blocks[target] if target >= 0 else None
            if block and homes.get(target) == at and set(block.lines) <= {at}:
                group[root(target)] = root(number)
            else:
                leaving.append((number, point, target))
    decisions: dict[int, _Decision] = {}
    for number, point, target in leaving:
        at, condition = homes[number], model.blocks[number].condition
        decision = decisions.setdefault(root(number), _Decision(at, condition, {}, {}))
        where = landing(model, target)
        decision.edges.setdefault(where, []).append(_Edge(point, number))
        decision.senses.setdefault(where, _sense(point, condition))
    yield from decisions.values()


def _ways(model: Model, number: int) -> list[tuple[ProbePoint, int]]:
    block = model.blocks[number]
    return [(ProbePoint.FALL, block.fall), (ProbePoint.TAKEN, block.taken)]


def _match(branch: Branch, decision: _Decision) -> dict[Location | None, Outcome]:
    """Return the outcome that each destination of a copy belongs to, new ones made as needed."""
    matched: dict[Location | None, Outcome] = {}
    for where in decision.edges:
        for outcome in branch.outcomes:
            if where in outcome.targets:
                matched[where] = outcome
    rest = [where for where in decision.edges if where not in matched]
    free = [o for o in branch.outcomes if not any(o is m for m in matched.values())]
    two_ways = len(decision.edges) == len(branch.outcomes) == 2
    if two_ways and len(rest) == 2:
        rest.sort(key=lambda where: decision.senses[where] != free[0].sense)
    for where in rest:
        if two_ways:
            matched[where] = outcome = free.pop(0)
            outcome.targets.append(where)
        else:
            matched[where] = Outcome([where], sense=decision.senses[where])
            branch.outcomes.append(matched[where])
    return matched


def _tally(outcome: Outcome, edges: Iterable[_Edge], data: ProgramData) -> None:
    model = data.model
    for edge in edges:
        number = model.probe_numbers[Probe(edge.point, edge.block)]
        outcome.counts[model.kernel] = outcome.counts.get(model.kernel, 0) + data.counts[number]
        outcome.tests |= data.tests[number]
        if number not in model.dead:
            outcome.alive_on.add(model.kernel)


@dataclass
class Line:
    """A source line that has code.

    Attributes:
        text: as the compiler read it.
        counts: how often its busiest block ran, by kernel; added up over programs.
        reachable: whether some verifier left a part of it standing.
    """

    number: int
    text: str
    counts: dict[str, int] = field(default_factory=dict)
    reachable: bool = False
    branches: list[Branch] = field(default_factory=list)
    excluded: str = ""

    @property
    def count(self) -> int:
        """How often it ran on all kernels together."""
        return sum(self.counts.values())

    @property
    def counted(self) -> bool:
        """Whether it belongs to the total."""
        return (self.reachable or self.count > 0) and not self.excluded


@dataclass
class Function:
    """A function that the compiler left standing: a program, a subprogram, a callback."""

    name: str
    line: int
    count: int = 0


@dataclass
class SourceFile:
    """One source file, merged over programs, tests and kernels."""

    path: str
    lines: dict[int, Line] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)

    @property
    def branches(self) -> list[Branch]:
        """All branches, in the order of their places."""
        found = [branch for line in self.lines.values() for branch in line.branches]
        return sorted(found, key=lambda branch: branch.at)

    @property
    def outcomes(self) -> list[Outcome]:
        """All outcomes that belong to the total."""
        return [o for branch in self.branches for o in branch.outcomes if o.counted]


def merge_sources(data: CoverageData) -> dict[str, SourceFile]:
    """Merge everything that was recorded onto source files, by path in order."""
    files: dict[str, SourceFile] = {}
    branches: dict[Location, Branch] = {}
    for program in data.programs.values():
        _add_lines(files, program)
        for decision in _decisions(program.model):
            branch = branches.get(decision.at)
            if branch is None:
                branch = branches[decision.at] = Branch(decision.at, decision.condition)
                files[decision.at.file].lines[decision.at.line].branches.append(branch)
            branch.copies += 1
            for where, outcome in _match(branch, decision).items():
                _tally(outcome, decision.edges[where], program)
    for file in files.values():
        file.lines = dict(sorted(file.lines.items()))
        for line in file.lines.values():
            line.branches.sort(key=lambda branch: branch.at)
    return dict(sorted(files.items()))


def _add_lines(files: dict[str, SourceFile], program: ProgramData) -> None:
    model = program.model
    flow = BlockCounts(model, program.counts)
    busiest: dict[tuple[str, int], int] = {}
    alive: set[tuple[str, int]] = set()
    for number, block in enumerate(model.blocks):
        for at in block.lines:
            place = (at.file, at.line)
            busiest[place] = max(busiest.get(place, 0), flow.block(number))
            if not flow.block_is_dead(number):
                alive.add(place)
    for (path, number), count in busiest.items():
        file = files.setdefault(path, SourceFile(path))
        text = model.texts.get((path, number), "")
        line = file.lines.setdefault(number, Line(number, text))
        line.counts[model.kernel] = line.counts.get(model.kernel, 0) + count
        line.reachable |= (path, number) in alive
    for function in model.functions:
        if function.location is not None:
            at = function.location
            entry = files[at.file].functions.setdefault(
                function.name, Function(function.name, at.line)
            )
            entry.count += flow.probe(ProbePoint.ENTRY, function.block) or 0
