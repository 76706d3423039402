"""What the probes of one program stand for: its blocks, jumps and source lines.

A `Model` is made in the guest when a program is loaded, crosses to the controller once as plain
dictionaries, and is all that the reports need beside the probes' counts.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from bpfunit.coverage.probes import Mode, Probe, ProbePoint
from bpfunit.rewrite.code import ProgramCode
from bpfunit.rewrite.flow import Flow


class Location(NamedTuple):
    """A place in the source: file as the compiler was given it, line and column from 1."""

    file: str
    line: int
    column: int


class BlockModel(NamedTuple):
    """A basic block.

    Attributes:
        start: its first instruction.
        fall, taken: the blocks that follow, -1 for none.
        lines: where its instructions come from, in order.
        end: where its last instruction comes from; None if that is a jump which bpfunit itself has
            put in (a stub, a traced call), and is no branch of the source.
        condition: the condition of the jump at its end, "" if there is none.
        leaves: whether control may leave it other than through its edges (a tail call).
    """

    start: int
    fall: int
    taken: int
    lines: tuple[Location, ...]
    end: Location | None
    condition: str
    leaves: bool


class FunctionModel(NamedTuple):
    """A function: its name, its first block, where it is defined."""

    name: str
    block: int
    location: Location | None


@dataclass
class Model:
    """One program as it was loaded on one kernel.

    Attributes:
        key: fingerprint of the program as it was before probes.
        dead: probes that the verifier removed, since it proved that nothing reaches them.
        texts: the text of each source line that has code, by file and line.
        spills: probes that had to save a register.
        sizes: instructions without and with probes.
    """

    key: str
    program: str
    section: str
    kernel: str
    mode: Mode
    probes: tuple[Probe, ...]
    dead: frozenset[int]
    functions: tuple[FunctionModel, ...]
    blocks: tuple[BlockModel, ...]
    texts: dict[tuple[str, int], str] = field(default_factory=dict)
    spills: int = 0
    sizes: tuple[int, int] = (0, 0)

    @cached_property
    def probe_numbers(self) -> dict[Probe, int]:
        """The number of each probe."""
        return {probe: number for number, probe in enumerate(self.probes)}

    def to_plain(self) -> dict[str, Any]:
        """Return dictionaries and lists of strings and numbers, which any channel carries."""
        return {
            "key": self.key,
            "program": self.program,
            "section": self.section,
            "kernel": self.kernel,
            "mode": self.mode.value,
            "probes": [[probe.point.value, probe.block] for probe in self.probes],
            "dead": sorted(self.dead),
            "functions": [[f.name, f.block, _plain(f.location)] for f in self.functions],
            "blocks": [_plain_block(block) for block in self.blocks],
            "texts": [[file, line, text] for (file, line), text in self.texts.items()],
            "spills": self.spills,
            "sizes": list(self.sizes),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Model:
        """Make a model of what `to_plain` gave."""
        return cls(
            key=plain["key"],
            program=plain["program"],
            section=plain["section"],
            kernel=plain["kernel"],
            mode=Mode(plain["mode"]),
            probes=tuple(Probe(ProbePoint(point), block) for point, block in plain["probes"]),
            dead=frozenset(plain["dead"]),
            functions=tuple(
                FunctionModel(name, block, _location(at)) for name, block, at in plain["functions"]
            ),
            blocks=tuple(
                BlockModel(
                    *(start, fall, taken, tuple(Location(*at) for at in lines)),
                    *(_location(end), condition, leaves),
                )
                for start, fall, taken, lines, end, condition, leaves in plain["blocks"]
            ),
            texts={(file, line): text for file, line, text in plain["texts"]},
            spills=plain["spills"],
            sizes=(plain["sizes"][0], plain["sizes"][1]),
        )


def _plain_block(block: BlockModel) -> list[Any]:
    lines = [list(at) for at in block.lines]
    return [*block._replace(lines=lines, end=_plain(block.end))]  # type: ignore[arg-type]


def _plain(location: Location | None) -> list[Any]:
    return list(location) if location else []


def _location(plain: Sequence[Any]) -> Location | None:
    return Location(*plain) if plain else None


class _Lines:
    """Source locations by instruction, from line_info.

    Records of line 0 (code that the compiler could not attribute) take the location of the record
    before them in the same function, or of the one behind. A program without line info becomes a
    file of its own, whose lines are instructions.
    """

    def __init__(self, code: ProgramCode, flow: Flow) -> None:
        self.texts: dict[tuple[str, int], str] = {}
        self._of: list[Location | None] = [None] * len(code.insns)
        bounds = [record.insn_off for record in code.line_info[1:]] + [len(code.insns)]
        strings: dict[int, str] = {}
        for record, end in zip(code.line_info, bounds, strict=False):
            if not record.line:
                continue
            file = strings.setdefault(record.file_off, _normal(code.string_at(record.file_off)))
            at = Location(file, record.line, record.column)
            self.texts.setdefault((file, record.line), code.string_at(record.line_off))
            for index in range(record.insn_off, end):
                self._of[index] = at
        if not code.line_info:
            file = f"<{code.name}: no line info>"
            self._of = [Location(file, index + 1, 1) for index in range(len(code.insns))]
        for start in flow.functions:
            self._fill(range(start, flow.function_end(start)))

    def _fill(self, function: range) -> None:
        for order in (function, reversed(function)):
            near: Location | None = None
            for index in order:
                near = self._of[index] = self._of[index] or near

    def at(self, index: int) -> Location | None:
        return self._of[index]

    def between(self, start: int, end: int) -> tuple[Location, ...]:
        return tuple(dict.fromkeys(at for at in self._of[start:end] if at))


def _normal(path: str) -> str:
    """Return the path without ``./`` and ``..``, as reports compare and show it."""
    return posixpath.normpath(path)


def describe(code: ProgramCode, flow: Flow) -> dict[str, Any]:
    """Return the parts of a `Model` that the program alone determines, as keyword arguments."""
    lines = _Lines(code, flow)
    names = {record.insn_off: code.name_of_type(record.type_id) for record in code.func_info}
    blocks = []
    for block in flow.blocks:
        last = code.insns[block.last]
        condition = last.condition() if last.is_branch else "may_goto" if last.is_may_goto else ""
        blocks.append(
            BlockModel(
                start=block.start,
                fall=-1 if block.fall is None else block.fall,
                taken=-1 if block.taken is None else block.taken,
                lines=lines.between(block.start, block.end),
                end=None if block.last in code.inserted else lines.at(block.last),
                condition=condition,
                leaves=Flow.ends_block(last) and last.is_helper_call,
            )
        )
    functions = tuple(
        FunctionModel(names.get(start) or code.name, flow.block_at(start), lines.at(start))
        for start in flow.functions
    )
    return {"functions": functions, "blocks": tuple(blocks), "texts": lines.texts}
