"""How a crafted context reaches a program: one engine a module behind one small protocol."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

from bpfunit.errors import BpfunitError, NotFoundError

if TYPE_CHECKING:
    from bpfunit.runs.program import Program

DEFAULT = "testrun"


class NotApplicableError(BpfunitError):
    """The engine cannot produce this run; the reason says what a real system would need."""


class RawOutcome(NamedTuple):
    """What came back from one run, before anything is decoded."""

    retval: int
    ctx: bytes
    duration_ns: int | None  # None where the engine has no clock around the program alone
    data: bytes = b""
    errno: int = 0  # the error that the hook hands to its system call, 0 for none


class Request(NamedTuple):
    """One run, the same for every engine.

    ``ctx`` None means that no context is passed at all. ``sock`` is the socket of the run, None
    where the engine is to let the kernel make one; ``fresh`` says that it was made for this run
    alone, so that an engine may bind or connect it.
    """

    ctx: bytes | None
    sock: socket.socket | None = None
    repeat: int = 1
    data: bytes | None = None
    data_size_out: int = 0
    flags: int = 0
    fresh: bool = False


class Engine(Protocol):
    """Runs one program once (or ``repeat`` times) with one crafted context."""

    name: str

    def run(self, program: Program, request: Request) -> RawOutcome:
        """Run ``program``; raise SyscallError with the kernel's errno when it is refused."""
        ...


_factories: dict[str, Callable[[], Engine]] = {}
_made: dict[str, Engine] = {}
_making = threading.RLock()  # one engine is made of others
_MODULES = {"testrun": "testrun", "connect": "live", "both": "both"}


def register(name: str, factory: Callable[[], Engine]) -> None:
    """Make an engine known under ``name``; it is made on first use, once per process."""
    _factories[name] = factory
    _made.pop(name, None)


def get(name: str | None = None) -> Engine:
    """Return the engine of this name, by default ``$BPFUNIT_ENGINE``, else testrun.

    Raises:
        NotFoundError: there is no such engine.
    """
    if name in _made:
        return _made[name]
    name = name or os.environ.get("BPFUNIT_ENGINE") or DEFAULT
    if name not in _factories and name in _MODULES:
        import_module(f".{_MODULES[name]}", __name__)
    if name not in _factories:
        raise NotFoundError("choose engine", name, sorted({*_factories, *_MODULES}))
    with _making:
        if name not in _made:
            _made[name] = _factories[name]()
    return _made[name]
