"""What an exploration says of each branch edge of a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfunit.explorer.facts import ARRAY, BRANCH, LOOKUPS, RESULT, Facts, Site
from bpfunit.explorer.packets import SHORTEST_PACKET
from bpfunit.explorer.search import Case, Edge, Found
from bpfunit.explorer.wire import Input
from bpfunit.rewrite.insn import JUMP_SIGNS

REACHED, DEAD, MISSED = "reached", "dead", "not reached"
_SHOWN = 4  # pairs of operands
_ALIKE = 3  # edges of one reason that are listed below it
_POINTERS = 0xFFFF_0000_0000_0000
_ERRNOS = (1 << 64) - 4096  # no address, but -1 and its like: MAX_ERRNO of include/linux/err.h
# Jumps by which a packet's end is told, and whether they are taken where a place is behind it when
# the place stands on the left.
_ORDER = {0x20: True, 0x30: True, 0xA0: False, 0xB0: False}


@dataclass(frozen=True)
class EdgeState:
    """One edge of one conditional jump.

    Attributes:
        insn: the jump, an instruction of the program as the compiler made it.
        taken: whether this is the edge of the jump taken.
        state: "reached", "dead" (the verifier of this kernel proved that no input takes it and
            dropped it) or "not reached".
        file, line, column, text: the place in the source; "" and 0 without line info.
        condition: the comparison in the way of the machine, for example ``w1 == 80``.
        given: the input that takes it, None where none was found.
        reason: why it was not reached.
    """

    insn: int
    taken: bool
    state: str
    file: str
    line: int
    column: int
    text: str
    condition: str
    given: Input | None = None
    reason: str = ""

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"{self.where} {self.state}{why}"

    @property
    def where(self) -> str:
        """The place, the source's line and the way of the jump, in a line."""
        place = f"{_near(self.file)}:{self.line}" if self.file else f"instruction {self.insn}"
        way = "taken" if self.taken else "not taken"
        return f"{place}: {self.text or self.condition} ({self.condition} {way})"


