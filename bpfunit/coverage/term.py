"""The terminal table, in the manner of pytest-cov."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bpfunit.coverage.data import CoverageData
from bpfunit.coverage.sites import SourceFile
from bpfunit.coverage.summary import (
    Totals,
    grand_total,
    missed_lines,
    missed_outcomes,
    not_counted,
    one_kernel_outcomes,
    totals,
)

_HEADINGS = ("Lines", "Miss", "Branch", "BrMiss", "Cover")


def table(files: Mapping[str, SourceFile], *, missing: bool) -> list[str]:
    """Return the table of files, with a column of what is missing if asked for.

    In that column, ``12-14`` are lines that never ran and ``20->25`` is a branch on line 20 that
    never led to line 25.
    """
    names = [*files, "TOTAL", "Name"]
    width = max(len(name) for name in names)
    head = _row("Name", width, _HEADINGS) + ("   Missing" if missing else "")
    rule = "-" * len(head)
    rows = []
    for path, file in files.items():
        row = _row(path, width, _cells(totals(file)))
        rows.append(f"{row}   {', '.join(_missing(file))}".rstrip() if missing else row)
    total = _row("TOTAL", width, _cells(grand_total(files.values())))
    return [head, rule, *rows, rule, total]


def _row(name: str, width: int, cells: tuple[str, ...]) -> str:
    return f"{name:{width}}" + "".join(f"{cell:>8}" for cell in cells)


def _cells(found: Totals) -> tuple[str, ...]:
    numbers = (found.lines, found.lines_missed, found.outcomes, found.outcomes_missed)
    return (*(str(number) for number in numbers), found.shown_percent)


def _missing(file: SourceFile) -> list[str]:
    edges = [f"{b.at.line}->{o.leads_to(file.path)}" for b, o in missed_outcomes(file)]
    return missed_lines(file) + list(dict.fromkeys(edges))


def notes(data: CoverageData, files: Mapping[str, SourceFile]) -> Iterator[str]:
    """Yield what the table cannot show: differences between kernels, and what is not counted."""
    kernels = data.kernels
    for path, file in files.items():
        for branch, outcome in one_kernel_outcomes(file, kernels):
            taken = [kernel for kernel in kernels if outcome.counts.get(kernel)]
            yield (
                f"on {', '.join(taken)} only: {path}:{branch.at.line} -> {outcome.leads_to(path)}"
            )
    for path, file in files.items():
        for branch, outcome, reason in not_counted(file):
            yield (
                f"unreachable here: {path}:{branch.at.line} -> {outcome.leads_to(path)}: {reason}"
            )
    for (kernel, program), reason in [*data.refused.items(), *data.beyond.items()]:
        yield f"not instrumentable: {program} on {kernel}: {reason}"
