"""Both engines, one after the other from the same state, and a comparison of all they did."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from bpfunit.engines import Engine, NotApplicableError, RawOutcome, Request, get, register
from bpfunit.engines.state import ProgramState, State
from bpfunit.errors import BpfunitError, SyscallError
from bpfunit.progtypes.sock_addr import BpfSockAddr

if TYPE_CHECKING:
    from bpfunit.runs.program import Program

_RETRIES = 8  # runs on either engine that look for the program's own chance
_CONTEXT_SHOWN = 60  # struct bpf_sock_addr in front of the socket pointer


class EnginesDisagreeError(BpfunitError, AssertionError):
    """The engines did different things with one and the same request."""


class Observed(NamedTuple):
    """What one engine did: the outcome, and everything else by a name for people."""

    outcome: RawOutcome
    facts: Mapping[str, bytes]


class BothEngine:
    """Runs on the real call first and on the test run second, and fails on any difference.

    Maps and the socket's storage are put back in between, so both start from the same state, and
    what the test sees afterwards is the state and the result of the test run alone. Differences
    that either engine shows also against itself are the program's own chance (a clock, random
    numbers) and are not counted; everything else is.
    """

    name = "both"

    def run(self, program: Program, request: Request) -> RawOutcome:
        """Run ``program`` twice and compare; see :class:`bpfunit.engines.Engine`.

        Raises:
            EnginesDisagreeError: the engines differ.
            NotApplicableError: no real call shows the program this context.
            SyscallError: the kernel refused the test run, and no real call can make it either.
        """
        with ProgramState(program.fd) as state:
            comparison = _Comparison(program, request, state)
            try:
                real = comparison.observe(get("connect"))
            except NotApplicableError as reason:
                return comparison.without_real_call(reason)
            try:
                crafted = comparison.observe(get("testrun"))
            except SyscallError as error:
                raise EnginesDisagreeError(
                    f"run {program.name}: the engine connect ran it, the engine testrun did not:"
                    f" {error}"
                ) from None
            if unequal := _unequal(real, crafted):
                left, crafted = comparison.beyond_chance(unequal, (real, crafted))
                if left:
                    head = f"run {program.name}: the engines connect and testrun differ"
                    raise EnginesDisagreeError("\n  ".join([head, *left]))
            return crafted.outcome


class _Comparison:
    """Runs of one request, each from the state that was found at first."""

    def __init__(self, program: Program, request: Request, state: ProgramState) -> None:
        self._program, self._request, self._state = program, request, state
        self._start = self._now = state.take(request.sock)

    def observe(self, engine: Engine) -> Observed:
        """Run on one engine from the starting state."""
        session, request = self._program.session, self._request
        self.rewind()
        session.before()
        with ExitStack() as stack:
            if request.fresh and request.sock is not None and engine.name == "connect":
                # the real call may bind or connect the socket, which the test run is not to see
                sibling = _sibling(request.sock)
                stack.enter_context(sibling)
                request = request._replace(sock=sibling)
            try:
                outcome = engine.run(self._program, request)
            except BpfunitError:
                # the program may have run, on another context than the one wanted
                self._now = self._state.take(self._request.sock)
                raise
            seen = self._state.take(request.sock)
        # of a sibling's storage nothing is left to put back
        own = request.sock is self._request.sock
        self._now = seen if own else {place: v for place, v in seen.items() if place[1]}
        events, lines = session.said()
        return Observed(outcome, _facts(outcome, seen, events, lines))

    def rewind(self) -> None:
        """Put the starting state back."""
        self._state.restore(self._now, self._start, self._request.sock)
        self._now = self._start

    def without_real_call(self, reason: NotApplicableError) -> RawOutcome:
        """Raise what the test run raises, else why the real call cannot be made."""
        try:
            self.observe(get("testrun"))
        except SyscallError as error:
            raise error from reason
        self.rewind()
        raise reason

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
        again = pair
        for _ in range(_RETRIES):
            again = (self.observe(get("connect")), self.observe(get("testrun")))
            for one, other in zip(pair, again, strict=True):
                for name, places in varying.items():
                    places |= _differing(one, other, name)
            left = {
                name: text
                for name, text in left.items()
                if -1 not in varying[name] and not _differing(*pair, name) <= varying[name]
            }
            if not left:
                break
        return list(left.values()), again[1]


def _sibling(sock: socket.socket) -> socket.socket:
    """Return a new socket of the same kind."""
    protocol = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
    return socket.socket(sock.family, sock.type, protocol)


def _facts(
    outcome: RawOutcome,
    state: State,
    events: Mapping[str, list[bytes]],
    lines: list[str],
) -> dict[str, bytes]:
    """Name everything that is compared."""
    facts = {
        "return value": outcome.retval.to_bytes(4, "big"),
        "errno": outcome.errno.to_bytes(4, "big"),
        "context": outcome.ctx[:_CONTEXT_SHOWN],
    }
    for (name, key), value in state.items():
        facts[f"map {name.partition('#')[0]}[{key.hex() or 'the socket'}]"] = value
    for name, records in events.items():
        for n, record in enumerate(records):
            facts[f"record {n} of ring buffer {name}"] = record
    for n, line in enumerate(lines):
        facts[f"bpf_printk line {n}"] = line.encode()
    return facts


def _unequal(real: Observed, crafted: Observed) -> dict[str, str]:
    """Return the names of the facts that differ, with a sentence each."""
    return {
        name: f"{name}: connect {_shown(real, name)}, testrun {_shown(crafted, name)}"
        for name in sorted(real.facts.keys() | crafted.facts.keys())
        if real.facts.get(name) != crafted.facts.get(name)
    }


def _shown(one: Observed, name: str) -> str:
    value = one.facts.get(name)
    if value is None:
        return "nothing"
    if name == "context":
        return repr(BpfSockAddr.from_buffer_copy(value.ljust(72, b"\0")))
    return value.hex(" ", 4)


def _differing(one: Observed, other: Observed, name: str) -> set[int]:
    """Return the places of the bytes of a fact that differ; -1 stands for all that follow."""
    a, b = one.facts.get(name), other.facts.get(name)
    if a is None or b is None or len(a) != len(b):
        return set() if a == b else {-1}
    return {n for n in range(len(a)) if a[n] != b[n]}


register("both", BothEngine)
