"""Tables and plots from pytest-benchmark's JSON: paths by kernel, and cost over size.

``python -m bpfunit.bench.report RESULT.json [--markdown FILE] [--plot FILE]``
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ReportError(ValueError):
    """The file is not a result of pytest-benchmark, or has nothing to show."""


@dataclass(frozen=True)
class Figure:
    """One benchmark's result.

    Attributes:
        name: the benchmark without its kernel.
        group: pytest-benchmark's group, "" for none.
        kernel: the kernel it ran on, "" where it ran on the host.
        ns: the least figure of its rounds, per run, in nanoseconds (exact mode: instructions).
        floor_ns: the cost of the run loop alone, None where it was not measured.
        unit: "instructions" or "ns".
        series: the table that grows, for a benchmark over a size, else "".
        size: the number of entries, for a benchmark over a size, else 0.
    """

    name: str
    group: str
    kernel: str
    ns: int
    floor_ns: int | None
    unit: str
    series: str = ""
    size: int = 0

    @property
    def net(self) -> int:
        """The figure with the run loop taken away, where that is known."""
        return self.ns - (self.floor_ns or 0)


def read(path: Path) -> list[Figure]:
    """Return the figures of a result file.

    Raises:
        ReportError: the file is not pytest-benchmark's JSON, or holds no benchmark.
    """
    try:
        benchmarks = json.loads(path.read_text())["benchmarks"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ReportError(
            f"read {path}: not a result of pytest-benchmark ({error}); make one with "
            "pytest --benchmark-json FILE"
        ) from None
    if not benchmarks:
        raise ReportError(f"read {path}: it holds no benchmark")
    return [_figure(benchmark) for benchmark in benchmarks]


def _figure(benchmark: dict[str, Any]) -> Figure:
    extra = benchmark["extra_info"]
    return Figure(
        name=benchmark["name"].partition(" @")[0],
        group=benchmark["group"] or "",
        kernel=extra.get("kernel", ""),
        ns=round(benchmark["stats"]["min"] * 1e9),
        floor_ns=extra.get("floor_ns"),
        unit=extra.get("unit", "ns"),
        series=extra.get("table", ""),
        size=extra.get("entries", 0),
    )


def markdown(figures: Iterable[Figure]) -> str:
    """Return the figures as Markdown: a table a group, a row a benchmark, a column a kernel."""
    groups: dict[str, list[Figure]] = defaultdict(list)
    for figure in figures:
        groups[figure.group].append(figure)
    return "\n".join(_table(name, members) for name, members in groups.items())


def _table(group: str, figures: Sequence[Figure]) -> str:
    kernels = sorted({figure.kernel for figure in figures}, key=_by_number)
    cells = {(figure.name, figure.kernel): figure for figure in figures}
    units = "/".join(sorted({figure.unit for figure in figures}))
    has_floor = any(figure.floor_ns is not None for figure in figures)
    note = "; in brackets with the run loop taken away" if has_floor else ""
    lines = [f"### {group or 'other'}", "", f"{units.capitalize()} per run{note}.", ""]
    lines.append("| | " + " | ".join(kernels) + " |")
    lines.append("|---|" + "---:|" * len(kernels))
    for name in dict.fromkeys(figure.name for figure in figures):
        row = (cells.get((name, kernel)) for kernel in kernels)
        lines.append(f"| `{name}` | " + " | ".join(map(_cell, row)) + " |")
    return "\n".join([*lines, ""])


def _by_number(kernel: str) -> list[int]:
    """Return what sorts 5.10 behind 5.9 and in front of 6.1."""
    return [int(number) for number in re.findall(r"\d+", kernel)]


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    net = f" ({figure.net:,})" if figure.floor_ns is not None else ""
    return f"{figure.ns:,}{net}"


def plot(figures: Iterable[Figure], path: Path) -> None:
    """Draw the cost over the size, one line a map and kernel.

    Raises:
        ReportError: no benchmark ran over a size, or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise ReportError("draw the plot: matplotlib is missing; pip install matplotlib") from None
    lines: dict[tuple[str, str], list[Figure]] = defaultdict(list)
    for figure in figures:
        if figure.series:
            lines[figure.series, figure.kernel].append(figure)
    if not lines:
        raise ReportError("draw the plot: no benchmark of the result ran over a size")
    canvas = Canvas(figsize=(8, 5), layout="constrained")
    axes = canvas.subplots()
    for (series, kernel), members in lines.items():
        members.sort(key=lambda figure: figure.size)
        axes.plot(
            [m.size for m in members], [m.net for m in members], "o-", label=f"{series}, {kernel}"
        )
    axes.set(
        xscale="log",
        xlabel="entries in the map",
        ylabel=f"{members[0].unit} per run, without the run loop",
        title="A rewritten connection as the mesh grows",
    )
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    axes.grid(visible=True, alpha=0.3)
    canvas.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what the command line asks for; the table goes to standard output by default."""
    parser = argparse.ArgumentParser(prog="python -m bpfunit.bench.report", description=__doc__)
    parser.add_argument("result", type=Path, help="JSON of pytest --benchmark-json")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--plot", type=Path, help="draw cost over size here (svg, png, pdf)")
    chosen = parser.parse_args(arguments)
    try:
        figures = read(chosen.result)
        table = markdown(figures)
        if chosen.markdown:
            chosen.markdown.write_text(table)
        else:
            print(table)
        if chosen.plot:
            plot(figures, chosen.plot)
    except (ReportError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
