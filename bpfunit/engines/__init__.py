"""How a crafted context reaches a program: one engine a module behind one small protocol."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Protocol

from bpfunit.errors import BpfunitError, NotFoundError
from bpfunit.progtypes.base import ProgramRef, RawOutcome, Request

__all__ = [
    "DEFAULT",
    "Engine",
    "NotApplicableError",
    "NotApplicableHereError",
    "ProgramRef",
    "RawOutcome",
    "Request",
    "get",
    "register",
]

DEFAULT = "testrun"


class NotApplicableError(BpfunitError):
    """The engine cannot produce this run; the reason says what a real system would need.

    Attributes:
        where: what cannot, in words.
    """

    where = "on this engine"


class NotApplicableHereError(NotApplicableError):
    """No engine can produce it on this kernel, as that is configured."""

    where = "on this kernel"


class Engine(Protocol):
    """Runs one program once (or ``repeat`` times) with one crafted input.

    Attributes:
        name: what ``--bpf-engine`` calls it.
        is_test_run: whether a run is ``BPF_PROG_TEST_RUN`` and nothing besides, so that a loop in C
            may make many of them.
    """

    name: str
    is_test_run: bool

    def run(self, program: ProgramRef, request: Request) -> RawOutcome:
        """Run ``program``; raise SyscallError with the kernel's errno when it is refused."""
        ...

    def prepared(
        self, program: ProgramRef
    ) -> AbstractContextManager[Callable[[Request], RawOutcome]]:
        """Keep what a program's runs need within the block; yield what makes one run."""
        ...


_factories: dict[str, Callable[[], Engine]] = {}
_made: dict[str, Engine] = {}
_making = threading.RLock()  # one engine is made of others
_MODULES = {"testrun": "testrun", "live": "live", "both": "both"}
_said: set[str] = set()
_FORMER_NAMES = {"connect": "live"}  # its calls are more than connect(2) by now


def register(name: str, factory: Callable[[], Engine]) -> None:
    """Make an engine known under ``name``; it is made on first use, once per process."""
    _factories[name] = factory
    _made.pop(name, None)


def current_name(name: str) -> str:
    """Return the name that an engine has today; a former one is an alias, and the log says so."""
    found = _FORMER_NAMES.get(name, name)
    if found != name and name not in _said:
        _said.add(name)
        warnings.warn(
            f"the engine {name} is called {found}; the old name still works",
            DeprecationWarning,
            stacklevel=2,
        )
    return found


def get(name: str | None = None) -> Engine:
    """Return the engine of this name, by default ``$BPFUNIT_ENGINE``, else testrun.

    Raises:
        NotFoundError: there is no such engine.
    """
    if name in _made:
        return _made[name]
    name = name or os.environ.get("BPFUNIT_ENGINE") or DEFAULT
    name = current_name(name)
    if name not in _factories and name in _MODULES:
        import_module(f".{_MODULES[name]}", __name__)
    if name not in _factories:
        raise NotFoundError("choose engine", name, sorted({*_factories, *_MODULES}))
    with _making:
        if name not in _made:
            _made[name] = _factories[name]()
    return _made[name]
