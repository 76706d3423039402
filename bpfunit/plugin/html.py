"""``--bpf-html FILE``: the run as one HTML file; the work is in :mod:`bpfunit.report`."""

from __future__ import annotations

import datetime as dt
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bpfunit.coverage.reports import ReportRequest
from bpfunit.guest import in_guest
from bpfunit.report import KernelInfo, Link, Outcome, OutcomeKind, Run, Section, write_html

_HOST = "host"
_CRASHED = "???"  # what xdist gives as the phase of a test whose worker died
_ORDER = list(OutcomeKind)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("bpfunit").addoption(
        "--bpf-html",
        metavar="FILE",
        type=Path,
        default=None,
        help="Write the run as one HTML file: kernels by tests, logs, paths taken, links.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the collector where reports arrive: on the host, not in its workers."""
    path: Path | None = config.option.bpf_html
    if path is not None and not in_guest() and not hasattr(config, "workerinput"):
        collector = HtmlCollector(config, config.invocation_params.dir / path)
        config.pluginmanager.register(collector, "bpfunit-html")


class HtmlCollector:
    """Gathers reports as they come and writes the file at the end.

    Args:
        config: pytest's.
        path: the file to write.
    """

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._path = path
        self._started = time.time()
        self._releases: dict[str, str] = {}
        self._outcomes: dict[tuple[str, str], Outcome] = {}

    def pytest_sessionstart(self) -> None:
        """Learn which kernels the tests run on."""
        self._releases = {target.label: target.kernel.release for target in self._targets()}

    def _targets(self) -> list[Any]:
        host = self._config.pluginmanager.get_plugin("bpfunit-host")
        return list(host.targets) if host else []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take one phase of one test."""
        test, _, label = report.nodeid.rpartition("@")
        kernel = self._releases.get(label)
        if kernel is None:
            test, kernel = report.nodeid, _HOST
        outcome = self._outcomes.setdefault(
            (test, kernel), Outcome(test, kernel, OutcomeKind.PASSED)
        )
        outcome.seconds += getattr(report, "duration", 0.0)
        kind = kind_of(report)
        if _ORDER.index(kind) < _ORDER.index(outcome.kind):
            outcome.kind = kind
        if report.longrepr and kind is not OutcomeKind.PASSED:
            outcome.reason = outcome.reason or _reason(report)
            if kind.is_bad:
                title = "traceback" if report.when == "call" else f"traceback, {report.when}"
                outcome.sections.append(Section(title, report.longreprtext))
        known = {(section.title, section.text) for section in outcome.sections}
        outcome.sections += [
            Section(title, text)
            for title, text in report.sections  # each phase repeats those of the phases before
            if text.strip() and (title, text) not in known
        ]

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, exitstatus: int
    ) -> None:
        """Write the file, now that the reports it links to are there."""
        run = Run(
            title=f"bpfunit: {self._config.rootpath.name}",
            command=shlex.join([Path(sys.argv[0]).name, *self._config.invocation_params.args]),
            started=dt.datetime.fromtimestamp(self._started).astimezone(),
            seconds=time.time() - self._started,
            exit_code=int(exitstatus),
            kernels=self._kernels(),
            outcomes=list(self._outcomes.values()),
            links=self._links(),
            remarks=[
                f"kernel {target.kernel.release}: {target.kernel.note}"
                for target in self._targets()
                if target.kernel.note
            ],
        )
        try:
            write_html(run, self._path)
        except OSError as error:
            terminalreporter.write_line(
                f"FAIL write the HTML report: {self._path}: {(error.strerror or '').lower()}",
                red=True,
            )
        else:
            terminalreporter.write_line(f"HTML report written to {self._path}")

    def _kernels(self) -> list[KernelInfo]:
        found = [
            KernelInfo(target.kernel.release, (target.kernel.source,)) for target in self._targets()
        ]
        if any(kernel == _HOST for _, kernel in self._outcomes):
            found.append(KernelInfo(_HOST))
        return found

    def _links(self) -> list[Link]:
        option = self._config.option
        found = []
        for text in option.bpf_cov_report if option.bpf_cov else ():
            request = ReportRequest.parse(text)
            if request.kind == "html":
                index = self._config.rootpath / request.destination / "index.html"
                found.append(self._link("Branch coverage", index))
        histogram = getattr(option, "benchmark_histogram", None)
        if histogram:
            prefix = self._config.invocation_params.dir / histogram
            found += [
                self._link(f"Benchmarks: {plot.stem}", plot)
                for plot in sorted(prefix.parent.glob(f"{prefix.name}*.svg"))
                if plot.stat().st_mtime >= self._started
            ]
        return found

    def _link(self, label: str, target: Path) -> Link:
        return Link(label, Path(os.path.relpath(target, self._path.parent)).as_posix())


def kind_of(report: pytest.TestReport) -> OutcomeKind:
    """Return what a report says about its test; a passed phase leaves the verdict to the others."""
    expected = hasattr(report, "wasxfail")
    if report.skipped:
        return OutcomeKind.XFAILED if expected else OutcomeKind.SKIPPED
    if report.passed:
        return OutcomeKind.XPASSED if expected and report.when == "call" else OutcomeKind.PASSED
    if report.when == _CRASHED:
        return OutcomeKind.CRASHED
    return OutcomeKind.FAILED if report.when == "call" else OutcomeKind.ERROR


def _reason(report: pytest.TestReport) -> str:
    """Return the one line that says why a test did not pass."""
    longrepr: Any = report.longrepr
    if isinstance(longrepr, tuple):  # (file, line, reason) of a skip
        return str(longrepr[2])
    if crash := getattr(longrepr, "reprcrash", None):
        return str(crash.message).partition("\n")[0]
    return str(getattr(report, "wasxfail", "")) or str(longrepr).partition("\n")[0]
