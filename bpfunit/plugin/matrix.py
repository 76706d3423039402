"""Results by kernel: the table at the end, and the files of ``--bpfunit-report-dir``."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from _pytest.junitxml import LogXML

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

KINDS = ("passed", "failed", "error", "died", "skipped", "xfailed", "xpassed")
_GOOD = {"passed", "skipped", "xfailed"}


@dataclass
class Row:
    """What one kernel did.

    Attributes:
        label: the kernel's name in test ids.
        release: as ``uname -r`` prints it.
        outcomes: the kind of every test, by its id without the kernel.
        seconds: spent in its tests, setup and teardown included.
    """

    label: str
    release: str
    outcomes: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def counts(self) -> Counter[str]:
        """Return how many tests ended in each way."""
        return Counter(self.outcomes.values())


def split_id(nodeid: str) -> tuple[str, str]:
    """Return a test's id without its kernel, and the kernel's label ("" for none)."""
    test, at, label = nodeid.rpartition("@")
    return (test, label) if at and "]" not in label and "::" not in label else (nodeid, "")


def kind_of(report: pytest.TestReport) -> str:
    """Return the kind of outcome that a phase's report stands for, "" for none of its own."""
    if getattr(report, "bpfunit_death", None):
        return "died"
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    if report.skipped:
        return "skipped"
    if report.failed:
        return "failed" if report.when == "call" else "error"
    return "passed" if report.when == "call" else ""


class Matrix:
    """Collects results by kernel.

    Args:
        releases: the kernels' exact releases by their labels, in the order of the table.
    """

    def __init__(self, releases: dict[str, str]) -> None:
        self.rows = {label: Row(label, release) for label, release in releases.items()}

    def add(self, report: pytest.TestReport) -> None:
        """Take one phase of one test."""
        test, label = split_id(report.nodeid)
        row = self.rows.get(label)
        if row is None:
            return
        row.seconds += report.duration
        kind = kind_of(report)
        if kind and row.outcomes.get(test, "passed") in _GOOD:
            row.outcomes[test] = kind

    def differences(self) -> dict[str, dict[str, str]]:
        """Return the tests that pass on one kernel and fail on another, with each kernel's kind."""
        tests = dict.fromkeys(test for row in self.rows.values() for test in row.outcomes)
        found = {}
        for test in tests:
            kinds = {
                row.release: row.outcomes[test]
                for row in self.rows.values()
                if test in row.outcomes
            }
            bad = {kind for kind in kinds.values() if kind not in _GOOD}
            if bad and "passed" in kinds.values():
                found[test] = kinds
        return found

    def columns(self) -> list[str]:
        """Return the kinds that the table shows: the first three, and others that occur."""
        seen = {kind for row in self.rows.values() for kind in row.outcomes.values()}
        return [kind for kind in KINDS if kind in {"passed", "failed", "skipped"} or kind in seen]

    def table(self) -> list[list[str]]:
        """Return the table, its head first."""
        columns = self.columns()
        lines = [["kernel", *columns, "time"]]
        for row in self.rows.values():
            counts = row.counts()
            numbers = [str(counts[kind]) for kind in columns]
            lines.append([row.release, *numbers, f"{row.seconds:.1f} s"])
        return lines

    def text(self) -> list[str]:
        """Return the table for a terminal."""
        table = self.table()
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        return [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]

    def markdown(self) -> str:
        """Return the table and the differences as Markdown."""
        head, *body = self.table()
        lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
        lines += [f"| {' | '.join(line)} |" for line in body]
        if differences := self.differences():
            lines += ["", "Passes on one kernel and fails on another:", ""]
            for test, kinds in differences.items():
                each = ", ".join(f"{release} {kind}" for release, kind in kinds.items())
                lines.append(f"- `{test}`: {each}")
        return "\n".join(lines) + "\n"

    def data(self, deaths: Sequence[dict[str, str]]) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        return {
            "version": 1,
            "kernels": [
                {
                    "label": row.label,
                    "release": row.release,
                    "seconds": round(row.seconds, 3),
                    "counts": dict(row.counts()),
                    "tests": row.outcomes,
                }
                for row in self.rows.values()
            ],
            "differences": self.differences(),
            "deaths": list(deaths),
        }


class ReportFiles:
    """Writes ``matrix.json``, ``matrix.md``, ``junit.xml`` and a ``junit-RELEASE.xml`` per kernel.

    Args:
        directory: where to.
        matrix: the results, also gathered elsewhere.
    """

    def __init__(self, directory: Path, matrix: Matrix) -> None:
        self._directory = directory
        self._matrix = matrix
        self._logs = {
            label: LogXML(str(directory / f"junit-{row.release}.xml"), None, suite_name=row.release)
            for label, row in matrix.rows.items()
        }

    def start(self) -> None:
        """Start the clocks."""
        for log in self._logs.values():
            log.pytest_sessionstart()

    def add(self, report: pytest.TestReport) -> None:
        """Take one phase of one test."""
        log = self._logs.get(split_id(report.nodeid)[1])
        if log is not None:
            log.pytest_runtest_logreport(report)

    def write(self, deaths: Sequence[dict[str, str]]) -> None:
        """Write all files."""
        self._directory.mkdir(parents=True, exist_ok=True)
        merged = ET.Element("testsuites")
        for log in self._logs.values():
            log.pytest_sessionfinish()
            merged.extend(ET.parse(log.logfile).getroot().iter("testsuite"))
        ET.ElementTree(merged).write(
            self._directory / "junit.xml", encoding="utf-8", xml_declaration=True
        )
        text = json.dumps(self._matrix.data(deaths), indent=1)
        (self._directory / "matrix.json").write_text(text + "\n")
        (self._directory / "matrix.md").write_text(self._matrix.markdown())
