"""Totals, and what is missing, as every report needs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bpfunit.coverage.sites import Branch, Outcome, SourceFile


@dataclass(frozen=True)
class Totals:
    """Lines and branch outcomes that can be reached, and those that were not."""

    lines: int = 0
    lines_missed: int = 0
    outcomes: int = 0
    outcomes_missed: int = 0

    def __add__(self, other: Totals) -> Totals:
        """Return the sum."""
        return Totals(
            self.lines + other.lines,
            self.lines_missed + other.lines_missed,
            self.outcomes + other.outcomes,
            self.outcomes_missed + other.outcomes_missed,
        )

    @property
    def percent(self) -> float:
        """Lines and outcomes covered, of all that can be, as coverage.py counts; 100 for none."""
        total = self.lines + self.outcomes
        missed = self.lines_missed + self.outcomes_missed
        return 100.0 * (total - missed) / total if total else 100.0

    @property
    def shown_percent(self) -> str:
        """The percentage without decimals; 100 only if nothing is missed, 0 only if all is."""
        rounded = round(self.percent)
        if rounded == 100 and self.percent < 100:
            rounded = 99
        if rounded == 0 and self.percent > 0:
            rounded = 1
        return f"{rounded}%"


def totals(file: SourceFile) -> Totals:
    """Return the totals of one file."""
    lines = [line for line in file.lines.values() if line.counted]
    outcomes = file.outcomes
    return Totals(
        len(lines),
        sum(not line.count for line in lines),
        len(outcomes),
        sum(not outcome.count for outcome in outcomes),
    )


def grand_total(files: Iterable[SourceFile]) -> Totals:
    """Return the totals of several files."""
    return sum((totals(file) for file in files), Totals())


def missed_lines(file: SourceFile) -> list[str]:
    """Return the missed lines, neighbours joined: ``["12", "40-44"]``.

    Lines without code between two missed ones do not part them.
    """
    groups: list[list[int]] = []
    open_group = False
    for line in file.lines.values():
        if not line.counted:
            continue
        if line.count:
            open_group = False
        elif open_group:
            groups[-1].append(line.number)
        else:
            groups.append([line.number])
            open_group = True
    return [str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups]


def missed_outcomes(file: SourceFile) -> list[tuple[Branch, Outcome]]:
    """Return the outcomes not taken of branches whose line ran."""
    return [
        (branch, outcome)
        for branch in file.branches
        for outcome in branch.outcomes
        if outcome.counted and not outcome.count and file.lines[branch.at.line].count
    ]


def one_kernel_outcomes(file: SourceFile, kernels: list[str]) -> list[tuple[Branch, Outcome]]:
    """Return the outcomes that were taken on some kernels and not on others."""
    return [
        (branch, outcome)
        for branch in file.branches
        for outcome in branch.outcomes
        if outcome.count and any(not outcome.counts.get(kernel) for kernel in kernels)
    ]


def not_counted(file: SourceFile) -> list[tuple[Branch, Outcome, str]]:
    """Return the outcomes left out of the totals, each with the reason."""
    return [
        (branch, outcome, outcome.excluded or "the verifier proves that it is never taken")
        for branch in file.branches
        for outcome in branch.outcomes
        if not outcome.counted
    ]
