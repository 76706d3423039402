"""What belongs to all runs of one object: where to look after each, and the record of past ones."""

from __future__ import annotations

import itertools
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from bpfunit._sys.uapi import MapType
from bpfunit.errors import BpfunitError
from bpfunit.objects.logs import LogLine, PerfBuffers, RingBuffers, TraceReader
from bpfunit.objects.maps import Map
from bpfunit.progtypes.base import ProgramType
from bpfunit.rewrite import ambient
from bpfunit.runs.onecall import OneCall, RingMemory
from bpfunit.runs.result import Result
from bpfunit.tailcalls.tailcalls import CallRecorder, ProgArray, TailCall

_KEPT = 20  # runs that a failing test's report can show

_live: weakref.WeakValueDictionary[int, Observation] = weakref.WeakValueDictionary()
_serial = itertools.count()


class Observation:
    """The observers of one object's runs; empty for a program that came as a descriptor.

    Args:
        name: the object's file name, for reports.
        engine: the name of the engine to run with, None for the process's choice.

    Attributes:
        traced: whether every tail call is recorded.
        lock: to be held by whoever runs one of the programs and observes it.
        prepared: by descriptor, the programs' runs in one call of C; None for those that have none.
        has_filled_slots: whether anything stands in one of its program arrays.
        escaped: how the object came into hands that nobody sees, "" when it did not.
    """

    def __init__(self, name: str = "", engine: str | None = None) -> None:
        self.name = name
        self._engine = engine
        self.maps: dict[str, Map] = {}
        self.runs = 0
        self.journal: deque[Result | str] = deque(maxlen=_KEPT)
        self._storages: list[Map] = []
        self._arrays: list[ProgArray] = []
        self._logs: dict[str, Any] = {}
        self._buffers: list[RingBuffers | PerfBuffers] = []
        self._trace: TraceReader | None = None
        self.traced = False
        self._recorders: dict[int, CallRecorder] = {}
        self._observer: ambient.RunObserver | None = None
        self.escaped = ""
        self.has_filled_slots = False
        self._events: dict[str, list[bytes]] = {}
        self._lines: list[str] = []
        self._resources = ExitStack()
        self.lock = threading.RLock()
        self.prepared: dict[int, OneCall | None] = {}
        self._rings: list[Map] = []
        self._ring_memory: dict[str, RingMemory] = {}
        _live[next(_serial)] = self

    @property
    def engine(self) -> str | None:
        """The name of the engine to run with, None for the process's choice."""
        return self._engine

    @engine.setter
    def engine(self, name: str | None) -> None:
        self._engine = name
        self.prepared.clear()

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Have the object's observers for one run alone within the block.

        Ring buffers, the record of tail calls and printed lines are one for all programs of an
        object, so its observed runs come one after another, whichever threads ask for them. The
        probes of coverage are one for the process: under it, so do those of all objects.
        """
        with self.lock, ambient.one_run():
            yield

    def note_escape(self, reason: str) -> None:
        """Learn that something may have been done to the object that nobody can see."""
        self.escaped = self.escaped or reason

    def start_again(self, maps: dict[str, Map]) -> None:
        """Observe the same object for another test.

        Args:
            maps: its maps as new objects.
        """
        self.said()
        self._events, self._lines = {}, []
        self.maps = maps
        self.forget()
        self._storages = [maps[one.name] for one in self._storages]
        self._rings = [maps[one.name] for one in self._rings]
        self._arrays = [one for one in maps.values() if isinstance(one, ProgArray)]
        self.slots_changed()

    def forget(self) -> None:
        """Empty the record of runs and of map changes."""
        self.journal.clear()
        self.runs = 0
        for one in self.maps.values():
            one.touched.clear()

    def recorder(self, program_type: ProgramType) -> CallRecorder:
        """Return the memory of spies and traced calls of one type, made on first use.

        A tail call stays within a type, and the types' contexts have different sizes.
        """
        found = self._recorders.get(program_type.number)
        if found is None:
            found = CallRecorder(program_type, traced=self.traced)
            self._recorders[program_type.number] = found
            self.prepared.clear()
            self._resources.callback(found.close)
        return found

    def trace(self) -> None:
        """Have every tail call recorded that is made by programs loaded from now on."""
        self.prepared.clear()
        self.traced = True

    def watch(self, maps: dict[str, Map], log_types: Mapping[str, Any] | None = None) -> None:
        """Choose the maps to read after each run: storages, ring buffers, program arrays.

        Args:
            maps: all maps of the object.
            log_types: ring buffers of log records and the type of a record; None for all whose name
                has "log" in it, with records {``__u32 ret; char msg[]``}.
        """
        self.maps = maps
        self.prepared.clear()
        self._storages = [m for m in maps.values() if m.type == MapType.SK_STORAGE]
        self._arrays = [m for m in maps.values() if isinstance(m, ProgArray)]
        rings = [m for m in maps.values() if m.type == MapType.RINGBUF]
        if log_types is None:
            log_types = {ring.name: None for ring in rings if "log" in ring.name}
        self._logs = dict(log_types)
        for array in self._arrays:
            array.recorder = self.recorder
            array.changed = self.slots_changed
        self.slots_changed()
        self._rings = rings
        if rings:
            self._drain(RingBuffers(rings))

    def watch_perf_events(self) -> None:
        """Collect what the programs send into perf event arrays."""
        arrays = [m for m in self.maps.values() if m.type == MapType.PERF_EVENT_ARRAY]
        self._drain(PerfBuffers(arrays))

    # -- what runs in one call of C need to know

    def watched(
        self, program_type: ProgramType
    ) -> tuple[list[Map], list[Map], CallRecorder | None, list[CallRecorder]]:
        """Return what runs write: storages, ring buffers, the type's recorder, and all recorders.

        Raises:
            BpfunitError: they send perf events.
        """
        if any(isinstance(one, PerfBuffers) for one in self._buffers):
            raise BpfunitError("the programs send perf events")
        own = self._recorders.get(program_type.number)
        others = [one for one in self._recorders.values() if one is not own]
        return self._storages, self._rings, own, [own, *others] if own is not None else others

    def ring_memory(self, ring: Map) -> RingMemory:
        """Return the mapping of a ring buffer of the object, which lasts as long as the object."""
        found = self._ring_memory.get(ring.name)
        if found is None:
            found = self._ring_memory[ring.name] = RingMemory(ring)
            self._resources.callback(found.close)
        return found

    @property
    def printed(self) -> TraceReader | None:
        """What the programs print, None where they do not."""
        return self._trace

    def slots_changed(self) -> None:
        """Learn that a program array of the object holds something else than before."""
        self.has_filled_slots = any(array.contents for array in self._arrays)

    def _drain(self, buffers: RingBuffers | PerfBuffers) -> None:
        self._buffers.append(buffers)
        self._resources.callback(buffers.close)

    def watch_printk(self) -> None:
        """Collect ``bpf_printk`` lines after each run."""
        self._trace = TraceReader()
        self.prepared.clear()
        self._resources.callback(self._trace.close)

    def before(self) -> None:
        """Drop records and lines from before this run, and start observing it."""
        self.said()
        self._events, self._lines = {}, []
        for recorder in self._recorders.values():
            recorder.discard()
        self._observer = ambient.run_observer()
        if self._observer:
            self._observer.run_starts()

    def said(self) -> tuple[dict[str, list[bytes]], list[str]]:
        """Return what was sent, by map, and the printed lines since :meth:`before`."""
        for buffers in self._buffers:
            for name, records in buffers.drain().items():
                self._events.setdefault(name, []).extend(records)
        if self._trace:
            self._lines += self._trace.drain()
        return self._events, self._lines

    def after(self, result: Result, sock: socket.socket | None) -> None:
        """Fill a result with what can be observed, and remember it."""
        self.read_storages(result, sock)
        result.path = self._observer.run_ended() if self._observer else None
        result.calls = list
        if recorder := self._recorders.get(result.program_type.number):
            records = recorder.take()
            lost = recorder.lost
            result.calls = recorder.refusal(lost) if lost else self.calls_decoder(recorder, records)
        result.traced, result.blind_spots = self.traced, self.blind_spots()
        result.events, result.printk = self.said()
        result.log = self.log_lines(result.events)
        self._events, self._lines = {}, []
        self.remember(result)

    def remember(self, what: Result | str) -> None:
        """Add a run, or the error that refused it, to the record."""
        self.journal.append(what)
        self.runs += 1

    def read_storages(self, result: Result, sock: socket.socket | None) -> None:
        """Put what the run's socket has in the object's storage maps on the result."""
        if sock is not None:
            fd = sock.fileno()
            result.storages = {m.name: self.read_storage(m, fd) for m in self._storages}

    @staticmethod
    def read_storage(storage: Map, fd: int) -> Any:
        """Return a socket's entry of an sk_storage map, None when it has none."""
        raw = storage.lookup(fd)
        return None if raw is None else storage.decode_value(raw)

    def calls_decoder(self, recorder: CallRecorder, records: bytes) -> Callable[[], list[TailCall]]:
        """Return what decodes the records of a run, with the slots as they are now."""
        if not records:
            return list
        held = {array.name: array.names() for array in self._arrays}
        names: dict[str | int, str] = {array.descriptor: array.name for array in self._arrays}

        def resolve(where: str | int, index: int) -> tuple[str, str | None]:
            name = names.get(where, str(where))
            return name, held.get(name, {}).get(index)

        return lambda: recorder.decode(records, resolve)

    def log_lines(self, events: Mapping[str, list[bytes]]) -> list[LogLine]:
        """Return the lines of the object's own log among the records of a run."""
        return [
            LogLine.from_record(name, raw, self._logs[name])
            for name, records in events.items()
            if name in self._logs
            for raw in records
        ]

    def blind_spots(self) -> list[str]:
        """Return the slots whose entry nobody would see: real programs in an untraced object."""
        return [] if self.traced else [s for array in self._arrays for s in array.real_slots()]

    def bulk_watches(self, program_type: ProgramType) -> tuple[list[Map], CallRecorder | None]:
        """Return what a bulk call collects after each run: storages, and the recorder if any."""
        return self._storages, self._recorders.get(program_type.number)

    def close(self) -> None:
        """Release ring buffers, recorder and tracing instance."""
        self.prepared.clear()
        self._ring_memory.clear()
        self._resources.close()


def live() -> list[Observation]:
    """Return the observations of this process that someone still holds, oldest first."""
    return [one for _, one in sorted(_live.items())]
