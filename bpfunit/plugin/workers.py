"""Workers that end as xdist does not expect: every test of theirs keeps an outcome, or is missing.

xdist 3 takes a worker that reported an internal error out of its books and forgets which test it
was running; one that ends before its work is done (``pytest.exit`` in a test) trips an assertion,
and a report that it cannot read counts the same worker as gone twice.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from bpfunit.plugin.carry import FAILED_AT_END, INTERRUPTED, NOT_FOUND
from bpfunit.plugin.scheduler import MatrixScheduling


class InternalError(str):
    """What took a worker down from within: pytest's own account of it."""

    __slots__ = ()

    @property
    def summary(self) -> str:
        """Its last line, which names the exception."""
        return self.strip().rpartition("\n")[2].strip()


class Workers:
    """In the controller: keeps xdist's books when a worker ends.

    Args:
        config: pytest's.

    Attributes:
        status: the exit status that a test asked for with ``pytest.exit``; 0 if none did.
        interrupted: whether a worker was interrupted, by whatever.
        deaths: how many workers ended before their work was done.
        not_found: what of the command line a worker did not find, in pytest's words.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._gone: set[Any] = set()
        self.status = 0
        self.interrupted = False
        self.deaths = 0
        self.not_found: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Take xdist's place where a worker ends; it has no hooks there."""
        self._xdist: Any = self._config.pluginmanager.get_plugin("dsession")
        if self._xdist is None:
            return
        self._take_down = self._xdist.worker_errordown
        self._xdist.worker_errordown = self._errordown
        self._xdist.worker_internal_error = self._internal_error
        self._xdist.worker_workerfinished = self._finished
        if not self._config.option.kernel and self._xdist._max_worker_restart is None:
            # Else a worker that dies while it collects is replaced for ever.
            self._xdist._max_worker_restart = 4 * len(self._config.option.tx)

    def _errordown(self, node: Any, error: object) -> None:
        """Count a worker as gone once, however often that is said."""
        if node not in self._gone:
            self._gone.add(node)
            self.deaths += 1
            self._take_down(node, error)

    def _internal_error(self, node: Any, formatted_error: str) -> None:
        """Take a worker for dead that pytest itself failed in, and name the test it ran."""
        if node in self._gone:
            return
        error = InternalError(formatted_error)
        was_running = self._is_running(node)
        self._errordown(node, error)
        node.gateway.exit()
        if not was_running:
            self._report_internal_error(node, error)

    def _is_running(self, node: Any) -> bool:
        """Tell whether a worker has a test to run still, without taking it from the scheduler."""
        scheduler = self._xdist.sched
        if isinstance(scheduler, MatrixScheduling):
            scheduler = scheduler.of(node)
        return bool(getattr(scheduler, "node2pending", {}).get(node))

    def _report_internal_error(self, node: Any, error: InternalError) -> None:
        nodeid = f"internal error in {self._name(node)}"
        report = pytest.TestReport(nodeid, (nodeid, None, nodeid), {}, "failed", error, "setup")
        if hasattr(node, "workerinfo"):  # else it ended before it was ready, and pytest asks for it
            report.node = node  # type: ignore[attr-defined]
        report.bpfunit_death = "INTERNAL_ERROR"  # type: ignore[attr-defined]
        self._config.hook.pytest_runtest_logreport(report=report)

    def _name(self, node: Any) -> str:
        host: Any = self._config.pluginmanager.get_plugin("bpfunit-host")
        kernel = f"@{host.label_of_gateway(node.gateway)}" if host else ""
        return f"{node.gateway.id}{kernel}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show what was asked for and is not there, as pytest does without workers."""
        for said in self.not_found:
            terminalreporter.write_line(f"ERROR: {said}", red=True)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_handlecrashitem(self, report: pytest.TestReport) -> None:
        """Put a worker's internal error on the report of the test that it ran."""
        error = getattr(getattr(report, "node", None), "bpfunit_error", None)
        if error:
            report.longrepr = f"the worker ended while this test ran: {error}"

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Keep an internal error until xdist names the test."""
        if isinstance(error, InternalError):
            node.bpfunit_error = error

    def _finished(self, node: Any) -> None:
        """Take what a worker says at its end: it was told to, was interrupted, or just stopped."""
        if node in self._gone:
            return
        output = node.workeroutput
        what, status = output.get(INTERRUPTED, ("", 0))
        stopped = output["shouldfail"] or output["shouldstop"] or what
        if not stopped and self._is_running(node):
            self._errordown(node, "ended before its tests did")
            return
        self._gone.add(node)
        self._config.hook.pytest_testnodedown(node=node, error=None)
        if failed := output.get(FAILED_AT_END):
            self._report_internal_error(node, InternalError(failed))
        for said in output.get(NOT_FOUND, ()):
            if (words := f"{said} (in {self._name(node)})") not in self.not_found:
                self.not_found.append(words)
        if what:
            self.interrupted = True
            self.status = self.status or status
            stopped = f"{what} (in {node.gateway.id})"
        if stopped and not self._xdist.shouldstop:
            self._xdist.shouldstop = stopped
        with contextlib.suppress(KeyError):  # it may have ended before it was ready
            self._xdist.sched.remove_node(node)
        self._xdist._active_nodes.discard(node)
