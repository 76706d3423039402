"""A run grouped by kernel: the table, as text and as Markdown, and everything as plain data.

Knows nothing of pytest. ``docs/matrix.md`` describes the JSON; :data:`SCHEMA` is its version.
"""

from __future__ import annotations

from typing import Any

from bpfunit.report._format import duration
from bpfunit.report._model import KernelInfo, Row, Run, Status

SCHEMA = 1
"""Raised when a key of the JSON goes or changes its meaning; new keys leave it."""

_COLUMNS: dict[str, tuple[Status, ...]] = {
    "passed": (Status.PASSED,),
    "failed": (Status.FAILED, Status.ERROR),
    "skipped": (Status.SKIPPED,),
    "not applicable": (Status.NOT_APPLICABLE,),
    "died": (Status.CRASHED,),
    "missing": (Status.MISSING,),
    "xfailed": (Status.XFAILED,),
    "xpassed": (Status.XPASSED,),
}
_ALWAYS = ("passed", "failed", "skipped", "not applicable", "died")


def is_bad(run: Run, kernel: KernelInfo) -> bool:
    """Tell whether a kernel's row must not look green: something went wrong, or nothing ran."""
    counts = run.counts(kernel.name)
    return not counts or any(status.is_bad for status in counts)


def table(run: Run) -> list[list[str]]:
    """Return the table, its head first: a row for each kernel, the counts, the time in tests.

    Columns for rare outcomes are there when they occur.
    """
    seen = run.counts()
    columns = {
        title: statuses
        for title, statuses in _COLUMNS.items()
        if title in _ALWAYS or any(status in seen for status in statuses)
    }
    lines = [["kernel", *columns, "time"]]
    for kernel in run.kernels:
        counts = run.counts(kernel.name)
        numbers = [
            str(sum(counts.get(status, 0) for status in statuses)) for statuses in columns.values()
        ]
        lines.append([kernel.title, *numbers, duration(run.seconds_on(kernel.name))])
    return lines


def text_table(run: Run) -> list[str]:
    """Return the lines of the table for a terminal, its head first."""
    lines = table(run)
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    ]


def differing(run: Run) -> list[Row]:
    """Return the tests that pass on one kernel and fail on another."""
    return [row for row in run.rows() if row.differs]


def sides(row: Row) -> list[str]:
    """Return who is on which side of a test that differs: ``passed on A, B``, ``failed on C``."""
    ordered = sorted(row.kernels_by_status().items(), key=lambda item: item[0].is_bad)
    return [f"{status.value} on {', '.join(kernels)}" for status, kernels in ordered]


def markdown(run: Run) -> str:
    """Return the run as Markdown, as the summary page of a CI system shows it."""
    bad = [kernel for kernel in run.kernels if is_bad(run, kernel)]
    verdict = f"trouble on {len(bad)} of them" if bad else "all green"
    plural = "s" if len(run.kernels) != 1 else ""
    lines = [f"## {len(run.kernels)} kernel{plural}, {verdict}", ""]
    head, *body = table(run)
    lines += [_row(head), _row([":--", *["--:"] * (len(head) - 1)])]
    for kernel, cells in zip(run.kernels, body, strict=True):
        lines.append(_row([f"**{cells[0]}**" if kernel in bad else cells[0], *cells[1:]]))
    if rows := differing(run):
        lines += ["", "### Passes on one kernel and fails on another", ""]
        for row in rows:
            lines += [f"- {_code(row.test)}", *(f"  - {side}" for side in sides(row))]
    if rows := [row for row in run.rows() if row.worst.is_bad]:
        lines += ["", "### What went wrong", ""]
        lines += [line for row in rows for line in _failure(row)]
    if notes := _notes(run):
        lines += ["", "### Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join([*lines, "", f"{_code(run.command)}, {duration(run.seconds)}", ""])


def data(run: Run) -> dict[str, Any]:
    """Return the run as plain data for JSON; ``docs/matrix.md`` says what each key means."""
    return {
        "schema": SCHEMA,
        "command": run.command,
        "started": run.started.isoformat(timespec="seconds"),
        "seconds": round(run.seconds, 3),
        "exit_code": run.exit_code,
        "kernels": [
            {
                "release": kernel.name,
                "label": kernel.label,
                "interpreted": kernel.interpreted,
                "notes": list(kernel.notes),
                "ok": not is_bad(run, kernel),
                "counts": {status.value: n for status, n in run.counts(kernel.name).items()},
                "seconds": round(run.seconds_on(kernel.name), 3),
            }
            for kernel in run.kernels
        ],
        "tests": [
            {
                "id": row.test,
                "outcomes": {
                    cell.kernel: {
                        "outcome": cell.status.value,
                        "seconds": round(cell.seconds, 3),
                        "reason": cell.reason,
                        "death": cell.death,
                    }
                    for cell in row.cells
                    if cell.status is not Status.ABSENT
                },
            }
            for row in run.rows()
        ],
        "differing": [row.test for row in differing(run)],
        "remarks": list(run.remarks),
    }


def _notes(run: Run) -> list[str]:
    named = [f"{k.name}: {'; '.join(k.notes)}" for k in run.kernels if k.notes]
    return [*named, *run.remarks]


def _failure(row: Row) -> list[str]:
    lines = [f"- {_code(row.test)}"]
    for cell in row.cells:
        if cell.status.is_bad:
            reason = f": {_code(cell.reason)}" if cell.reason else ""
            lines.append(f"  - {cell.status.value} on {cell.kernel}{reason}")
    return lines


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    """Return a code span that holds any text, back quotes included."""
    fence = "`"
    while fence in text:
        fence += "`"
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"
