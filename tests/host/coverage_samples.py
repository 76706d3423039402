"""Programs with source lines, made by hand, and what their probes would have counted."""

from __future__ import annotations

from dataclasses import dataclass, field

from bpfunit.coverage.data import CoverageData
from bpfunit.coverage.model import Model, describe
from bpfunit.coverage.probes import Mode, Probe, place_probes
from bpfunit.rewrite import Image, Insn, Patcher, ProgramCode, encode
from bpfunit.rewrite.info import FuncInfo, LineInfo, encode_func_info, encode_line_info

FILE = "bpf/main.c"


@dataclass
class Source:
    """Collects instructions line by line.

    Attributes:
        texts: the strings of the object, a source line's text at the offset it was added at.
    """

    name: str
    texts: list[str] = field(default_factory=lambda: ["", FILE])
    insns: list[Insn] = field(default_factory=list)
    lines: list[LineInfo] = field(default_factory=list)

    def line(self, number: int, text: str, *insns: Insn, column: int = 2) -> None:
        """Add instructions that come from one source line."""
        if text not in self.texts:
            self.texts.append(text)
        place = LineInfo(len(self.insns), 1, self.texts.index(text), number << 10 | column)
        self.lines.append(place)
        self.insns += insns

    def code(self) -> ProgramCode:
        """Return the program; string offset n is the n-th text."""
        self.texts.append(self.name)
        func = FuncInfo(0, len(self.texts) - 1)
        image = Image(encode(self.insns), encode_func_info([func]), encode_line_info(self.lines))
        strings = self.texts.__getitem__
        return ProgramCode(self.name, "xdp", 6, 0, image, strings, strings)

    def model(
        self,
        kernel: str,
        *,
        key: str = "",
        mode: Mode = Mode.COUNTERS,
        dead: set[int] = frozenset(),
    ) -> Model:
        """Return the model of the program as if loaded on ``kernel``."""
        code = self.code()
        flow = code.flow()
        placement = place_probes(flow, mode, 3, Patcher(flow))
        parts = describe(code, flow)
        identity = (key or self.name, self.name, "xdp", kernel, mode)
        return Model(*identity, placement.probes, frozenset(dead), **parts)


def hits(model: Model, **counts: int) -> dict[str, list[tuple[int, int]]]:
    """Return hits by edge: ``taken0=3`` is the taken edge of block 0."""
    found = []
    for edge, count in counts.items():
        kind, block = edge.rstrip("0123456789"), int(edge.lstrip("abcdefghijklmnopqrstuvwxyz"))
        number = next(
            n for n, p in enumerate(model.probes) if p == Probe(p.kind, block) and p.kind == kind
        )
        found.append((number, count))
    return {model.key: found}


def collected(*parts: tuple[str, Model, dict[str, list[tuple[int, int]]]]) -> CoverageData:
    """Return the data of several (test, model, hits)."""
    data = CoverageData()
    for test, model, found in parts:
        data.add_model(model)
        data.add_hits(test, model.kernel, found)
    return data
