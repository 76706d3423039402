"""What one run did: return value, addresses, storage, tail calls and log lines."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bpfunit.errors import BpfunitError, NotFoundError
from bpfunit.progtypes.sock_addr import BpfSockAddr
from bpfunit.values.net import Endpoint

if TYPE_CHECKING:
    from bpfunit.objects.logs import LogLine
    from bpfunit.tailcalls.tailcalls import TailCall

_ADDRESSES = 60  # the part of struct bpf_sock_addr in front of the socket pointer

_OBSERVED = ("log", "events", "printk", "path")

KERNEL = os.uname().release


class NotObservedError(BpfunitError, AttributeError):
    """What only an observed run has was asked of one made with ``observe=False``."""


@dataclass(repr=False)
class Result:
    """The outcome of :meth:`bpfunit.Program.run`.

    Attributes:
        program: the program's name.
        engine: by which engine it ran ("testrun", "connect").
        kernel: the exact release it ran on.
        retval: what the program returned, negative where verdicts of its type can be (TC,
            raw_tracepoint, syscall, lwt).
        retval_note: what ``retval`` is instead, where the kernel does not tell what the program
            returned; "" where it does.
        errno: the error that the hook hands to the system call, 0 for none.
        duration_ns: nanoseconds per run; None where the engine has no clock around the program
            alone.
        data: the packet after the run, packet programs only.
        ctx_in: the context as crafted, None when none was passed.
        log: lines from the object's log ring buffers, see :class:`bpfunit.LogLine`.
        events: raw records of every ring buffer and perf event array of the object, by map name;
            those of a perf event array may end in zero bytes, the kernel's padding.
        printk: lines of ``bpf_printk``.
        path: the branches taken, where coverage observes the runs; its str is for people.
    """

    program: str
    engine: str
    retval: int
    errno: int
    duration_ns: int | None
    raw_ctx: bytes
    ctx_in: Any
    data: bytes = b""
    retval_note: str = ""
    kernel: str = KERNEL
    log: list[LogLine] = field(default_factory=list)
    events: dict[str, list[bytes]] = field(default_factory=dict)
    printk: list[str] = field(default_factory=list)
    path: Any = field(default_factory=lambda: None)
    calls: Callable[[], list[TailCall]] = list
    traced: bool = False
    blind_spots: list[str] = field(default_factory=list)
    storages: dict[str, Any] | None = None

    def __repr__(self) -> str:
        shown = [f"retval={self.retval}", f"ctx={self.ctx!r}", f"engine={self.engine!r}"]
        shown += [f"retval is {self.retval_note}"] if self.retval_note else []
        shown += [f"errno={self.errno}"] if self.errno else []
        shown += [f"log={log}"] if (log := self.__dict__.get("log")) else []
        return f"<run of {self.program}: {', '.join(shown)}>"

    def unobserved(self) -> Result:
        """Have every question for what nobody observed raise, and return the result."""
        for name in _OBSERVED:
            del self.__dict__[name]
        self.calls = lambda: self.__getattr__("tail_calls")
        return self

    def __getattr__(self, name: str) -> Any:
        if name not in (*_OBSERVED, "tail_calls"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise NotObservedError(
            f"read {name} of {self.program}: the run was made with observe=False, so that others"
            " could run at the same time, and nobody looked"
        )

    @property
    def ctx(self) -> Any:
        """The whole context after the run, of the type that the crafted one had."""
        kind = type(self.ctx_in)
        if issubclass(kind, ctypes.Structure):
            return kind.from_buffer_copy(self.raw_ctx.ljust(ctypes.sizeof(kind), b"\0"))
        return self.raw_ctx

    def _sock_addr(self) -> BpfSockAddr:
        context = self.ctx
        if not isinstance(context, BpfSockAddr):
            raise BpfunitError(
                f"read the address of {self.program}: only cgroup_sock_addr programs have one"
            )
        return context

    @property
    def dst(self) -> Endpoint:
        """The address and port that the program may rewrite, after the run."""
        return self._sock_addr().user

    @property
    def src(self) -> Endpoint:
        """The source address of a sendmsg context after the run; its port reads 0."""
        return self._sock_addr().source

    @property
    def untouched(self) -> bool:
        """Whether every address, port and socket field is as it was crafted."""
        return self.raw_ctx[:_ADDRESSES] == bytes(self.ctx_in)[:_ADDRESSES]

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
