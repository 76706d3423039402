"""What a worker sends to its controller, made of what the channel between them can carry.

execnet carries None, booleans, integers from −2³¹ on, floats, bytes, text that UTF-8 can hold, and
lists, tuples, dictionaries and sets of those; for anything else its error ends the worker, and the
outcome of the test that was being reported is lost with it. So everything is put in that form where
it leaves the worker, in one place: the channel's ``send``.

Warnings need one step more, since xdist takes them apart before it sends them, and makes them anew
on the other side by importing the module of their class.
"""

from __future__ import annotations

import os
import traceback
from enum import Enum
from numbers import Integral
from typing import TYPE_CHECKING, Any

import pytest

from bpfunit import _native

if TYPE_CHECKING:
    import warnings
    from collections.abc import Generator, Iterable

_LEAST_INT = -(1 << 31)  # execnet writes what is smaller as a signed 32-bit number all the same
_DEPTH = 50  # containers within each other; execnet goes down into them by recursion
# In the worker's output: what interrupted it, and its status; an error of a plugin at its end; and
# what of the command line it did not find.
INTERRUPTED, FAILED_AT_END = "bpfunit_interrupted", "bpfunit_failed_at_end"
NOT_FOUND = "bpfunit_not_found"
_EVERYWHERE = ("builtins", "pytest")  # modules whose warnings every controller can make anew


def carried(value: Any) -> Any:
    """Return a value as the channel can carry it: unchanged where it can, else as its text.

    Subclasses of numbers, text and containers become the plain type, unless they are members of an
    ``Enum`` or containers with a ``__str__`` of their own: those become the text that it gives.

    Args:
        value: anything at all.
    """
    return _carried(value, ())


def _carried(value: Any, outer: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return text(value)
    for plain, take in _SCALARS.items():
        if isinstance(value, plain):
            return take(value)
    if isinstance(value, Integral):  # of numpy
        return _int(int(value))
    if not isinstance(value, (dict, list, tuple, set, frozenset)):
        return text(value)
    if type(value).__str__ is not object.__str__:
        return text(value)
    if id(value) in outer or len(outer) == _DEPTH:
        return text(value)
    inside = (*outer, id(value))

    def each(values: Iterable[Any]) -> list[Any]:
        return [_carried(one, inside) for one in values]

    if isinstance(value, dict):
        return dict(zip(each(dict.keys(value)), each(dict.values(value)), strict=True))
    if isinstance(value, list):
        return each(list.__iter__(value))
    if isinstance(value, tuple):
        return tuple(each(tuple.__iter__(value)))
    return set(each(value)) if isinstance(value, set) else frozenset(each(value))


def _int(value: int) -> int | str:
    number = int.__add__(value, 0)
    return number if number >= _LEAST_INT else text(number)


_SCALARS: dict[type, Any] = {
    int: _int,
    float: lambda value: float.__add__(value, 0.0),
    str: lambda value: _encodable(str.__str__(value)),
    bytes: lambda value: bytes.__add__(value, b""),
}


def text(value: object) -> str:
    """Return the text of any object, also of one whose own ``__str__`` fails."""
    try:
        return _encodable(str.__str__(str(value)))
    except BaseException as error:  # whatever a test's class raises there
        if type(value) is int:  # beyond sys.get_int_max_str_digits()
            return hex(value)
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"


def _encodable(string: str) -> str:
    """Return text with lone surrogates spelled out, as in ``\\udc80``."""
    return string.encode("utf-8", "backslashreplace").decode("utf-8")


def portable(warning: warnings.WarningMessage) -> None:
    """Change a recorded warning, in place, to one that every controller can make anew.

    A class that only the worker can import becomes the nearest of its bases that comes with Python
    or pytest; its own name stays in front of the text.
    """
    message, category = warning.message, warning.category or UserWarning
    known = next(
        base
        for base in (*category.__mro__, Warning)
        if base.__module__.partition(".")[0] in _EVERYWHERE
    )
    said = text(message)
    if known is not category:
        said = f"{category.__module__}.{category.__qualname__}: {said}"
    warning.message = known(said) if isinstance(message, Warning) else said
    warning.category = known
    warning.source = None
    for name in ("filename", "lineno", "line"):
        setattr(warning, name, carried(getattr(warning, name)))


class _Ending:
    """In the worker: tells what interrupted it, and what failed when all tests were over.

    Args:
        config: pytest's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._output: dict[str, Any] = config.workeroutput  # type: ignore[attr-defined]

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Tell ``pytest.exit`` from a keyboard interrupt, which have the same status."""
        status = int(pytest.ExitCode.INTERRUPTED)
        what = excinfo.typename
        if isinstance(excinfo.value, pytest.exit.Exception):
            what = f"pytest.exit: {text(excinfo.value.msg)}"
            status = excinfo.value.returncode or status
        self._output[INTERRUPTED] = [what, int(status)]

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, object, object]:
        """Tell of files and tests that were asked for and are not there: xdist tells nobody."""
        try:
            return (yield)
        except pytest.UsageError as error:
            self._output[NOT_FOUND] = [text(one) for one in error.args]
            raise

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """Tell of an error in here, which xdist would send nobody."""
        try:
            return (yield)
        except BaseException as error:
            self._output[FAILED_AT_END] = "".join(traceback.format_exception(error))
            raise


