"""The exit status of a run: the worst that anybody says, and never 0 while a test has no outcome.

Many have a say in it: pytest, xdist, coverage, any plugin of the project. Whoever writes
``session.exitstatus`` last would win, and so hide what the others found. Here the worst counts:
once when the session is over, and once more when pytest returns it, for whoever wrote it later.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.junitxml import LogXML

from bpfunit.plugin.outcomes import OutcomeCollector, collector_of, is_controller
from bpfunit.report import Status

if TYPE_CHECKING:
    from bpfunit.plugin.workers import Workers

# Exit codes beside pytest's own 0 to 5.
DEATHS = 70  # a guest died, or tests have no outcome; what ran did not fail
DEATHS_AND_FAILURES = 71  # the same, and tests failed

_NAME = "bpfunit-verdict"
_GATEWAY = "bpfunit.plugin.gateway"
_REPORTS = ("matrix_json", "matrix_markdown", "matrix_junit", "bpf_html")
_FAILED = (Status.FAILED, Status.ERROR)
_ORDER = (
    pytest.ExitCode.OK,
    pytest.ExitCode.NO_TESTS_COLLECTED,
    pytest.ExitCode.TESTS_FAILED,
    None,  # here stands every code that pytest does not know
    pytest.ExitCode.INTERRUPTED,
    pytest.ExitCode.USAGE_ERROR,
    DEATHS,
    DEATHS_AND_FAILURES,
    pytest.ExitCode.INTERNAL_ERROR,
)


def worst(*statuses: int) -> int:
    """Return the exit code that says most of what went wrong.

    Args:
        statuses: exit codes; one that the system would cut to 0, such as 256, counts as 1.
    """
    whole = [1 if status and status % 256 == 0 else int(status) for status in statuses]
    return max(whole, key=lambda status: _ORDER.index(status if status in _ORDER else None))


def pytest_configure(config: pytest.Config) -> None:
    """Have this process decide on the exit status, where it is the one that hears of every test.

    That is the controller of a run in guests, or of one that reports by kernel; in others xdist is
    not ours to correct.
    """
    option = config.option
    wanted = option.kernel or any(getattr(option, name) for name in _REPORTS)
    wanted = wanted or any(_GATEWAY in spec for spec in getattr(option, "tx", None) or ())
    if not wanted or not is_controller(config) or option.collectonly or option.setuponly:
        return
    # not at the top: guests load this module too
    from bpfunit.plugin.silence import Silence
    from bpfunit.plugin.workers import Workers

    config.pluginmanager.register(Silence(config), "bpfunit-silence")
    workers = Workers(config)
    config.pluginmanager.register(workers, "bpfunit-workers")
    config.pluginmanager.register(Verdict(config, collector_of(config), workers), _NAME)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, Any]:
    """Return no better status than the session ended with, whatever was written since."""
    status = yield
    found: Verdict | None = config.pluginmanager.get_plugin(_NAME)
    return status if found is None or status is None else worst(status, found.status)


class Verdict:
    """Decides on the exit status.

    Args:
        config: pytest's.
        outcomes: what was heard of every test.
        workers: what was heard of their ends.

    Attributes:
        status: the exit status as decided; 0 before.
    """

    def __init__(self, config: pytest.Config, outcomes: OutcomeCollector, workers: Workers) -> None:
        self._config = config
        self._outcomes = outcomes
        self._workers = workers
        self._limit_reached = False
        self.status = 0

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Tell ``-x``, for which xdist interrupts its own loop, from a user's Ctrl-C."""
        from xdist.dsession import Interrupted

        self._limit_reached = isinstance(excinfo.value, Interrupted)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int
    ) -> Generator[None, Any, Any]:
        """Decide, when everybody else has; the terminal's summary and all files come after."""
        self._name_unfinished()
        try:
            return (yield)
        finally:
            said = {int(exitstatus), int(session.exitstatus)}
            self.status = session.exitstatus = self._decide(
                said, session.shouldfail or session.shouldstop
            )

    def _name_unfinished(self) -> None:
        """Have ``--junitxml`` name the tests that were cut off, which it would leave nameless."""
        junit = next(
            (p for p in self._config.pluginmanager.get_plugins() if isinstance(p, LogXML)), None
        )
        if junit is None:
            return
        for outcome in self._outcomes.missing():
            last = self._outcomes.last_report(outcome)
            if last is not None and not last.failed:
                cut = pytest.TestReport(
                    last.nodeid, last.location, {}, "failed", outcome.reason, "setup"
                )
                cut.node = getattr(last, "node", None)  # type: ignore[attr-defined]
                junit.pytest_runtest_logreport(cut)

    def _decide(self, said: set[int], told_to_stop: object) -> int:
        statuses = self._outcomes.statuses()
        failed = bool(self._outcomes.uncollected) or not statuses.isdisjoint(_FAILED)
        is_missing = Status.MISSING in statuses
        died = Status.CRASHED in statuses or self._workers.deaths > 0
        stopped = told_to_stop or self._limit_reached or pytest.ExitCode.INTERRUPTED in said
        if asked := self._workers.status:  # what a test gave to pytest.exit
            said = said - {int(pytest.ExitCode.INTERRUPTED)} | {asked}
        elif failed and self._limit_reached and not self._workers.interrupted:
            said.discard(int(pytest.ExitCode.INTERRUPTED))  # pytest alone says 1 after -x
        if failed:
            said.add(int(pytest.ExitCode.TESTS_FAILED))
        if self._workers.not_found:
            said.add(int(pytest.ExitCode.USAGE_ERROR))
        if died or (is_missing and not stopped):
            said.add(DEATHS_AND_FAILURES if failed else DEATHS)
        status = worst(*said)
        return DEATHS if is_missing and status == pytest.ExitCode.OK else status