@dataclass
class Exploration:
    """What :func:`bpfunit.explore` found.

    Attributes:
        seed: of the search.
        found: the inputs, in the order of finding, and what the search took.
        facts: the program.
    """

    facts: Facts
    found: Found
    seed: int
    compared: dict[int, list[tuple[int, int]]]

    @property
    def edges(self) -> list[EdgeState]:
        """Every branch edge, in the order of the program."""
        return list(self._edges())

    @property
    def reached(self) -> int:
        """How many edges an input takes."""
        return len(self.found.first)

    @property
    def alive(self) -> int:
        """How many edges the verifier of this kernel left."""
        return len(self.facts.edges())

    def _edges(self) -> Iterator[EdgeState]:
        for number, site in enumerate(self.facts.sites):
            if site.kind != BRANCH:
                continue
            file, line, column, text = self.facts.places.get(number, ("", 0, 0, ""))
            for taken in (False, True):
                edge = (number, taken)
                case = self.found.first.get(edge)
                state = REACHED if case else DEAD if edge in self.facts.dead else MISSED
                yield EdgeState(
                    *(site.insn, taken, state, file, line, column, text),
                    condition=condition(site),
                    given=case.given if case else None,
                    reason=self._reason(edge, state),
                )

    def _reason(self, edge: Edge, state: str) -> str:
        if state == REACHED:
            return ""
        if state == DEAD:
            return f"the verifier of {self.facts.kernel} proved that nothing reaches it"
        seen = self.compared.get(edge[0])
        if not seen:
            before = self._way_to(edge[0])
            return f"no input came to the jump{before}"
        if why := self._every_index(edge, seen) or self._short_packet(edge):
            return why
        pairs = ", ".join(dict.fromkeys(_shown(a, b) for a, b in seen[:_SHOWN]))
        return f"compared were {pairs}"

    def _every_index(self, edge: Edge, seen: Sequence[tuple[int, int]]) -> str:
        """Say that a lookup in an array cannot miss, where the edge is that of its NULL."""
        before = [site for site in self.facts.sites[: edge[0]] if site.kind == RESULT][-1:]
        if not before or before[0].map < 0 or any(a < _POINTERS or b for a, b in seen):
            return ""
        one = self.facts.maps[before[0].map]
        if before[0].helper not in LOOKUPS or one.kind != ARRAY:
            return ""
        return f"{one.name} is an array, which has every index that was asked for"

    def _short_packet(self, edge: Edge) -> str:
        """Say that kernels run no packet so short, where the edge is that of one."""
        number, taken = edge
        site, shortest = self.facts.sites[number], 0
        if site.op not in _ORDER or not self.facts.packets:
            return ""
        for case in self.found.cases:
            for step in case.outcome.steps:
                for record in step.records:
                    if record[0] == number:
                        a, b = site.operands(record[1], record[2])
                        if a < _POINTERS or b < _POINTERS:
                            return ""
                        end, at = (b, a) if _ORDER[site.op] == taken else (a, b)
                        shortest = max(shortest, at - (end - len(step.data)))
        if not 0 < shortest <= SHORTEST_PACKET:
            return ""
        return (
            f"it wants a packet of less than {shortest} bytes; none so short is tried, for most"
            " kernels run none"
        )

    def _way_to(self, number: int) -> str:
        """Name the nearest jump in front that was decided one way only."""
        for other in range(number - 1, -1, -1):
            site = self.facts.sites[other]
            ways = [(other, taken) in self.found.first for taken in (False, True)]
            if site.kind == BRANCH and sum(ways) == 1:
                file, line, _, text = self.facts.places.get(other, ("", 0, 0, ""))
                at = f"{_near(file)}:{line}, {text}" if file else f"instruction {site.insn}"
                return f"; in front of it {condition(site)} went one way only ({at})"
        return ""

    def report(self) -> list[str]:
        """Return lines for people: the sum, and each edge that was not reached, by reason."""
        found = self.found
        lines = [
            f"{self.facts.program} on {self.facts.kernel}: {self.reached} of {self.alive} branch"
            f" edges reached, {len(self.facts.dead)} dead, by {len(found.cases)} inputs;"
            f" {found.runs} runs, {found.instructions} instructions, {found.seconds:.1f} s,"
            f" seed {self.seed}"
        ]
        lines += [f"  {note}" for note in self.facts.notes]
        by_reason: dict[str, list[EdgeState]] = {}
        for edge in self.edges:
            if edge.state == MISSED:
                by_reason.setdefault(edge.reason, []).append(edge)
        for reason, edges in by_reason.items():
            if len(edges) < _ALIKE:
                lines += [f"  {edge}" for edge in edges]
            else:
                lines.append(f"  {MISSED} are {len(edges)} edges: {reason}")
                lines += [f"    {edge.where}" for edge in edges]
        return lines

    def case(self, edge: Edge) -> Case | None:
        """Return the case that took an edge first."""
        return self.found.first.get(edge)


def _near(file: str) -> str:
    """Return a path as it is from here, where it lies here: compilers are given absolute ones."""
    path = Path(file)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file


def condition(site: Site) -> str:
    """Return a jump's comparison with registers left out: ``32 bits == 80``."""
    right = "a register" if site.imm is None else str(site.imm)
    return f"{site.bits} bits {JUMP_SIGNS[site.op]} {right}"


def _shown(a: int, b: int) -> str:
    if a >= _POINTERS and b >= _POINTERS:
        return f"an address with one {b - a} bytes behind it"
    return f"{_number(a)} with {_number(b)}"


def _number(value: int) -> str:
    if value > _ERRNOS:
        return str(value - (1 << 64))
    return "an address" if value >= _POINTERS else hex(value) if value > 9 else str(value)
