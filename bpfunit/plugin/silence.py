"""What runs where, said when the terminal has been silent for long; nothing where there is none.

A test of minutes, or a kernel that boots, looks like a hang to whoever waits for a dot. xdist's
loop waits for events of its workers with a limit of two seconds, so what it waits on is the place
to look at the clock from: in the same thread that writes to the terminal.
"""

from __future__ import annotations

import time
from queue import Empty
from typing import Any

import pytest

FIRST = 15.0  # seconds of silence until the first line; each further one after twice as many


class Silence:
    """In the controller: watches what each worker does.

    Args:
        config: pytest's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._doing: dict[Any, tuple[str, float]] = {}  # by gateway: what, and since when
        self._quiet_since = time.monotonic()
        self._next = FIRST

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Take part in xdist's waiting, if somebody looks at a terminal."""
        xdist: Any = self._config.pluginmanager.get_plugin("dsession")
        terminal: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if xdist is None or terminal is None or not terminal.isatty:
            return
        self._terminal = terminal
        self._get, self._start = xdist.queue.get, xdist.worker_logstart
        self._finish = xdist.worker_logfinish
        xdist.queue.get = self._wait
        xdist.worker_logstart, xdist.worker_logfinish = self._logstart, self._logfinish

    def _wait(self, timeout: float) -> Any:
        try:
            event = self._get(timeout=timeout)
        except Empty:
            silent = time.monotonic() - self._quiet_since
            if silent >= self._next:
                self._next *= 2
                self._say()
            raise
        self._quiet_since, self._next = time.monotonic(), FIRST
        return event

    def _say(self) -> None:
        now = time.monotonic()
        for gateway, (what, since) in self._doing.items():
            self._terminal.ensure_newline()
            self._terminal.write_line(f"bpfunit: {what} ({gateway.id}), for {now - since:.0f} s")

    def _begin(self, gateway: Any, what: str) -> None:
        self._doing[gateway] = (what, time.monotonic())

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_newgateway(self, gateway: Any) -> None:
        """A worker starts."""
        self._begin(gateway, f"{self._name(gateway)} starts")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self, node: Any) -> None:
        """It is up."""
        self._begin(node.gateway, f"{self._name(node.gateway)} collects tests")

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any) -> None:
        """It waits for tests."""
        self._doing.pop(node.gateway, None)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """It is gone."""
        self._doing.pop(node.gateway, None)

    def _logstart(self, node: Any, nodeid: str, location: Any) -> None:
        self._begin(node.gateway, f"{nodeid} runs")
        self._start(node, nodeid, location)

    def _logfinish(self, node: Any, nodeid: str, location: Any) -> None:
        self._doing.pop(node.gateway, None)
        self._finish(node, nodeid, location)

    def _name(self, gateway: Any) -> str:
        host: Any = self._config.pluginmanager.get_plugin("bpfunit-host")
        return f"a guest of {host.label_of_gateway(gateway)}" if host else "a worker"
