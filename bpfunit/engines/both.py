"""Both engines, one after the other from the same state, and a comparison of all they did."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import NamedTuple

from bpfunit.engines import (
    Engine,
    NotApplicableError,
    ProgramRef,
    RawOutcome,
    Request,
    get,
    register,
)
from bpfunit.engines.sockets import Face, face, like, put_back, twin
from bpfunit.engines.state import ProgramState, State
from bpfunit.errors import BpfunitError, SyscallError

_RETRIES = 8  # runs on either engine that look for the program's own chance
Facts = dict[str, bytes]  # everything that is compared, by a name for people


class EnginesDisagreeError(BpfunitError, AssertionError):
    """The engines did different things with one and the same request."""


class Observed(NamedTuple):
    """What one engine did: the outcome, the state it left, what was said."""

    outcome: RawOutcome
    state: State
    events: Mapping[str, list[bytes]]
    lines: list[str]


class BothEngine:
    """Runs on the real call first and on the test run second, and fails on any difference.

    Maps and the socket's storage are put back in between, so both start from the same state, and
    what the test sees afterwards is the state and the result of the test run alone. Differences
    that either engine shows also against itself are the program's own chance (a clock, random
    numbers) and are not counted; everything else is.
    """

    name = "both"
    is_test_run = False

    def __init__(self) -> None:
        self._lock = threading.RLock()  # objects may share maps, which are put back in between

    def run(self, program: ProgramRef, request: Request) -> RawOutcome:
        """Run ``program`` twice and compare; see :class:`bpfunit.engines.Engine`.

        Raises:
            EnginesDisagreeError: the engines differ.
            NotApplicableError: no real call shows the program this context, or the program changed
                a socket that nothing puts back and that has no like.
            SyscallError: the kernel refused the test run, and no real call can make it either.
        """
        with self._lock, ProgramState(program.fd) as state:
            comparison = _Comparison(program, request, state)
            try:
                real = comparison.observe(get("live"))
            except NotApplicableError as reason:
                return comparison.without_real_call(reason)
            comparison.settle(real.outcome)
            try:
                crafted = comparison.observe(get("testrun"))
            except SyscallError as error:
                raise EnginesDisagreeError(
                    f"run {program.name}: the engine live ran it, the engine testrun did not:"
                    f" {error}"
                ) from None
            if unequal := comparison.unequal(real, crafted):
                left, crafted = comparison.beyond_chance(unequal, (real, crafted))
                if left:
                    head = f"run {program.name}: the engines live and testrun differ"
                    raise EnginesDisagreeError("\n  ".join([head, *left]))
            return comparison.last(crafted)

    def prepared(
        self, program: ProgramRef
    ) -> AbstractContextManager[Callable[[Request], RawOutcome]]:
        """Yield what makes one run; each attaches and detaches the program anew."""
        return nullcontext(partial(self.run, program))


class _Comparison:
    """Runs of one request, each from the state that was found at first."""

    def __init__(self, program: ProgramRef, request: Request, state: ProgramState) -> None:
        self._program, self._request, self._state = program, request, state
        self._start = self._now = state.take(request.sock)
        self._known = set(self._start)  # entries that are compared by their key
        self._face: Face | None = None
        self._twins = False
        changes = state.may_change_socket or program.type.context_is_socket
        if request.sock is not None and changes:
            self._face = face(request.sock)
            if (second := twin(request.sock, self._face)) is not None:
                second.close()
                self._twins = True

    def observe(self, engine: Engine, *, counts: bool = False) -> Observed:
        """Run on one engine from the starting state.

        Args:
            engine: which.
            counts: whether it is the run that the test is to see, on the socket itself.
        """
        watch, request = self._request.watch, self._request
        self.rewind()
        if watch is not None:
            watch.before()
        with ExitStack() as stack:
            stand_in = None if counts else self._stand_in(engine)
            if stand_in is not None:
                stack.enter_context(stand_in)
                request = request._replace(sock=stand_in)
            try:
                outcome = engine.run(self._program, request)
            except BpfunitError:
                # the program may have run, on another context than the one wanted
                self._note(self._state.take(request.sock), own=stand_in is None)
                raise
            seen = self._state.take(request.sock)
        self._note(seen, own=stand_in is None)
        events, lines = watch.said() if watch is not None else ({}, [])
        return Observed(outcome, seen, events, lines)

    def settle(self, outcome: RawOutcome) -> None:
        """Have all further runs get what the real call had where the request left it open."""
        if outcome.settled is not None:
            self._request = self._request._replace(data=outcome.settled)

    def _stand_in(self, engine: Engine) -> socket.socket | None:
        """Return a socket to run on in place of the request's own, which then stays as it is."""
        request = self._request
        if request.sock is None:
            return None
        if self._twins:
            assert self._face is not None
            made = twin(request.sock, self._face)
            if made is None:
                raise NotApplicableError(f"{self._head()}: no second socket like its own was made")
            kept = {entry: value for entry, value in self._start.items() if not entry[1]}
            self._state.restore({}, kept, made)
            return made
        if request.fresh and not engine.is_test_run and self._call_leaves_traces():
            # the real call binds or connects the socket, which the test run is not to see
            return like(request.sock)
        return None

    def _call_leaves_traces(self) -> bool:
        """Whether the real call changes its socket though the observer ends it with EPERM."""
        return self._program.type.call_leaves_traces(self._program.attach_type)

    def _head(self) -> str:
        return f"run {self._program.name} on both engines"

    def _note(self, seen: State, *, own: bool) -> None:
        """Keep what there is now; of a stand-in's storage nothing is left to put back."""
        if not own:
            storage = {entry: value for entry, value in self._now.items() if not entry[1]}
            seen = {entry: value for entry, value in seen.items() if entry[1]} | storage
        self._now = seen

    def rewind(self) -> None:
        """Put the starting state back.

        Raises:
            NotApplicableError: the socket has been changed for good.
        """
        self._state.restore(self._now, self._start, self._request.sock)
        self._now = self._start
        if self._face is None or self._twins:
            return
        assert self._request.sock is not None
        if left := put_back(self._request.sock, self._face):
            raise NotApplicableError(
                f"{self._head()}: the program changed its socket for good ({left}), so that no"
                " second run starts from the same; give it a socket that is neither bound nor"
                " connected, or use one engine"
            )

    def last(self, crafted: Observed) -> RawOutcome:
        """Return the run that counts: one on the socket itself where second ones were compared."""
        return self.observe(get("testrun"), counts=True).outcome if self._twins else crafted.outcome

    def without_real_call(self, reason: NotApplicableError) -> RawOutcome:
        """Raise what the test run raises, else why the real call cannot be made."""
        try:
            self.observe(get("testrun"))
        except SyscallError as error:
            raise error from reason
        self.rewind()
        raise reason

    def unequal(self, real: Observed, crafted: Observed) -> dict[str, str]:
        """Return the names of the facts that differ, with a sentence each."""
        self._known |= real.state.keys() & crafted.state.keys()
        one, other = self._facts(real), self._facts(crafted)
        return {
            name: f"{name}: live {self._shown(one, name)}, testrun {self._shown(other, name)}"
            for name in sorted(one.keys() | other.keys())
            if one.get(name) != other.get(name)
        }

    def beyond_chance(
        self, unequal: Mapping[str, str], pair: tuple[Observed, Observed]
    ) -> tuple[list[str], Observed]:
        """Find those differences that the program does not show against itself on one engine.

        Args:
            unequal: the differences, a sentence each.
            pair: the runs that differ, by real call and by test run.

        Returns:
            The sentences that stay, and the last test run, whose state is the one there is now.
        """
        left, varying = dict(unequal), {name: set[int]() for name in unequal}
        first = self._facts(pair[0]), self._facts(pair[1])
        again = pair
        for _ in range(_RETRIES):
            again = (self.observe(get("live")), self.observe(get("testrun")))
            for one, other in zip(first, map(self._facts, again), strict=True):
                for name, offsets in varying.items():
                    offsets |= _differing(one, other, name)
            left = {
                name: text
                for name, text in left.items()
                if -1 not in varying[name] and not _differing(*first, name) <= varying[name]
            }
            if not left:
                break
        return list(left.values()), again[1]

    def _facts(self, seen: Observed) -> Facts:
        """Name everything that is compared.

        An entry that was there before, or that both engines made, goes by its key. Others are
        counted, by value first: their keys may be a cookie or a time, which no two runs share.
        """
        outcome = seen.outcome
        facts = {
            "return value": outcome.retval.to_bytes(4, "big"),
            "errno": outcome.errno.to_bytes(4, "big"),
            "context": outcome.ctx[: self._program.type.compared],
            "data": outcome.data,
        }
        others = sorted(
            (name, value, key)
            for (name, key), value in seen.state.items()
            if (name, key) not in self._known
        )
        for (name, key), value in seen.state.items():
            if (name, key) in self._known:
                facts[f"map {name.partition('#')[0]}[{key.hex() or 'the socket'}]"] = value
        for n, (name, value, key) in enumerate(others):
            facts[f"new entry {n} (map {name.partition('#')[0]}, key and value)"] = key + value
        for name, records in seen.events.items():
            for n, record in enumerate(records):
                facts[f"record {n} of ring buffer {name}"] = record
        for n, line in enumerate(seen.lines):
            facts[f"bpf_printk line {n}"] = line.encode()
        return facts

    def _shown(self, facts: Facts, name: str) -> str:
        value = facts.get(name)
        if value is None:
            return "nothing"
        return self._program.type.describe(value) if name == "context" else value.hex(" ", 4)


def _differing(one: Facts, other: Facts, name: str) -> set[int]:
    """Return the offsets of the bytes of a fact that differ; -1 stands for all that follow."""
    a, b = one.get(name), other.get(name)
    if a is None or b is None or len(a) != len(b):
        return set() if a == b else {-1}
    return {n for n in range(len(a)) if a[n] != b[n]}


register("both", BothEngine)
