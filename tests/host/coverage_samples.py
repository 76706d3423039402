"""Programs with source lines, made by hand, and what their probes would have counted."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from bpfunit.coverage.data import CoverageData
from bpfunit.coverage.model import Model, describe
from bpfunit.coverage.probes import Mode, Probe, place_probes
from bpfunit.rewrite import Image, Insn, Patcher, ProgramCode, encode
from bpfunit.rewrite import insn as i
from bpfunit.rewrite.info import FuncInfo, LineInfo, encode_func_info, encode_line_info

FILE = "bpf/main.c"
OLD, NEW = "6.1.1-amd64", "6.12.1-amd64"
RETURN = (i.mov_imm(0, 0), i.exit_())


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
        dead: Set[int] = frozenset(),
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
        point, block = edge.rstrip("0123456789"), int(edge.lstrip("abcdefghijklmnopqrstuvwxyz"))
        number = next(
            n for n, p in enumerate(model.probes) if p == Probe(p.point, block) and p.point == point
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


def if_else(name: str = "prog", *, inverted: bool = False) -> Source:
    """``if (!x) return 0; return 1;`` as one compiler or another would order it."""
    source = Source(name)
    source.line(9, "int prog(void *x)", i.mov_imm(2, 7))
    source.line(10, "\tif (!x)", i.branch_imm(i.JNE if inverted else i.JEQ, 1, 0, 2), column=6)
    first, second = ((11, "\t\treturn 0;"), (12, "\treturn 1;"))
    for number, text in (first, second) if inverted else (second, first):
        source.line(number, text, *RETURN)
    return source


def sample_data() -> CoverageData:
    """Return data of two kernels: the new one never took the branch to line 12."""
    old, new = if_else().model(OLD), if_else().model(NEW)
    return collected(
        ("tests/t.py::old", old, hits(old, entry0=2, fall0=1, taken0=1)),
        ("tests/t.py::new", new, hits(new, entry0=4, taken0=4)),
    )
