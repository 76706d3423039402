"""Passes that apply to every load of this process, and observers of its runs.

This is how a layer above the loader (coverage) reaches programs that tests load themselves. With
nothing here, loads and runs pay nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from bpfunit.rewrite.code import Instrumentation


class RunObserver(Protocol):
    """An ambient pass that wants to know of each single run."""

    def run_starts(self) -> None:
        """Learn that one run of one program is about to start."""

    def run_ended(self) -> Any:
        """Learn that it is over, and return what was observed; its ``str`` is for people."""

    def memory(self) -> int:
        """Return the address of ``struct probed`` of ``_native/calls.c``, which does both in C."""

    def path_of(self, parts: Sequence[tuple[int, bytes]]) -> Any:
        """Return what :meth:`run_ended` would, from what C saw of each program's memory."""


class AmbientPass(Instrumentation, RunObserver, Protocol):
    """A pass over every load that observes every run."""


observers: list[AmbientPass] = []
"""The passes that apply now; the last observes runs."""

kept_maps: set[int] = set()
"""Ids of maps that passes keep open from one test to the next, on purpose."""


def passes() -> list[Instrumentation]:
    """Return the passes that apply to every load, in order."""
    return list(observers)


def run_observer() -> RunObserver | None:
    """Return who observes runs now, None if nobody does."""
    return observers[-1] if observers else None


_one_run = threading.RLock()
_anybody = nullcontext()


def one_run() -> AbstractContextManager[object]:
    """Keep runs of other threads out of the block, where somebody observes runs."""
    return _one_run if observers else _anybody


@contextmanager
def use(step: AmbientPass) -> Iterator[None]:
    """Apply ``step`` to every load and run within the block."""
    observers.append(step)
    try:
        yield
    finally:
        observers.remove(step)


@contextmanager
def none() -> Iterator[None]:
    """Load and run as is within the block, for measurements."""
    saved = observers[:]
    observers.clear()
    try:
        yield
    finally:
        observers[:] = saved
