"""The engine that attaches a program and makes the real call that brings a system to run it."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import AbstractContextManager

from bpfunit._sys.cgroup import Cgroup, CgroupError
from bpfunit.engines import NotApplicableError, ProgramRef, RawOutcome, Request, register
from bpfunit.errors import BpfunitError
from bpfunit.progtypes.base import LiveCalls, registered

__all__ = ["Cgroup", "CgroupError", "LiveEngine"]


class LiveEngine:
    """Runs a program where it lives: attached, on the way of a real call.

    What the calls of a type are, its file in :mod:`bpfunit.progtypes` says. The process enters a
    cgroup of its own as the engine is made, since a socket belongs for life to the cgroup that its
    maker was in. Programs are attached there for the time of a run only.
    """

    name = "live"
    is_test_run = False

    def __init__(self) -> None:
        self._cgroup = Cgroup()
        atexit.register(self.close)
        self._cgroup.enter()
        self._calls: dict[int, LiveCalls] = {}
        self._refused: dict[int, BpfunitError] = {}
        # All now, so that whoever counts open descriptors around a test finds no new ones. What a
        # kernel refuses one type, the others do without.
        for one in list(registered()):
            try:
                calls = one.make_live_calls(self._cgroup)
            except BpfunitError as error:
                self._refused[one.number] = error
                continue
            if calls:
                self._calls[one.number] = calls

    def run(self, program: ProgramRef, request: Request) -> RawOutcome:
        """Run ``program`` by a real call; see :class:`bpfunit.engines.Engine`.

        Raises:
            NotApplicableError: no real call shows the program the crafted input.
            SyscallError: the kernel refused to attach the program.
        """
        with self.prepared(program) as run:
            return run(request)

    def prepared(
        self, program: ProgramRef
    ) -> AbstractContextManager[Callable[[Request], RawOutcome]]:
        """Keep a program attached within the block; yield what runs one request by a real call.

        Raises:
            NotApplicableError: no real call is known for the program's type.
            BpfunitError: this kernel refused what observes the type's calls.
        """
        if refused := self._refused.get(program.type.number):
            raise refused
        calls = self._calls.get(program.type.number)
        if calls is None:
            known = ", ".join(one.name for one in registered() if one.number in self._calls)
            raise NotApplicableError(
                f"run {program.name} on the engine live: no real call of a {program.type.name}"
                f" program is known, only of {known}; use the engine testrun"
            )
        return calls.attached(program)

    def close(self) -> None:
        """Give back what the types keep, and leave and remove the cgroup."""
        while self._calls:
            self._calls.popitem()[1].close()
        self._cgroup.close()


register("live", LiveEngine)
