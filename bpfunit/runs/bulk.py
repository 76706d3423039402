"""Many runs in one call: a context each in, flat arrays out, no Python between two runs."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from bpfunit import _native, engines
from bpfunit.errors import BpfunitError, FieldValueError, NotFoundError, SyscallError
from bpfunit.objects.maps import Map
from bpfunit.progtypes.sock_addr import SOCK_ADDR_SIZE, BpfSockAddr
from bpfunit.runs.result import NotObservedError
from bpfunit.tailcalls.tailcalls import CallRecorder, TailCall
from bpfunit.values.net import Endpoint

if TYPE_CHECKING:
    from bpfunit.runs.program import Program

_EINTR = 4
_CALLS_ROOM = 1 << 14  # tail-call records gathered before Python takes them over


class BulkRun:
    """One run of a bulk call, read from its arrays when asked."""

    __slots__ = ("_bulk", "index")

    def __init__(self, bulk: BulkResult, index: int) -> None:
        self._bulk, self.index = bulk, index

    @property
    def error(self) -> int:
        """The errno with which the kernel refused this run, 0 when it ran."""
        return int(self._bulk.error[self.index])

    @property
    def retval(self) -> int:
        """What the program returned."""
        return int(self._bulk.retval[self.index])

    @property
    def errno(self) -> int:
        """The error that the hook hands to the system call, 0 for none."""
        return -int(self._bulk.verdict[self.index])

    @property
    def duration_ns(self) -> int:
        """Nanoseconds of the run."""
        return int(self._bulk.duration_ns[self.index])

    @property
    def ctx_in(self) -> BpfSockAddr:
        """The context as crafted."""
        context: BpfSockAddr = self._bulk.ctx_in[self.index]
        return context

    @property
    def ctx(self) -> BpfSockAddr:
        """The context after the run."""
        return self._bulk.ctx[self.index]

    @property
    def dst(self) -> Endpoint:
        """The address and port after the run."""
        return self.ctx.user

    @property
    def tail_calls(self) -> list[TailCall]:
        """The programs entered by tail call, in order."""
        return self._bulk.tail_calls(self.index)

    def storage(self, name: str | None = None) -> Any:
        """Return the run's socket's entry of an sk_storage map, None if it had none."""
        return self._bulk.storage(self.index, name)

    def __repr__(self) -> str:
        outcome = f"errno {self.error}" if self.error else f"retval={self.retval}, ctx={self.ctx!r}"
        return f"<run {self.index} of {self._bulk.program}: {outcome}>"


class BulkResult(Sequence[BulkRun]):
    """The outcome of :meth:`bpfunit.Program.run_many`: a sequence of runs over flat arrays.

    Attributes:
        program: the program's name.
        engine: by which engine they ran.
        native: whether the loop in C made them, rather than the one in Python.
        observed: whether somebody looked for tail calls.
        ctx_in, ctx: arrays of contexts, before and after.
        retval, duration_ns, verdict, error: arrays of one number a run.
    """

    def __init__(self, program: str, engine: str, contexts: Any, storages: Sequence[Map]) -> None:
        count = len(contexts)
        self.program, self.engine, self.native, self.observed = program, engine, False, True
        self.ctx_in = contexts
        self.ctx = (BpfSockAddr * count)()
        self.retval = (ctypes.c_uint32 * count)()
        self.duration_ns = (ctypes.c_uint32 * count)()
        self.verdict = (ctypes.c_int32 * count)()
        self.error = (ctypes.c_int32 * count)()
        self.calls: dict[int, Callable[[], list[TailCall]]] = {}
        self.blind_spots: list[str] = []
        self._storages = {
            s.name: (s, (ctypes.c_uint8 * (count * s.value_size))(), (ctypes.c_uint8 * count)())
            for s in storages
        }

    def __len__(self) -> int:
        return len(self.retval)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [BulkRun(self, i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return BulkRun(self, index % len(self))

    def __iter__(self) -> Iterator[BulkRun]:
        return (BulkRun(self, i) for i in range(len(self)))

    def storage(self, index: int, name: str | None = None) -> Any:
        """Return the entry of run ``index`` in an sk_storage map, None if its socket had none.

        Raises:
            NotFoundError: the object has no such map.
        """
        if name is None and len(self._storages) == 1:
            name = next(iter(self._storages))
        if name not in self._storages:
            raise NotFoundError("read sk_storage map", name, sorted(self._storages))
        store, values, present = self._storages[name]
        if not present[index]:
            return None
        start = index * store.value_size
        return store.decode_value(bytes(values[start : start + store.value_size]))

    def tail_calls(self, index: int) -> list[TailCall]:
        """Return the programs that run ``index`` entered by tail call, in order.

        Raises:
            BpfunitError: as :attr:`bpfunit.Result.tail_calls`.
        """
        if not self.observed:
            raise NotObservedError(
                f"list tail calls of {self.program}: the runs were made with observe=False"
            )
        if self.blind_spots:
            raise BpfunitError(
                f"list tail calls of {self.program}: {', '.join(self.blind_spots)} held a real"
                " program; load with trace_tail_calls=True to see it entered"
            )
        made = self.calls.get(index)
        return [call for call in made() if call.entered] if made else []

    def raise_for_errors(self) -> BulkResult:
        """Raise for the first refused run, else return self.

        Raises:
            SyscallError: a run was refused; the message says which one.
        """
        for index, error in enumerate(self.error):
            if error:
                raise SyscallError(f"run {index} of {len(self)} of {self.program}", error)
        return self


def _as_array(program: Program, contexts: Any) -> Any:
    """Return a ctypes array of contexts, without a copy when that is what was given."""
    if isinstance(contexts, ctypes.Array) and contexts._type_ is BpfSockAddr:
        return contexts
    if isinstance(contexts, (bytes, bytearray, memoryview)):
        count, rest = divmod(len(contexts), SOCK_ADDR_SIZE)
        if rest:
            raise FieldValueError(
                f"run {program.name} many times: {len(contexts)} bytes are not a whole number of"
                f" {SOCK_ADDR_SIZE}-byte contexts"
            )
        return (BpfSockAddr * count).from_buffer_copy(contexts)
    items = [c if isinstance(c, BpfSockAddr) else program.craft(c) for c in contexts]
    return (BpfSockAddr * len(items)).from_buffer_copy(b"".join(map(bytes, items)))


def run_many(
    program: Program,
    contexts: Iterable[Any] | bytes,
    *,
    sock: socket.socket | None = None,
    fresh: bool | None = None,
    repeat: int = 1,
    observe: bool = True,
) -> BulkResult:
    """Run a socket-address program once for each context.

    Args:
        program: the program.
        contexts: an array of :class:`BpfSockAddr` (no copy is made), bytes of whole contexts, or
            any iterable of contexts and destinations ("10.96.0.1:80").
        sock: one socket for all runs.
        fresh: a socket for each run, made here, so that its storage can be read; by default when
            the object has sk_storage maps. Otherwise the kernel makes them.
        repeat: how often to run each.
        observe: collect tail calls. As of :meth:`bpfunit.Program.run`: observed calls wait for one
            another, with False those of several threads run side by side in the kernel.

    Raises:
        KeyboardInterrupt: a signal ended the loop.
    """
    if repeat < 1:
        raise FieldValueError(f"run {program.name} many times: repeat is {repeat}, at least 1")
    program.check_open()
    session = program.session
    storages, recorder = session.bulk_watches()
    engine = program.engine(observe=observe)
    array = _as_array(program, contexts)
    if fresh is None:
        fresh = sock is None and bool(storages)
    result = BulkResult(program.name, engine.name, array, storages)
    native = _native.run_many() if engine.name == "testrun" else None
    with ExitStack() as stack:
        if observe:
            stack.enter_context(session.observing())
            session.before()
            stack.callback(session.said)
        else:
            recorder, result.observed = None, False
        if native is not None:
            result.native = True
            _loop_in_c(native, program, result, sock, fresh, repeat, recorder)
        else:
            _loop_in_python(engine, program, result, sock, fresh, repeat, recorder)
    result.blind_spots = session.blind_spots()
    refused = sum(1 for error in result.error if error) if _any_set(result.error) else 0
    session.remember(f"{program.name}: {len(result)} runs in bulk, {refused} refused")
    return result


def _loop_in_c(
    function: Any,
    program: Program,
    result: BulkResult,
    sock: socket.socket | None,
    fresh: bool,
    repeat: int,
    recorder: CallRecorder | None,
) -> None:
    count = len(result)
    stores = (_native.Storage * len(result._storages))()
    for slot, (store, values, present) in zip(stores, result._storages.values(), strict=True):
        slot.map_fd, slot.value_size = store.fd, store.value_size
        slot.values, slot.present = ctypes.addressof(values), ctypes.addressof(present)
    job = _native.Job(
        prog_fd=program.fd,
        repeat=repeat,
        count=count,
        ctx_in=ctypes.addressof(result.ctx_in),
        ctx_out=ctypes.addressof(result.ctx),
        retval=ctypes.addressof(result.retval),
        duration=ctypes.addressof(result.duration_ns),
        verdict=ctypes.addressof(result.verdict),
        error=ctypes.addressof(result.error),
        sock_fd=sock.fileno() if sock is not None else -1 if fresh else 0,
        storages=len(stores),
        storage=ctypes.addressof(stores),
    )
    if recorder is not None:
        # the two stay referenced by these names until the loop is done
        calls = (ctypes.c_uint8 * (_CALLS_ROOM * recorder.RECORD_SIZE))()
        call_count = (ctypes.c_uint32 * count)()
        job.recorder, job.recorder_room = recorder.address(), recorder.CAPACITY
        job.record_size = recorder.RECORD_SIZE
        job.calls, job.calls_room = ctypes.addressof(calls), _CALLS_ROOM
        job.call_count = ctypes.addressof(call_count)
    position = 0
    while position < count:
        reached = function(ctypes.byref(job), position)
        if recorder is not None:
            _take_calls(program, result, recorder, calls, call_count, range(position, count))
            job.calls_used = 0
        if reached < count and result.error[reached] == _EINTR:
            raise KeyboardInterrupt(f"after {reached} of {count} runs of {program.name}")
        position = reached


def _any_set(numbers: Any) -> bool:
    """Tell whether an array holds anything but zeros, without a Python object for each of them."""
    raw = bytes(numbers)
    return raw != bytes(len(raw))


def _take_calls(
    program: Program,
    result: BulkResult,
    recorder: CallRecorder,
    calls: Any,
    call_count: Any,
    runs: range,
) -> None:
    if not _any_set(call_count):
        return
    start = 0
    raw = memoryview(calls).cast("B")
    for index in runs:
        if not (n := call_count[index]):
            continue
        end = start + n * recorder.RECORD_SIZE
        result.calls[index] = program.session.calls_decoder(bytes(raw[start:end]))
        call_count[index], start = 0, end


def _loop_in_python(
    engine: engines.Engine,
    program: Program,
    result: BulkResult,
    sock: socket.socket | None,
    fresh: bool,
    repeat: int,
    recorder: CallRecorder | None,
) -> None:
    from bpfunit.runs.program import socket_for

    make: Callable[[BpfSockAddr], socket.socket | None] = socket_for if fresh else lambda _: None
    with _ready(engine, program) as run:
        for index, context in enumerate(result.ctx_in):
            own = make(context) if sock is None else None
            used = sock or own
            try:
                outcome = run(engines.Request(bytes(context), used, repeat, fresh=own is not None))
            except SyscallError as error:
                result.error[index] = error.errno or 0
            else:
                _note(result, index, outcome)
                if used is not None:
                    _note_storages(result, index, used.fileno())
            finally:
                if own is not None:
                    own.close()
            if recorder is not None and (records := recorder.take()):
                result.calls[index] = program.session.calls_decoder(records)


def _ready(
    engine: engines.Engine, program: Program
) -> AbstractContextManager[Callable[[engines.Request], engines.RawOutcome]]:
    """Have what the engine sets up for a program stay for all runs, where it can."""
    attached = getattr(engine, "attached", None)
    return attached(program) if attached else nullcontext(partial(engine.run, program))


def _note(result: BulkResult, index: int, outcome: engines.RawOutcome) -> None:
    ctypes.memmove(
        ctypes.addressof(result.ctx) + index * SOCK_ADDR_SIZE, outcome.ctx, SOCK_ADDR_SIZE
    )
    result.retval[index] = outcome.retval
    result.duration_ns[index] = outcome.duration_ns or 0
    result.verdict[index] = -outcome.errno


def _note_storages(result: BulkResult, index: int, fd: int) -> None:
    for store, values, present in result._storages.values():
        raw = store.lookup(fd)
        present[index] = raw is not None
        if raw is not None:
            ctypes.memmove(ctypes.addressof(values) + index * store.value_size, raw, len(raw))
