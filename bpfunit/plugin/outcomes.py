"""From pytest's reports to a run grouped by kernel; ``--bpf-html`` and ``--matrix-*`` show it.

What was collected on each kernel is held against what was reported there: a test whose guest went
away before it ran is *missing*, and never simply not there.
"""

from __future__ import annotations

import datetime as dt
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from bpfunit.guest import in_guest
from bpfunit.plugin.carry import text
from bpfunit.plugin.engines import choose_for
from bpfunit.report import KernelInfo, Outcome, Run, Section, Status

HOST = "host"
"""The kernel of tests that ran in no guest."""

_NAME = "bpfunit-outcomes"
_CRASHED = "???"  # what xdist gives as the phase of a test whose worker died
_NEVER_RAN = "NEVER_RAN"  # what the host's side gives as the death of a test that had no guest
_ORDER = list(Status)
_UNDECIDED = (Status.PASSED, Status.MISSING)


def is_controller(config: pytest.Config) -> bool:
    """Tell whether reports arrive in this process: on the host, and not in one of its workers."""
    return not in_guest() and not hasattr(config, "workerinput")


def collector_of(config: pytest.Config) -> OutcomeCollector:
    """Return the run's collector; to be called first while pytest configures itself."""
    found: OutcomeCollector | None = config.pluginmanager.get_plugin(_NAME)
    if found is None:
        found = OutcomeCollector(config)
        config.pluginmanager.register(found, _NAME)
    return found


