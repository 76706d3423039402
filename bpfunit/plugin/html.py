"""``--bpf-html FILE``: the run as one HTML file; the work is in :mod:`bpfunit.report`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bpfunit.coverage.reports import ReportRequest
from bpfunit.plugin.outcomes import collector_of, is_controller
from bpfunit.report import Link, write_html


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
    """Have the file written where reports arrive: on the host, not in its workers."""
    path: Path | None = config.option.bpf_html
    if path is not None and is_controller(config):
        report = HtmlReport(config, config.invocation_params.dir / path)
        config.pluginmanager.register(report, "bpfunit-html")


class HtmlReport:
    """Writes the file at the end.

    Args:
        config: pytest's.
        path: the file to write.
    """

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._path = path
        self._outcomes = collector_of(config)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the file, now that the reports it links to are there."""
        run = self._outcomes.run()
        run.links = self._links()
        try:
            write_html(run, self._path)
        except OSError as error:
            terminalreporter.write_line(
                f"FAIL write the HTML report: {self._path}: {(error.strerror or '').lower()}",
                red=True,
            )
        else:
            terminalreporter.write_line(f"HTML report written to {self._path}")

    def _links(self) -> list[Link]:
        option = self._config.option
        found = []
        for text in option.bpf_cov_report if option.bpf_cov else ():
            request = ReportRequest.parse(text)
            if request.report_type == "html":
                index = self._config.rootpath / request.destination / "index.html"
                found.append(self._link("Branch coverage", index))
        histogram = getattr(option, "benchmark_histogram", None)
        if histogram:
            prefix = self._config.invocation_params.dir / histogram
            found += [
                self._link(f"Benchmarks: {plot.stem}", plot)
                for plot in sorted(prefix.parent.glob(f"{prefix.name}*.svg"))
                if plot.stat().st_mtime >= self._outcomes.started
            ]
        return found

    def _link(self, label: str, target: Path) -> Link:
        return Link(label, Path(os.path.relpath(target, self._path.parent)).as_posix())
