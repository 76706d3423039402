"""The way that one run took through a program, as source lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, overload

from bpfunit.coverage.counts import BlockCounts
from bpfunit.coverage.model import Location, Model
from bpfunit.coverage.probes import ProbePoint


class Step(NamedTuple):
    """One branch that was taken.

    Attributes:
        at: where the branch is.
        text: the source line, stripped.
        to: where it led; None without line info.
        repeated: whether it went the other way as well in the same run (a loop).
    """

    program: str
    at: Location
    text: str
    to: Location | None
    repeated: bool


class Path(Sequence[Step]):
    """The branches of one run, in the order of execution; a loop's appear once.

    `str` gives one line a step: ``route.h:42  if (!frontend)  → 43``. Nothing is worked out before
    somebody looks: most runs' paths nobody ever does.

    Args:
        parts: each program that ran, with its probes' counts of that run.
    """

    def __init__(self, parts: Sequence[tuple[Model, Sequence[int]]]) -> None:
        self._parts = parts

    @cached_property
    def _steps(self) -> list[Step]:
        return [step for model, counts in self._parts for step in walk(model, counts)]

    def __len__(self) -> int:
        """Return how many branches were taken."""
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> Step: ...

    @overload
    def __getitem__(self, index: slice) -> list[Step]: ...

    def __getitem__(self, index: int | slice) -> Step | list[Step]:
        """Return one step, or some."""
        return self._steps[index]

    def __str__(self) -> str:
        """Return the table of steps, one line each."""
        rows = [_row(step) for step in self]
        width = max((len(place) for place, _, _ in rows), default=0)
        return "\n".join(f"{place:{width}}  {text}  → {to}" for place, text, to in rows)


def _row(step: Step) -> tuple[str, str, str]:
    short = step.at.file.rsplit("/", 1)[-1]
    to = "end"
    if step.to is not None:
        name = step.to.file.rsplit("/", 1)[-1]
        to = str(step.to.line) if name == short else f"{name}:{step.to.line}"
    return f"{short}:{step.at.line}", step.text, to + (" (and on)" if step.repeated else "")


def walk(model: Model, counts: Sequence[int]) -> Iterator[Step]:
    """Follow the probes that one run passed, from each function that was entered."""
    flow = BlockCounts(model, counts)
    seen: set[int] = set()
    for function in model.functions:
        if flow.probe(ProbePoint.ENTRY, function.block):
            yield from _walk_from(model, flow, function.block, seen)


def _walk_from(model: Model, flow: BlockCounts, start: int, seen: set[int]) -> Iterator[Step]:
    pending = [start]
    while pending:
        number = pending.pop()
        if number in seen or number < 0:
            continue
        seen.add(number)
        block = model.blocks[number]
        fell = bool(
            flow.edge(ProbePoint.AFTER_TAIL_CALL if block.leaves else ProbePoint.FALL, number)
        )
        took = block.taken >= 0 and bool(flow.edge(ProbePoint.TAKEN, number))
        if block.condition and block.end is not None:
            for passed, target in ((fell, block.fall), (took, block.taken)):
                to = landing(model, target, block.end)
                if passed and (to is None or to != block.end):
                    text = model.texts.get((block.end.file, block.end.line), "").strip()
                    yield Step(model.program, block.end, text, to, fell and took)
        # The loop's way on is followed before its way out, so the fall-through goes on top.
        if took:
            pending.append(block.taken)
        if fell:
            pending.append(block.fall)


def landing(model: Model, number: int, branch: Location | None = None) -> Location | None:
    """Return the first source location at or behind block ``number``, following plain jumps.

    Args:
        model: the program.
        number: the block that a branch leads to.
        branch: where the branch is. Compilers give the start of the block that it leads to the
            branch's own place, for what they moved there: what stands behind that is meant.
    """
    visited: set[int] = set()
    while number >= 0 and number not in visited:
        visited.add(number)
        block = model.blocks[number]
        beyond = [line for line in block.lines if line != branch]
        if beyond:
            return beyond[0]
        if block.lines and block.condition:
            return block.lines[0]
        number = block.taken if block.taken >= 0 and not block.condition else block.fall
    return None