def pytest_configure(config: pytest.Config) -> None:
    """Put everything that this process sends in the form that the channel carries."""
    if not hasattr(config, "workerinput"):
        return
    senders = [one for one in config.pluginmanager.get_plugins() if hasattr(one, "sendevent")]
    for sender in senders:  # xdist's only one
        sender.channel = _Channel(sender.channel)
    config.pluginmanager.register(_Ending(config))


class _Channel:
    """A channel of execnet that takes anything.

    Values that are plain, as nearly all are, go through in one step of C, where there is the
    extension and it gives what this execnet gives: taking them apart in Python, once to look and
    once to write them, is most of what a test that does nothing costs.

    Args:
        channel: the real one.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._dumps, self._code = _quick_dumps(channel)

    def send(self, item: object) -> None:
        """Send an item as the channel can carry it."""
        if self._dumps is not None and not self._channel.isclosed():
            raw = self._dumps(item)
            if raw is not None:
                self._channel.gateway._send(self._code, self._channel.id, raw)
                return
        self._channel.send(carried(item))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


_SAMPLE: dict[str, Any] = {
    "a": [None, True, False, 0, -1, 2**31 - 1, 2**31, -(2**31), 2**80, 0.5, -0.0, float("inf")],
    "é": ({}, [], (), ("x", b"\xff"), {1: {"b": [[], ("",)]}}),
}


def _quick_dumps(channel: Any) -> tuple[Any, int]:
    """Return what writes plain values for this channel, and the number of such a message.

    The first is None where execnet has to.
    """
    extension = _native.extension()
    if extension is None:
        return None, 0
    try:  # this execnet's own, wherever the gateway took its source from
        there = type(channel).send.__globals__
        if there["dumps_internal"](_SAMPLE) == extension.dumps(_SAMPLE) and channel.gateway._send:
            return extension.dumps, there["Message"].CHANNEL_DATA
    except (AttributeError, KeyError, TypeError):
        pass
    return None, 0


@pytest.hookimpl(tryfirst=True)
def pytest_report_to_serializable(report: pytest.CollectReport | pytest.TestReport) -> None:
    """Make text of an account of a failure that nobody but its maker can take apart."""
    known = isinstance(report.longrepr, (str, tuple)) or hasattr(report.longrepr, "reprtraceback")
    if report.longrepr is not None and not known:
        report.longrepr = text(report.longrepr)


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    """Make a warning portable, if this process is a worker: it is sent right after this."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        portable(warning_message)
