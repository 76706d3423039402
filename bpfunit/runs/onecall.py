"""A crafted run and all that is observed of it in one call of C, prepared once for a program.

What the run did is kept as bytes, and read when somebody asks the result for it: most tests ask for
one thing or two. What this has no way for (perf events, other engines) and machines without the
extension go the long way, which gives the same results: ``Program.execute``.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bpfunit import _native, engines
from bpfunit._sys.uapi import TestRunAttr
from bpfunit.engines.testrun import TestRunEngine, refused
from bpfunit.errors import BpfunitError, SyscallError
from bpfunit.progtypes.base import ProgramRef, RawOutcome, Request
from bpfunit.rewrite import ambient

if TYPE_CHECKING:
    import socket

    from bpfunit.objects.maps import Map
    from bpfunit.runs.observation import Observation
    from bpfunit.runs.result import Result

NO_SOCKET, OWN_SOCKET = -1, -2  # of calls.c
_ANSWER = struct.Struct("=9I")
_PART = struct.Struct("=II")
_THERE = 1  # more is an errno and two


class OneCall:
    """The runs of one program of an object.

    Args:
        ref: the program.
        observation: of its object; what is watched is that of now.

    Attributes:
        in_c: runs the program; see ``run`` of ``calls.c``. Its first argument is ``address``.
        address: of what it needs to know.
        crafted: contexts of earlier runs as bytes, by what they were crafted from.
        is_observed: whether somebody observes the branches of the coming runs.
        printed: where the object's programs print, None where they do not.
        notes: whether there is something to note right after a run: printed lines, or what is in
            the slots of program arrays.

    Raises:
        BpfunitError: such runs go the long way; the reason.
    """

    def __init__(self, ref: ProgramRef, observation: Observation) -> None:
        extension = _native.extension()
        if extension is None:
            raise BpfunitError("there is no C compiler")
        of_type = ref.type
        if of_type.live and observation.engine not in (None, "testrun"):
            raise BpfunitError(f"the engine is {observation.engine}")
        if not isinstance(engines.get("testrun"), TestRunEngine):
            raise BpfunitError("the engine testrun is another")
        if of_type.once or of_type.unfit():
            raise BpfunitError("the type's runs are not alike")
        self.ref, self.observation = ref, observation
        self.in_c = extension.run
        self._storages, rings, self._recorder, recorders = observation.watched(of_type)
        self._ring_names = [ring.name for ring in rings]
        self.printed = observation.printed
        self.notes = observation.traced or self._recorder is not None or self.printed is not None
        self._job = job = _native.Run(prog_fd=ref.fd, fd_offset=-1, made_of_offset=-1)
        if of_type.socket_fields is not None:
            job.fd_offset, job.made_of_offset = of_type.socket_fields
        job.has_ctx_out = of_type.answers
        job.asks_for_engine = of_type.live and observation.engine is None
        self._keep: list[Any] = []
        job.storages, job.storage = self._array(
            _native.Stored, [(one.descriptor, one.value_size) for one in self._storages]
        )
        job.rings, job.ring = self._array(
            _native.WatchedRing, [observation.ring_memory(ring).fields for ring in rings]
        )
        job.recorders, job.recorder = self._array(
            ctypes.c_uint64, [one.address() for one in recorders]
        )
        if self._recorder is not None:
            job.record_size = self._recorder.record_size
            job.recorder_capacity = self._recorder.CAPACITY
        self.address = ctypes.addressof(job)
        self._observer: Any = None
        self.is_observed = False
        self.crafted: dict[Any, bytes] = {}

    def _array(self, of: Any, values: list[Any]) -> tuple[int, int]:
        array = (of * (len(values) or 1))(*values)
        self._keep.append(array)
        return len(values), ctypes.addressof(array)

    def observed_by(self, observer: Any) -> None:
        """Have the branches of the coming runs observed by somebody, or nobody."""
        if observer is not self._observer:
            self._observer = observer
            self.is_observed = observer is not None
            self._job.probed = observer.memory() if observer is not None else None

    def run(
        self,
        ctx: bytes | None,
        data: bytes | None,
        ctx_room: int,
        data_room: int,
        repeat: int,
        sock: socket.socket | None,
    ) -> bytes | None:
        """Run the program once; return the answer, None where another engine is chosen.

        The locks are the caller's.

        Args:
            ctx: the context, None for none.
            data: what goes with it, None for nothing.
            ctx_room: bytes of context that may come back.
            data_room: the same of data.
            repeat: how often to run.
            sock: the run's socket, if it has one.

        Raises:
            SyscallError: the kernel refused the run.
        """
        self.observed_by(ambient.run_observer())
        if self.printed is not None:
            self.printed.drain()
        fd = sock.fileno() if sock is not None else NO_SOCKET
        raw = self.in_c(self.address, ctx, data, ctx_room, data_room, repeat, fd)
        if type(raw) is tuple:
            raise self.refused(raw, ctx, data, data_room, sock)
        answer: bytes | None = raw
        return answer

    def refused(
        self,
        answer: tuple[int, int],
        ctx: bytes | None,
        data: bytes | None,
        data_room: int,
        sock: socket.socket | None = None,
    ) -> SyscallError:
        """Return the error of a run that the kernel refused."""
        request = Request(ctx, sock, 1, data, data_room)
        return refused(self.ref, request, TestRunAttr(data_size_out=answer[1]), answer[0])

    def note(self, result: Result) -> None:
        """Put on a result, right after its run, what will not be there any more when it is read."""
        observation = self.observation
        if observation.traced:
            result.traced = True
        if self.printed is not None:
            result.printk = self.printed.drain()
        if observation.has_filled_slots:
            result.blind_spots = observation.blind_spots()
        recorder = self._recorder
        if recorder is None:
            return
        raw = result.answer
        count = int.from_bytes(raw[20:24], sys.byteorder)
        if count > recorder.CAPACITY:
            result.calls = recorder.refusal(count - recorder.CAPACITY)
        elif count:
            result.calls = observation.calls_decoder(recorder, self._part(raw, 3))

    # -- the parts of an answer

    def _part(self, raw: bytes, number: int) -> bytes:
        """Return a part: 2 storages, 3 calls, 4 events, 5 probes."""
        words = _ANSWER.unpack_from(raw)
        calls = 0
        if self._recorder is not None:
            calls = min(words[5], self._recorder.CAPACITY) * self._recorder.record_size
        sizes = (words[2], words[3], words[4], calls, words[6], words[7])
        start = _ANSWER.size + sum(sizes[:number])
        return raw[start : start + sizes[number]]

    def outcome(self, raw: bytes, ctx_size: int) -> RawOutcome:
        """Return what came back.

        Args:
            raw: the answer.
            ctx_size: bytes of context that went in.
        """
        of_type = self.ref.type
        retval, duration, ctx, data, *_ = _ANSWER.unpack_from(raw)
        if of_type.signed and retval >> 31:
            retval -= 1 << 32
        behind = _ANSWER.size + ctx
        # what the kernel has and the caller's structure has not is cut
        known = min(ctx, max(ctx_size, of_type.context_size))
        return of_type.decode(
            retval, raw[_ANSWER.size : _ANSWER.size + known], raw[behind : behind + data], duration
        )

    def storages(self, raw: bytes) -> dict[str, Any] | None:
        """Return the entry of the run's socket in each storage map; None where it had no socket.

        Raises:
            SyscallError: the kernel did not show one.
        """
        if not int.from_bytes(raw[32:36], sys.byteorder):
            return None
        part, at = self._part(raw, 2), 0
        found: dict[str, Any] = {}
        for one in self._storages:
            there = int.from_bytes(part[at : at + 4], sys.byteorder)
            value = part[at + 4 : at + 4 + one.value_size]
            at += 4 + one.value_size
            if there > _THERE:
                raise SyscallError(f"look up in map {one.name}", there - 2)
            found[one.name] = one.decode_value(value) if there else None
        return found

    def events(self, raw: bytes) -> dict[str, list[bytes]]:
        """Return the records of each ring buffer that got any."""
        found: dict[str, list[bytes]] = {}
        for number, record in _parts(self._part(raw, 4)):
            found.setdefault(self._ring_names[number], []).append(record)
        return found

    def path(self, raw: bytes, observer: Any) -> Any:
        """Return the branches that were taken, as who observed them tells them."""
        return observer.path_of(list(_parts(self._part(raw, 5)))) if observer is not None else None


def _parts(raw: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(raw):
        number, size = _PART.unpack_from(raw, at)
        at += _PART.size
        yield number, raw[at : at + size]
        at += size


class RingMemory:
    """The mapping of a ring buffer, through which records are taken without a system call.

    Args:
        ring: the map.

    Raises:
        BpfunitError: it is closed.
        OSError: it cannot be mapped.
    """

    def __init__(self, ring: Map) -> None:
        if ring.descriptor < 0:  # which mmap would take for memory of nobody's
            raise BpfunitError(f"map ring buffer {ring.name}: it is closed")
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(ring.descriptor, page)
        try:
            self._rest = mmap.mmap(
                ring.descriptor, page + 2 * ring.max_entries, prot=mmap.PROT_READ, offset=page
            )
        except BaseException:
            self._consumer.close()
            raise
        producer = _native.address_of(self._rest)
        self.fields = (
            _native.address_of(self._consumer),
            producer,
            producer + page,
            ring.max_entries - 1,
            0,
        )

    def close(self) -> None:
        """Unmap it."""
        self._consumer.close()
        self._rest.close()


def prepare(ref: ProgramRef, observation: Observation) -> OneCall | None:
    """Return the prepared runs of a program, None where they go the long way."""
    try:
        return OneCall(ref, observation)
    except (BpfunitError, OSError):
        return None