class OutcomeCollector:
    """Gathers what was collected and what was reported.

    Args:
        config: pytest's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.started = time.time()
        self._kernels: dict[str, KernelInfo] = {}  # by label, in the order of the report
        self._collected: dict[tuple[str, str], None] = {}
        self._total = 0  # tests of all kernels, as far as is known
        self._called: set[tuple[str, str]] = set()
        self._reports: dict[tuple[str, str], pytest.TestReport] = {}  # the last of each
        self._outcomes: dict[tuple[str, str], Outcome] = {}
        self._remarks: dict[str, None] = {}
        self.uncollected: dict[str, None] = {}  # ids of files that could not be collected

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Learn which kernels the tests shall run on."""
        self._session = session
        host = self._config.pluginmanager.get_plugin("bpfunit-host")
        for target in host.targets if host else ():
            kernel = target.kernel
            notes = (kernel.source, choose_for(kernel, self._config.option.bpf_engine))
            self._kernels[target.label] = KernelInfo(
                kernel.release, notes, target.label, interpreted=kernel.interprets
            )
            if kernel.note:
                self._remarks[f"kernel {kernel.release}: {kernel.note}"] = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Take what was collected in this very process."""
        if not self._config.option.collectonly:
            self._take_collection([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Take what was collected in a guest."""
        self._take_collection(ids)

    def _take_collection(self, ids: Sequence[str]) -> None:
        # A guest that was not started from here (``--tx ssh=…``) is known by what its ids end in.
        labels = {nodeid.rpartition("@")[2] for nodeid in ids if "@" in nodeid}
        if len(labels) == 1 and all("@" in nodeid for nodeid in ids):
            label = labels.pop()
            if "]" not in label and "::" not in label:
                self._kernels.setdefault(label, KernelInfo(label, (), label))
        self._collected.update(dict.fromkeys(map(self._split, ids)))
        self._total = self._expected_tests()

    def _split(self, nodeid: str) -> tuple[str, str]:
        """Return a test's id without its kernel, and the kernel's release."""
        test, _, label = nodeid.rpartition("@")
        known = self._kernels.get(label)
        return (test, known.name) if known else (nodeid, HOST)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Remember files that could not be collected; xdist does not say on which kernel."""
        if report.failed:
            self.uncollected[report.nodeid] = None
            reason = report.longreprtext.strip().rpartition("\n")[2]
            self._remarks[f"{report.nodeid} could not be collected: {reason}"] = None

    @pytest.hookimpl(tryfirst=True)  # before the terminal works out its percentage
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take one phase of one test."""
        if self._kernels:
            self._session.testscollected = self._total
        key = self._split(report.nodeid)
        if str(report.outcome) == "rerun":  # pytest-rerunfailures: this attempt does not count
            self._outcomes.pop(key, None)
            return
        outcome = self._outcomes.setdefault(key, Outcome(*key, Status.PASSED))
        self._reports[key] = report
        outcome.seconds += getattr(report, "duration", 0.0)
        if report.user_properties:
            outcome.properties = [(text(key), text(value)) for key, value in report.user_properties]
        if report.when == "call":
            self._called.add(key)
        status = status_of(report)
        if status is Status.CRASHED:
            outcome.death = getattr(report, "bpfunit_death", "").lower()
        if _ORDER.index(status) < _ORDER.index(outcome.status):
            outcome.status = status
        if report.longrepr and status is not Status.PASSED:
            outcome.reason = outcome.reason or _reason(report)
            if status.is_bad:
                title = "traceback" if report.when == "call" else f"traceback, {report.when}"
                outcome.sections.append(Section(title, report.longreprtext))
        known = {(section.title, section.text) for section in outcome.sections}
        outcome.sections += [
            Section(title, body)
            for title, body in report.sections  # each phase repeats those of the phases before
            if body.strip() and (title, body) not in known
        ]

    def _expected_tests(self) -> int:
        """Return how many tests all kernels have together; xdist counts those of one."""
        found = Counter(kernel for _, kernel in self._collected)
        to_come = sum(kernel.name not in found for kernel in self._kernels.values())
        return found.total() + to_come * max(found.values(), default=0)

    def run(self) -> Run:
        """Return the run as it is now."""
        missing = self.missing()  # may find that a test which seemed to pass did not
        never_ran = [outcome for outcome in missing if self.last_report(outcome) is None]
        outcomes = [*self._outcomes.values(), *never_ran]
        kernels = list(self._kernels.values())
        if any(outcome.kernel == HOST for outcome in outcomes):
            kernels.append(KernelInfo(HOST))
        return Run(
            title=f"bpfunit: {self._config.rootpath.name}",
            command=shlex.join(["pytest", *self._config.invocation_params.args]),
            started=dt.datetime.fromtimestamp(self.started).astimezone(),
            seconds=time.time() - self.started,
            exit_code=int(self._session.exitstatus),
            kernels=kernels,
            outcomes=outcomes,
            remarks=list(self._remarks),
        )

    def last_report(self, outcome: Outcome) -> pytest.TestReport | None:
        """Return the last report of a test, None where none came."""
        return self._reports.get((outcome.test, outcome.kernel))

    def statuses(self) -> set[Status]:
        """Return the statuses of outcomes that there are, missing ones included."""
        missing = self.missing()  # may find that a test which seemed to pass did not
        return {outcome.status for outcome in (*self._outcomes.values(), *missing)}

    def missing(self) -> list[Outcome]:
        """Return the tests that were collected, or should have been, and never came to their end.

        A kernel on which nothing at all was collected misses the tests of all the others.
        """
        expected = dict(self._collected)
        reached = {kernel for _, kernel in self._collected}
        for kernel in self._kernels.values():
            if kernel.name not in reached:
                expected.update({(test, kernel.name): None for test, _ in self._collected})
        found = []
        for key in expected:
            outcome = self._outcomes.get(key)
            if outcome is None:
                never = "never ran" if key in self._collected else "no guest came to collect it"
                found.append(Outcome(*key, Status.MISSING, reason=never))
            elif key not in self._called and outcome.status in _UNDECIDED:
                outcome.status = Status.MISSING
                outcome.reason = outcome.reason or "the run ended before the test did"
                found.append(outcome)
        return found


def status_of(report: pytest.TestReport) -> Status:
    """Return what a report says about its test; a passed phase leaves the verdict to the others."""
    if getattr(report, "bpfunit_death", None) == _NEVER_RAN:
        return Status.MISSING
    if report.when == _CRASHED or hasattr(report, "bpfunit_death"):
        return Status.CRASHED
    if getattr(report, "not_applicable", None) is not None:
        return Status.NOT_APPLICABLE
    expected = hasattr(report, "wasxfail")
    if report.skipped:
        return Status.XFAILED if expected else Status.SKIPPED
    if report.passed:
        return Status.XPASSED if expected and report.when == "call" else Status.PASSED
    return Status.FAILED if report.when == "call" else Status.ERROR


def _reason(report: pytest.TestReport) -> str:
    """Return the one line that says why a test did not pass."""
    longrepr: Any = report.longrepr
    if isinstance(longrepr, tuple):  # (file, line, reason) of a skip
        return str(longrepr[2])
    if crash := getattr(longrepr, "reprcrash", None):
        return str(crash.message).partition("\n")[0]
    return str(getattr(report, "wasxfail", "")) or str(longrepr).partition("\n")[0]
