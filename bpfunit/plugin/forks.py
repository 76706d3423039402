"""Children that a test forks and that come out of it: they end there, and their failures count.

A forked child that returns from its test, or raises in it, goes on as a second pytest: it reports
the test once more, over the same channel as its parent, and ends the worker with what it mixes up.
So it ends where it leaves the test, its status 0 after a return, 1 after an exception, and its own
after ``sys.exit``. An exception is reported by the parent, as a failure of the test.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Generator
from os import getpid  # by its own name: a test may patch os.getpid until its tear-down

import pytest

_MOST = 4000  # bytes; a pipe takes up to 4096 in one piece


class Forks:
    """In a worker: ends forked children, and hears from them."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Watch over the set-up."""
        __tracebackhide__ = True
        return (yield from self._watch(item))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Watch over the test."""
        __tracebackhide__ = True
        return (yield from self._watch(item))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Watch over the tear-down."""
        __tracebackhide__ = True
        return (yield from self._watch(item))

    def _watch(self, item: pytest.Item) -> Generator[None, object, object]:
        __tracebackhide__ = True
        process = getpid()
        try:
            result = yield
        except BaseException as error:
            if getpid() != process:
                self._end(item, error)
            raise
        if getpid() != process:
            self._end(item, None)
        if said := self._heard():
            pytest.fail(said, pytrace=False)
        return result

    def _end(self, item: pytest.Item, error: BaseException | None) -> None:
        if isinstance(error, SystemExit):
            os._exit(error.code if isinstance(error.code, int) else int(error.code is not None))
        said = f"a forked child left {item.nodeid} and ended there; end it with os._exit\n"
        with contextlib.suppress(OSError):
            os.write(2, said.encode(errors="backslashreplace"))
        if error is None:
            os._exit(0)
        lines = "".join(traceback.format_exception(error))
        said = f"in a forked child of {item.nodeid}:\n{lines[-_MOST // 2 :]}"
        with contextlib.suppress(OSError):  # the test may have closed it, or written over it
            os.write(self._write, said.encode(errors="backslashreplace")[-_MOST:])
        os._exit(1)

    def _heard(self) -> str:
        try:
            return os.read(self._read, 1 << 16).decode(errors="replace")
        except OSError:  # nothing there, or the test closed it
            return ""
