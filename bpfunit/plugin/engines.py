"""Which engine runs the programs of a session, and the outcome *not applicable on this engine*.

A run that no real call can produce says so by NotApplicableError. That is neither a pass nor a
failure of what is tested, and not a skip that somebody asked for: it has a category of its own,
with a letter (n), a count in the last line and a list of reasons.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bpfunit import engines
from bpfunit.engines import NotApplicableError

if TYPE_CHECKING:
    from bpfunit.kernels import Kernel

CHOICES = ("testrun", "live", "both")
_CATEGORY = "not applicable"
_MODULE = Path("/sys/module/bpfunit_testrun")
_SAID = pytest.StashKey[set[str]]()
_WITHOUT_HEADERS = "no headers to build the module with"
_WITHOUT_MODULE = "no bpfunit_testrun module is loaded, so programs run by real calls"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--bpf-engine``."""
    parser.getgroup("bpfunit").addoption(
        "--bpf-engine",
        type=engines.current_name,
        choices=CHOICES,
        help="how programs run: testrun (crafted context, the default where the kernel has the"
        " module), live (attached, by real system calls; connect is its former name), or both,"
        " compared",
    )


def choose(asked: str | None) -> tuple[str, str]:
    """Return the engine for this process, and the reason when nobody asked for it.

    Args:
        asked: the value of ``--bpf-engine``, None without it.
    """
    return _choose(asked, "" if _MODULE.exists() else _WITHOUT_MODULE)


def choose_for(kernel: Kernel, asked: str | None) -> str:
    """Return, on the host, the engine that guests of a kernel will choose, in words.

    Args:
        kernel: what they boot.
        asked: the value of ``--bpf-engine``, None without it.
    """
    name, reason = _choose(asked, "" if kernel.headers else _WITHOUT_HEADERS)
    return f"engine {name} ({reason})" if reason else f"engine {name}"


def _choose(asked: str | None, no_module: str) -> tuple[str, str]:
    name = asked or os.environ.get("BPFUNIT_ENGINE")
    if name:
        return engines.current_name(name), ""
    return ("live", no_module) if no_module else (engines.DEFAULT, "")


def start(config: pytest.Config) -> None:
    """Settle the engine of this process, which has a kernel to itself; called in guests.

    The engine live is made here, before any test makes a socket: sockets belong to the cgroup
    that their maker is in.
    """
    name, reason = choose(config.getoption("--bpf-engine"))
    os.environ["BPFUNIT_ENGINE"] = name
    if name in ("live", "both"):
        engines.get("live")
    output = getattr(config, "workeroutput", None)  # xdist hands it to the controller
    if output is not None:
        output["bpfunit_engine"] = f"{name} ({reason})" if reason else name


def pytest_report_header(config: pytest.Config) -> str | None:
    """Name the engine where it was asked for."""
    asked = config.getoption("--bpf-engine")
    return f"bpf engine: {asked}" if asked else None


@pytest.fixture(scope="session")
def bpf_engine() -> str:
    """The name of the engine that runs the programs: testrun, connect or both."""
    return choose(None)[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give a run that the engine cannot produce its own outcome."""
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, NotApplicableError):
        path, line, _ = item.location
        report.outcome = "skipped"
        report.longrepr = (path, (line or 0) + 1, f"{_CATEGORY} {error.where}: {error}")
        report.not_applicable = str(error)  # type: ignore[attr-defined]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Count such a run under its own name."""
    if getattr(report, "not_applicable", None) is None:
        return None
    return _CATEGORY, "n", ("NOT APPLICABLE", {"yellow": True})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Keep what a guest said about its engine."""
    said = getattr(node, "workeroutput", {}).get("bpfunit_engine")
    config = getattr(node, "config", None)
    if said and config is not None:
        config.stash.setdefault(_SAID, set()).add(said)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the reasons, each with how many tests it kept from running."""
    engines_said: set[str] = terminalreporter.config.stash.get(_SAID, set())
    for said in sorted(engines_said):
        if "(" in said:
            terminalreporter.write_line(f"bpf engine: {said}")
    reports = terminalreporter.stats.get(_CATEGORY, [])
    if not reports:
        return
    terminalreporter.section(f"{_CATEGORY} on this engine")
    for report in reports:
        terminalreporter.write_line(f"{report.nodeid}: {report.not_applicable}")
