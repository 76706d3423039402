"""Branch coverage of BPF programs as pytest options, in the manner of pytest-cov.

Two plugins. `Recording` lives where tests run, in a guest's worker or in this very process, and
hangs what each test hit on the report of its teardown. `Reporting` lives where the user looks: it
takes those reports apart, whichever way they came, and writes the tables and files.
"""

from __future__ import annotations

import platform
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bpfunit.coverage.data import CoverageData, payload
from bpfunit.coverage.exclusions import Exclusion, read_exclusions
from bpfunit.coverage.probes import Mode
from bpfunit.coverage.recorder import CoverageRecorder
from bpfunit.coverage.reports import REPORT_TYPES, ReportOptions, ReportRequest, Reports
from bpfunit.errors import BpfunitError
from bpfunit.rewrite import ambient

_ATTRIBUTE = "bpf_coverage"
_DATA_FILE = ".bpf-coverage.json"
_EXCLUSIONS = "bpf-coverage.toml"


def _report_request(text: str) -> ReportRequest:
    try:
        return ReportRequest.parse(text)
    except BpfunitError as error:
        raise pytest.UsageError(f"--bpf-cov-report: {error}") from None


def _exclusions(path: Path) -> list[Exclusion]:
    try:
        return read_exclusions(path)
    except BpfunitError as error:
        raise pytest.UsageError(str(error)) from None


def _kept_data(path: Path) -> CoverageData:
    try:
        return CoverageData.load(path)
    except BpfunitError as error:
        raise pytest.UsageError(f"--bpf-cov-append: {error}; remove the file") from None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("bpfunit coverage", "branch coverage of BPF programs")
    group.addoption(
        "--bpf-cov",
        metavar="SOURCE",
        action="append",
        nargs="?",
        const="",
        default=[],
        help="Record branch coverage of the BPF programs that tests load. With SOURCE, report "
        "only source files whose path starts or ends with it. Multi-allowed.",
    )
    group.addoption(
        "--bpf-cov-report",
        metavar="TYPE",
        action="append",
        default=[],
        help=f"Type of report: {', '.join(REPORT_TYPES)}; all but the first two may be followed by "
        "':DEST'. 'term' by default; an empty TYPE for none. Multi-allowed.",
    )
    group.addoption(
        "--bpf-cov-fail-under",
        metavar="MIN",
        type=float,
        default=None,
        help="Fail if the total coverage is less than MIN percent.",
    )
    group.addoption(
        "--bpf-cov-partial",
        action="store_true",
        default=False,
        help="Do not fail when a program could not be given probes, or when nothing was recorded.",
    )
    group.addoption(
        "--bpf-cov-data",
        metavar="FILE",
        default=_DATA_FILE,
        help=f"Where to keep the data for --bpf-cov-append; {_DATA_FILE} by default.",
    )
    group.addoption(
        "--bpf-cov-mode",
        choices=[mode.value for mode in Mode],
        default=Mode.FLAGS.value,
        help="What a probe records: whether it was passed in a test (flags, the default), or how "
        "often (counters, 64 bits).",
    )
    group.addoption(
        "--bpf-cov-exclude",
        metavar="FILE",
        default=None,
        help=f"Branches declared unreachable, with reasons; {_EXCLUSIONS} by default.",
    )
    group.addoption(
        "--bpf-cov-append",
        action="store_true",
        default=False,
        help="Add to the data of the last run, kept in the file of --bpf-cov-data.",
    )
    group.addoption(
        "--no-bpf-path",
        action="store_true",
        default=False,
        help="Load programs without probes when coverage is not asked for; a failing test's report "
        "then lacks the path that the program took.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the two halves where they belong.

    Raises:
        pytest.UsageError: a report of unknown type, a file of exclusions or kept data that cannot
            be read.
    """
    config.addinivalue_line(
        "markers", "bpf_plain: load BPF programs without probes, for measurements"
    )
    option = config.option
    requests = [_report_request(text) for text in option.bpf_cov_report]
    if (option.bpf_cov or not option.no_bpf_path) and not option.collectonly:
        recording = Recording(Mode(option.bpf_cov_mode), attach=bool(option.bpf_cov))
        config.pluginmanager.register(recording, "bpfunit-coverage-recording")
    if option.bpf_cov and not hasattr(config, "workerinput"):
        exclude = option.bpf_cov_exclude
        default = config.rootpath / _EXCLUSIONS
        declared = Path(exclude) if exclude else default
        options = ReportOptions(
            root=config.rootpath,
            sources=[source for source in option.bpf_cov if source],
            requests=requests or [ReportRequest("term")],
            exclusions=_exclusions(declared) if exclude or default.is_file() else (),
            exclusions_file=declared.name,
            fail_under=option.bpf_cov_fail_under,
            partial=option.bpf_cov_partial,
        )
        data_file = config.rootpath / option.bpf_cov_data
        reporting = Reporting(options, data_file, append=option.bpf_cov_append)
        config.pluginmanager.register(reporting, "bpfunit-coverage-reporting")


def _is_plain(item: pytest.Item) -> bool:
    """Whether a test measures, so that probes would be in the way."""
    fixtures = getattr(item, "fixturenames", ())
    return "benchmark" in fixtures or item.get_closest_marker("bpf_plain") is not None


class Recording:
    """Instruments what tests load, and attaches what each hit to its report.

    Args:
        mode: what a probe records.
        attach: whether coverage is wanted, and not just the path of a failing run.
    """

    def __init__(self, mode: Mode, *, attach: bool) -> None:
        self._recorder = CoverageRecorder(mode)
        self._attach = attach
        self._sent: set[str] = set()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Instrument what is loaded within one test, its fixtures included."""
        with ExitStack() as stack:
            if _is_plain(item):
                stack.enter_context(ambient.none())
            else:
                stack.enter_context(self._recorder.recording())
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Read the probes once per test, when it is over."""
        report = yield
        if self._attach and call.when == "teardown":
            setattr(report, _ATTRIBUTE, self._payload())
        return report

    def _payload(self) -> dict[str, Any]:
        hits = self._recorder.take()
        new = [model for model in self._recorder.models() if model.key not in self._sent]
        self._sent.update(model.key for model in new)
        recorder = self._recorder
        return payload(new, recorder.refused, platform.release(), hits, recorder.beyond)

    def pytest_unconfigure(self) -> None:
        """Release the probes' maps."""
        self._recorder.close()


class Reporting:
    """Collects from all workers and kernels, and reports at the end."""

    def __init__(self, options: ReportOptions, data_file: Path, *, append: bool) -> None:
        self._options = options
        self._data_file = data_file
        self._data = CoverageData()
        if append and data_file.is_file():
            self._data = _kept_data(data_file)
        self._reports: Reports | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a test's teardown report carries."""
        found = getattr(report, _ATTRIBUTE, None)
        if found is not None:
            self._data.add_payload(report.nodeid, found)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the reports; fail the session for what is too little, lacking or declared wrong.

        Last, so that nobody who sets the exit code from the tests alone sets it back.
        """
        self._reports = Reports(self._data, self._options)
        self._reports.write_files(self._data_file)
        if self._reports.failures() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the table, then what was written and what is wrong."""
        if self._reports is None:
            return
        terminalreporter.section(self._reports.title())
        for line in self._reports.lines():
            terminalreporter.write_line(line)
        for line in self._reports.failures():
            terminalreporter.write_line(f"FAIL {line}", red=True, bold=True)
