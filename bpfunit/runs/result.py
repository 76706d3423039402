"""What one run did: return value, context, storage, tail calls and log lines."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from bpfunit.errors import BpfunitError, NotFoundError
from bpfunit.progtypes.base import ProgramRef, ProgramType, RawOutcome

if TYPE_CHECKING:
    from bpfunit.objects.logs import LogLine
    from bpfunit.runs.onecall import OneCall
    from bpfunit.tailcalls.tailcalls import TailCall

_CALLS = ("calls", "all_calls", "tail_calls", "tail_call_attempts")
_OBSERVED = ("log", "events", "printk", "path", *_CALLS)

# how what an observed run has is read from its answer; what it printed was noted by then
_READ: dict[str, Callable[[Any, Any], Any]] = {
    "log": lambda result, one: one.observation.log_lines(result.events),
    "events": lambda result, one: one.events(result.answer),
    "printk": lambda result, one: [],
    "path": lambda result, one: one.path(result.answer, result._observer),
    "calls": lambda result, one: list,
}

KERNEL = os.uname().release


class Answer(NamedTuple):
    """What a run in one call of C left, undecoded: see the fields of :class:`Result`."""

    raw: bytes
    one: OneCall
    ctx_size: int
    observer: Any

    def __getattr__(self, name: str) -> Any:
        # a type's result may look at what came back as it is made, as at a RawOutcome
        if name not in RawOutcome._fields:
            raise AttributeError(f"an answer has no {name}")
        return getattr(self.one.outcome(self.raw, self.ctx_size), name)


class NotObservedError(BpfunitError, AttributeError):
    """What only an observed run has was asked of one made with ``observe=False``."""


class Result:
    """The outcome of :meth:`bpfunit.Program.run`; types that tell more have a subclass.

    Attributes:
        program: the program's name.
        engine: by which engine it ran ("testrun", "live", "both").
        interpreted: whether the kernel interpreted the program, for want of a BPF JIT.
        kernel: the exact release it ran on.
        retval: what the program returned, negative where verdicts of its type can be (TC,
            raw_tracepoint, syscall, lwt).
        retval_note: what ``retval`` is instead, where the kernel does not tell what the program
            returned; "" where it does.
        errno: the error that the hook hands to the system call, 0 for none.
        duration_ns: nanoseconds per run; None where the engine has no clock around the program
            alone.
        ctx_in: the context as crafted, None when none was passed.
        log: lines from the object's log ring buffers, see :class:`bpfunit.LogLine`.
        events: raw records of every ring buffer and perf event array of the object, by map name;
            those of a perf event array may end in zero bytes, the kernel's padding.
        printk: lines of ``bpf_printk``.
        path: the branches taken, where coverage observes the runs; its str is for people.
    """

    kernel = KERNEL
    # what the observation fills in after the run, and nothing does where nobody looked
    log: list[LogLine]
    events: dict[str, list[bytes]]
    printk: list[str]
    path: Any
    calls: Callable[[], list[TailCall]]
    traced = False
    engine = "testrun"
    # of a run in one call of C, which is read when it is asked for: the answer, what ran, how many
    # bytes of context went in, and who observed the branches
    answer = b""
    _one: OneCall | None = None
    _ctx_size = 0
    _observer: Any = None

    def __init__(
        self, program: ProgramRef, engine: str, outcome: RawOutcome | Answer, ctx_in: Any = None
    ) -> None:
        self._ref = program
        if isinstance(outcome, Answer):
            self.answer, self._one, self._ctx_size, self._observer = outcome
        else:
            self.engine = engine
            self.outcome = outcome
        self.ctx_in = ctx_in

    @cached_property
    def _ref(self) -> ProgramRef:
        assert self._one is not None, "else it was given"
        return self._one.ref

    @property
    def program(self) -> str:
        """The program's name."""
        return self._ref.name

    @property
    def interpreted(self) -> bool:
        """Whether the kernel interpreted the program: it has no BPF JIT, or that is off."""
        return self._ref.interpreted

    @property
    def program_type(self) -> ProgramType:
        """What is known of the program's type."""
        return self._ref.type

    @property
    def retval_note(self) -> str:
        """What ``retval`` is instead, where the kernel does not tell what the program returned."""
        return self._ref.type.retval_note(self._ref.attach_type)

    @cached_property
    def outcome(self) -> RawOutcome:
        """What came back, undecoded."""
        assert self._one is not None, "else it was given"
        return self._one.outcome(self.answer, self._ctx_size)

    @cached_property
    def storages(self) -> dict[str, Any] | None:
        """What the run's socket had in each storage map; None where nobody can ask for it."""
        return None if self._one is None else self._one.storages(self.answer)

    @cached_property
    def blind_spots(self) -> list[str]:
        """The slots whose entry nobody would have seen."""
        return []

    def __repr__(self) -> str:
        shown = [f"retval={self.retval}", f"ctx={self.ctx!r}", f"engine={self.engine!r}"]
        shown += ["interpreted"] if self.interpreted else []
        shown += [f"retval is {self.retval_note}"] if self.retval_note else []
        shown += [f"errno={self.errno}"] if self.errno else []
        with suppress(NotObservedError):
            shown += [f"log={self.log}"] if self.log else []
        return f"<run of {self.program}: {', '.join(shown)}>"

    def __getattr__(self, name: str) -> Any:
        # only reached for what is not there
        if name not in _OBSERVED:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if self._one is not None and name in _READ:
            found = self.__dict__[name] = _READ[name](self, self._one)
            return found
        asked = "tail_calls" if name in _CALLS else name
        raise NotObservedError(
            f"read {asked} of {self.program}: the run was made with observe=False, so that others"
            " could run at the same time, and nobody looked"
        )

    @property
    def retval(self) -> int:
        """What the program returned, negative where verdicts of its type can be."""
        return self.outcome.retval

    @property
    def errno(self) -> int:
        """The error that the hook hands to the system call, 0 for none."""
        return self.outcome.errno

    @property
    def duration_ns(self) -> int | None:
        """Nanoseconds per run; None where the engine has no clock around the program alone."""
        return self.outcome.duration_ns

    @property
    def verdict(self) -> str:
        """The return value by its name in the kernel's headers, as digits where it has none."""
        return self.program_type.verdict(self.retval)

    @property
    def raw_ctx(self) -> bytes:
        """The bytes of the context after the run; b"" when none was passed."""
        return self.outcome.ctx

    @cached_property
    def ctx(self) -> Any:
        """The whole context after the run, of the type that the crafted one had."""
        return self._context()

    def _context(self) -> Any:
        made_of = type(self.ctx_in)
        if issubclass(made_of, ctypes.Structure):
            return made_of.from_buffer_copy(self.raw_ctx.ljust(ctypes.sizeof(made_of), b"\0"))
        return self.raw_ctx

    @property
    def untouched(self) -> bool:
        """Whether everything that the program could change in the context is as it was crafted.

        Raises:
            BpfunitError: it ran without a context.
        """
        if self.ctx_in is None:
            raise BpfunitError(f"compare the context of {self.program}: it ran without one")
        end = self.program_type.compared
        return self.raw_ctx[:end] == bytes(self.ctx_in)[:end]

    def describe(self) -> list[str]:
        """Return what went in and came out as lines for the report of a failing test."""
        if self.ctx_in is None:
            return []
        verdict = "untouched" if self.untouched else "rewritten"
        return [f"context in:  {self.ctx_in!r}", f"context out: {self.ctx!r} ({verdict})"]

    def storage(self, name: str | None = None) -> Any:
        """Return this socket's entry of an sk_storage map right after the run, None if it has none.

        Args:
            name: the map; may be left out when the object has one only.

        Raises:
            NotFoundError: the object has no such map.
            BpfunitError: the kernel made the socket of this run, so that nobody can ask for it.
        """
        if self.storages is None:
            raise BpfunitError(
                f"read storage of {self.program}: the kernel made this run's socket; pass sock="
            )
        if name is None and len(self.storages) == 1:
            return next(iter(self.storages.values()))
        if name not in self.storages:
            raise NotFoundError("read sk_storage map", name, sorted(self.storages))
        return self.storages[name]

    @property
    def tail_calls(self) -> list[TailCall]:
        """The programs entered by tail call, in order; empty when none was.

        Raises:
            BpfunitError: a slot held a real program and the object was loaded without
                ``trace_tail_calls=True``, so that nobody could see who entered it.
        """
        if self.blind_spots:
            raise BpfunitError(
                f"list tail calls of {self.program}: {', '.join(self.blind_spots)} held a real"
                " program; load with trace_tail_calls=True to see it entered"
            )
        return [call for call in self.all_calls if call.entered]

    @property
    def tail_call_attempts(self) -> list[TailCall]:
        """All tail calls tried, those into an empty slot or beyond the kernel's bound included.

        Raises:
            BpfunitError: the object was not loaded with ``trace_tail_calls=True``.
        """
        if not self.traced:
            raise BpfunitError(
                f"list tail-call attempts of {self.program}: load with trace_tail_calls=True"
            )
        return self.all_calls

    @cached_property
    def all_calls(self) -> list[TailCall]:
        """Every tail call that was seen, by whatever means."""
        return self.calls()
