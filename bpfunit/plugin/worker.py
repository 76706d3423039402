"""The worker's half: what pytest does inside a guest."""

from __future__ import annotations

import faulthandler
import os
import re
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bpfunit._sys import libc
from bpfunit.plugin import engines
from bpfunit.plugin.bench import GuestBenchmarks

if TYPE_CHECKING:
    from collections.abc import Generator

LABEL_VARIABLE = "BPFUNIT_KERNEL_LABEL"
TEST_TIMEOUT_VARIABLE = "BPFUNIT_TEST_TIMEOUT"
FOREIGN_VARIABLE = "BPFUNIT_FOREIGN"  # set in a guest of another architecture than the host's
HOST_ITEMS = "bpfunit_host_items"  # in the worker's output: how many were left out


def register(config: pytest.Config) -> None:
    """Set up the worker: load the kernel module, know the kernel's name."""
    label = os.environ.get(LABEL_VARIABLE, os.uname().release)
    config.pluginmanager.register(WorkerSide(config, label), "bpfunit-worker")
    if config.pluginmanager.hasplugin("benchmark"):
        config.pluginmanager.register(GuestBenchmarks(label), "bpfunit-guest-benchmarks")
    if os.environ.get(FOREIGN_VARIABLE) and not _fits_this_machine("hypothesis"):
        # its plugin imports it for the header of a verbose run, which would end the worker
        config.pluginmanager.unregister(name="hypothesispytest")
    # A test id copied from a report names the kernel, the file system does not.
    config.args[:] = [re.sub(r"(::.*)@[^@\]:]+$", r"\1", arg) for arg in config.args]


def _fits_this_machine(package: str) -> bool:
    """Tell whether a package has no compiled parts, or such for the interpreter here."""
    spec = find_spec(package)
    directories = spec.submodule_search_locations if spec else None
    compiled = [one for place in directories or () for one in Path(place).glob("_native*.so")]
    ours = _machine(Path("/proc/self/exe"))
    return not compiled or any(
        one.name.endswith(tuple(EXTENSION_SUFFIXES)) and _machine(one) == ours for one in compiled
    )


def _machine(path: Path) -> bytes:
    """Return what the header of an ELF file says of the machine: class, byte order, number."""
    with path.open("rb") as file:
        header = file.read(20)
    return header[4:6] + header[18:20]


class WorkerSide:
    """Hooks of the worker.

    Args:
        config: pytest's, to leave counts for the host in.
        label: the kernel's name in test ids.
    """

    def __init__(self, config: pytest.Config, label: str) -> None:
        self._config = config
        self._label = label
        self._host_items = 0
        self._timeout = float(os.environ.get(TEST_TIMEOUT_VARIABLE, "300"))
        self._reports = os.open("/run/bpfunit/report", os.O_WRONLY | os.O_CLOEXEC)
        # Pytest captures standard error; this one reaches the host whatever happens.
        self._console = os.open("/dev/console", os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        self._module_error = ""

    def pytest_sessionstart(self) -> None:
        """Load the kernel module that the host names."""
        path = os.environ.get("BPFUNIT_MODULE")
        if path:
            try:
                libc.load_module(Path(path))
            except OSError as error:
                self._module_error = f"{error}\n{_last_kernel_lines()}"
        engines.start(self._config)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out what runs on the host only, and put the kernel's name into the ids."""
        host = [item for item in items if item.get_closest_marker("host")]
        if host:
            self._host_items = len(host)
            config.hook.pytest_deselected(items=host)
            items[:] = [item for item in items if not item.get_closest_marker("host")]
        for item in items:
            _rename(item, f"{item.nodeid}@{self._label}")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """End a test that takes too long, and the worker with it; the host knows the limit too."""
        self._report(f"test {self._timeout} {item.nodeid}")
        faulthandler.dump_traceback_later(self._timeout, exit=True, file=self._console)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._report("done")

    def _report(self, line: str) -> None:
        """Send one line to the host, short enough for the pipe to take it whole."""
        os.write(self._reports, repr(line)[1:-1].encode()[:1000] + b"\n")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Fail tests that need the module when it did not load."""
        if self._module_error and item.get_closest_marker("guest"):
            pytest.fail(self._module_error, pytrace=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Generator[None, Any, Any]:
        """Tell the host how many tests were left out here."""
        self._config.workeroutput[HOST_ITEMS] = self._host_items  # type: ignore[attr-defined]
        return (yield)


def _rename(item: pytest.Item, nodeid: str) -> None:
    """Give an item another id, for which pytest has no public way; the field changed with 9.1."""
    if hasattr(item, "_id"):
        item._id = type(item._id).parse(nodeid)
    else:
        item._nodeid = nodeid  # type: ignore[attr-defined]


def _last_kernel_lines(count: int = 20) -> str:
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    lines = []
    try:
        while True:
            record = os.read(fd, 8192).decode(errors="replace")
            lines.append(record.partition(";")[2].split("\n")[0])
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
    return "\n".join(lines[-count:])
