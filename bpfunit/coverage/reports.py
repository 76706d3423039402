"""Which reports were asked for, and writing them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bpfunit.coverage import exchange, term
from bpfunit.coverage.data import CoverageData
from bpfunit.coverage.exclusions import Exclusion, apply_exclusions
from bpfunit.coverage.sites import SourceFile, merge_sources
from bpfunit.coverage.summary import grand_total
from bpfunit.errors import BpfunitError

REPORT_TYPES = ("term", "term-missing", "html", "xml", "lcov", "json")
_DESTINATIONS = {
    "html": "htmlcov-bpf",
    "xml": "coverage-bpf.xml",
    "lcov": "coverage-bpf.info",
    "json": "coverage-bpf.json",
}


class ReportError(BpfunitError):
    """A report that cannot be made."""


@dataclass(frozen=True)
class ReportRequest:
    """One report: its type, and the file or directory it goes to ("" for the terminal)."""

    report_type: str
    destination: str = ""

    @classmethod
    def parse(cls, text: str) -> ReportRequest:
        """Read ``TYPE`` or ``TYPE:DEST``; an empty text is no report.

        Raises:
            ReportError: no such type, or a terminal report with a destination.
        """
        report_type, _, destination = text.partition(":")
        if text and (
            report_type not in REPORT_TYPES or (destination and report_type not in _DESTINATIONS)
        ):
            files = ", ".join(f"{report_type}[:DEST]" for report_type in _DESTINATIONS)
            raise ReportError(f"expected term, term-missing, {files} or nothing; found {text!r}")
        return cls(report_type, destination or _DESTINATIONS.get(report_type, ""))


@dataclass(frozen=True)
class ReportOptions:
    """What to report.

    Attributes:
        root: where relative source paths start.
        sources: report only files whose path starts or ends with one of these; all if empty.
        requests: the reports.
        exclusions: what is declared unreachable.
        exclusions_file: the name of the file that declares it, for complaints.
        fail_under: the least percentage that is no failure, None for any.
        partial: whether it is no failure that a program carries no probes, or that nothing was
            recorded at all.
    """

    root: Path
    sources: list[str]
    requests: list[ReportRequest]
    exclusions: Sequence[Exclusion] = ()
    exclusions_file: str = "exclusions"
    fail_under: float | None = None
    partial: bool = False


class Reports:
    """All reports of one session's data."""

    def __init__(self, data: CoverageData, options: ReportOptions) -> None:
        self._data = data
        self._options = options
        self._complaints: list[str] = []

    @cached_property
    def files(self) -> Mapping[str, SourceFile]:
        """The source files to report, merged, exclusions applied."""
        files = merge_sources(self._data)
        options = self._options
        self._complaints += apply_exclusions(files, options.exclusions, options.exclusions_file)
        return {path: file for path, file in files.items() if self._wanted(path)}

    def _wanted(self, path: str) -> bool:
        sources = [os.path.normpath(source) for source in self._options.sources]
        return not sources or any(path.startswith(s) or path.endswith(s) for s in sources)

    def title(self) -> str:
        """Return the heading, with the kernels."""
        kernels = ", ".join(self._data.kernels)
        return f"BPF coverage: {kernels}" if kernels else "BPF coverage"

    def lines(self) -> list[str]:
        """Return what goes to the terminal."""
        if not self.files:
            return [self._nothing()]
        types = {request.report_type for request in self._options.requests}
        shown: list[str] = []
        if types & {"term", "term-missing"}:
            missing = "term-missing" in types
            shown += term.table(self.files, missing=missing)
            notes = list(term.notes(self._data, self.files))
            if notes and missing:
                shown += ["", *notes]
            elif notes:
                shown.append(
                    f"{len(notes)} notes on kernels and unreachable branches: term-missing"
                )
        for request in self._options.requests:
            if request.destination:
                shown.append(
                    f"Coverage {request.report_type.upper()} written to {request.destination}"
                )
        return shown

    def _nothing(self) -> str:
        without = {**self._data.refused, **self._data.beyond}
        if without and not self._data.programs:
            listed = [f"{name} on {kernel}: {why}" for (kernel, name), why in without.items()]
            return f"nothing recorded; not instrumentable: {'; '.join(listed)}"
        if self._data.programs and self._options.sources:
            return f"no source file matches {', '.join(self._options.sources)}"
        if self._data.programs:
            names = sorted({data.model.program for data in self._data.programs.values()})
            return f"no source lines known of {', '.join(names)}: compile with clang -g"
        return "nothing recorded: no test loaded a BPF program (did they run in a guest: --kernel?)"

    def _gaps(self) -> Iterator[str]:
        """Yield what was asked for and not measured: a number that lacks it would look whole."""
        if not self.files:
            yield f"BPF coverage was asked for, and reached nothing: {self._nothing()}"
            return
        for (kernel, name), why in self._data.refused.items():
            yield f"BPF coverage lacks {name} on {kernel}: {why}"

    def failures(self) -> list[str]:
        """Return what makes the session fail."""
        percent = grand_total(self.files.values()).percent if self.files else 0.0
        failures = list(self._complaints)
        if not self._options.partial:
            failures += [f"{gap} (--bpf-cov-partial allows it)" for gap in self._gaps()]
        least = self._options.fail_under
        if least is not None and percent < least:
            failures.append(
                f"required BPF coverage of {least:g}% not reached, total is {percent:.2f}%"
            )
        return failures

    def write_files(self, data_file: Path) -> None:
        """Write every report that goes to a file; what cannot be written becomes a failure.

        Args:
            data_file: where to keep the data for the next session to append to.
        """
        try:
            self._data.save(data_file)
            for request in self._options.requests:
                self._write(request.report_type, Path(request.destination))
        except OSError as error:
            self._complaints.append(f"write coverage: {error}")

    def _write(self, report_type: str, target: Path) -> None:
        if report_type == "html":
            # not at the top: jinja2 and pygments cost every guest a second otherwise
            from bpfunit.coverage.html import write_html

            write_html(self._data, self.files, self._options.root, target)
        elif report_type in _DESTINATIONS:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self._text(report_type))

    def _text(self, report_type: str) -> str:
        if report_type == "lcov":
            return exchange.lcov(self.files)
        if report_type == "xml":
            return exchange.cobertura(self.files, str(self._options.root), int(time.time()))
        return self._data.to_json()
