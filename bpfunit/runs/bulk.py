"""Many runs in one call: an input each in, flat arrays out, no Python between two runs."""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from bpfunit import _native, engines
from bpfunit.errors import BpfunitError, FieldValueError, NotFoundError, SyscallError
from bpfunit.objects.maps import Map
from bpfunit.runs.result import NotObservedError
from bpfunit.tailcalls.tailcalls import CallRecorder, TailCall

if TYPE_CHECKING:
    from bpfunit.runs.program import Program

_CALLS_CAPACITY = 1 << 14  # tail-call records gathered before Python takes them over


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
        raw = int(self._bulk.retval[self.index])
        return raw - (1 << 32) if self._bulk.program_type.signed and raw >> 31 else raw

    @property
    def errno(self) -> int:
        """The error that the hook hands to the system call, 0 for none."""
        return -int(self._bulk.hook_error[self.index])

    @property
    def duration_ns(self) -> int:
        """Nanoseconds of the run."""
        return int(self._bulk.duration_ns[self.index])

    @property
    def verdict(self) -> str:
        """The return value by its name in the kernel's headers, as digits where it has none."""
        return self._bulk.program_type.verdict(self.retval)

    @property
    def ctx_in(self) -> Any:
        """The context as crafted, None where none was passed."""
        return self._bulk.ctx_in[self.index]

    @property
    def ctx(self) -> Any:
        """The context after the run."""
        return self._bulk.ctx[self.index]

    @property
    def data(self) -> bytes:
        """The data after the run; b"" for a type whose runs are made of contexts alone."""
        return self._bulk.data[self.index] if self._bulk.data else b""

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
        interpreted: whether the kernel interpreted the program, for want of a BPF JIT.
        native: whether the loop in C made them, rather than the one in Python.
        observed: whether somebody looked for tail calls.
        ctx_in, ctx: contexts before and after: ctypes arrays where the runs are made of contexts.
        data: what else came out of each run; empty where the runs are made of contexts alone.
        retval, duration_ns, error: arrays of one number a run.
        hook_error: what the hook hands to the system call, 0 or a negative errno, one a run.
    """

    def __init__(self, program: Program, engine: str, inputs: Any, storages: Sequence[Map]) -> None:
        count = len(inputs)
        self.program, self.program_type = program.name, program.program_type
        self.engine, self.native, self.observed = engine, False, True
        self.interpreted = program.interpreted
        self._run_class = program.run_class
        self.ctx_in: Any
        self.ctx: Any
        self.data: list[bytes] = []
        if isinstance(inputs, ctypes.Array):
            self.ctx_in = inputs
            self.ctx = type(inputs)()
        else:
            of_type = program.program_type
            self.ctx_in = [None if r.ctx is None else of_type.decode_context(r.ctx) for r in inputs]
            self.ctx = [None] * count
            self.data = [b""] * count
        self.retval = (ctypes.c_uint32 * count)()
        self.duration_ns = (ctypes.c_uint32 * count)()
        self.hook_error = (ctypes.c_int32 * count)()
        self.error = (ctypes.c_int32 * count)()
        self.calls: dict[int, Callable[[], list[TailCall]]] = {}
        self.blind_spots: list[str] = []
        self.storages = {
            s.name: (s, (ctypes.c_uint8 * (count * s.value_size))(), (ctypes.c_uint8 * count)())
            for s in storages
        }

    def __len__(self) -> int:
        return len(self.retval)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._run_class(self, i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._run_class(self, index % len(self))

    def __iter__(self) -> Iterator[BulkRun]:
        return (self._run_class(self, i) for i in range(len(self)))

    def storage(self, index: int, name: str | None = None) -> Any:
        """Return the entry of run ``index`` in an sk_storage map, None if its socket had none.

        Raises:
            NotFoundError: the object has no such map.
        """
        if name is None and len(self.storages) == 1:
            name = next(iter(self.storages))
        if name not in self.storages:
            raise NotFoundError("read sk_storage map", name, sorted(self.storages))
        store, values, present = self.storages[name]
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


def _contexts(program: Program, inputs: Any) -> Any:
    """Return a ctypes array of contexts, without a copy when that is what was given."""
    made_of = program.program_type.context
    assert made_of is not None
    if isinstance(inputs, ctypes.Array) and inputs._type_ is made_of:
        return inputs
    if isinstance(inputs, (bytes, bytearray, memoryview)):
        size = ctypes.sizeof(made_of)
        count, rest = divmod(len(inputs), size)
        if rest:
            raise FieldValueError(
                f"run {program.name} many times: {len(inputs)} bytes are not a whole number of"
                f" {size}-byte contexts"
            )
        return (made_of * count).from_buffer_copy(inputs)
    items = [c if isinstance(c, made_of) else program.as_context(c) for c in inputs]
    return (made_of * len(items)).from_buffer_copy(b"".join(map(bytes, items)))


def run_many(
    program: Program,
    inputs: Iterable[Any] | bytes,
    *,
    sock: socket.socket | None = None,
    fresh: bool | None = None,
    repeat: int = 1,
    observe: bool = True,
) -> BulkResult:
    """Run a program once for each input.

    Args:
        program: the program.
        inputs: for a type whose runs are made of contexts an array of them (no copy is made), bytes
            of whole contexts, or any iterable of contexts and of what the type makes one from, a
            destination ("10.96.0.1:80") for a socket address. For others an iterable of packets.
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
    observation, of_type = program.observation, program.program_type
    storages, recorder = observation.bulk_watches(of_type)
    engine = program.engine(observe=observe)
    of_contexts = program.runs_on_contexts
    given: Any = (
        _contexts(program, inputs) if of_contexts else [program.as_request(i) for i in inputs]
    )
    if fresh is None:
        fresh = sock is None and bool(storages) and of_type.socket_fields is not None
    result = BulkResult(program, engine.name, given, storages)
    small = of_type.answer_size <= _native.ANSWER_SIZE
    in_c = engine.is_test_run and of_contexts and small and not of_type.native
    native = _native.run_many() if in_c else None
    with ExitStack() as stack:
        if observe:
            stack.enter_context(observation.observing())
            observation.before()
            stack.callback(observation.said)
        else:
            recorder, result.observed = None, False
        if native is not None:
            result.native = True
            _loop_in_c(native, program, result, sock, fresh, repeat, recorder)
        else:
            requests = (
                (engines.Request(bytes(context)) for context in given)
                if of_contexts
                else iter(given)
            )
            _loop_in_python(engine, program, result, requests, sock, fresh, repeat, recorder)
    result.blind_spots = observation.blind_spots()
    refused = sum(1 for error in result.error if error) if _any_set(result.error) else 0
    observation.remember(f"{program.name}: {len(result)} runs in bulk, {refused} refused")
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
    stores = (_native.Storage * len(result.storages))()
    for slot, (store, values, present) in zip(stores, result.storages.values(), strict=True):
        slot.map_fd, slot.value_size = store.descriptor, store.value_size
        slot.values, slot.present = ctypes.addressof(values), ctypes.addressof(present)
    of_type = program.program_type
    fields = of_type.socket_fields
    job = _native.Job(
        prog_fd=program.descriptor,
        repeat=repeat,
        count=count,
        ctx_size=of_type.context_size,
        answer_size=of_type.answer_size,
        fd_offset=fields.fd if fields else -1,
        made_of_offset=fields.made_of if fields else -1,
        ctx_in=ctypes.addressof(result.ctx_in),
        ctx_out=ctypes.addressof(result.ctx),
        retval=ctypes.addressof(result.retval),
        duration=ctypes.addressof(result.duration_ns),
        verdict=ctypes.addressof(result.hook_error),
        error=ctypes.addressof(result.error),
        sock_fd=sock.fileno() if sock is not None else -1 if fresh else 0,
        storages=len(stores),
        storage=ctypes.addressof(stores),
    )
    if recorder is not None:
        # the two stay referenced by these names until the loop is done
        calls = (ctypes.c_uint8 * (_CALLS_CAPACITY * recorder.record_size))()
        call_count = (ctypes.c_uint32 * count)()
        job.recorder, job.recorder_capacity = recorder.address(), recorder.CAPACITY
        job.record_size = recorder.record_size
        job.calls, job.calls_capacity = ctypes.addressof(calls), _CALLS_CAPACITY
        job.call_count = ctypes.addressof(call_count)
    position = 0
    while position < count:
        reached = function(ctypes.byref(job), position)
        if recorder is not None:
            _take_calls(program, result, recorder, calls, call_count, range(position, count))
            job.calls_used = 0
        if reached < count and result.error[reached] == errno.EINTR:
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
        end = start + n * recorder.record_size
        result.calls[index] = program.observation.calls_decoder(recorder, bytes(raw[start:end]))
        call_count[index], start = 0, end


def _loop_in_python(
    engine: engines.Engine,
    program: Program,
    result: BulkResult,
    requests: Iterator[engines.Request],
    sock: socket.socket | None,
    fresh: bool,
    repeat: int,
    recorder: CallRecorder | None,
) -> None:
    with engine.prepared(program.ref) as run:
        for index, request in enumerate(requests):
            own = None
            if fresh and sock is None:
                own = program.program_type.resource(result.ctx_in[index])
            used = sock or own or request.sock
            try:
                outcome = run(
                    request._replace(
                        sock=used,
                        repeat=repeat,
                        fresh=own is not None,
                        watch=program.observation if result.observed else None,
                    )
                )
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
                result.calls[index] = program.observation.calls_decoder(recorder, records)


def _note(result: BulkResult, index: int, outcome: engines.RawOutcome) -> None:
    if isinstance(result.ctx, ctypes.Array):
        size = result.program_type.context_size
        raw = outcome.ctx[:size]
        ctypes.memmove(ctypes.addressof(result.ctx) + index * size, raw, len(raw))
    else:
        if outcome.ctx:
            result.ctx[index] = result.program_type.decode_context(outcome.ctx)
        result.data[index] = outcome.data
    result.retval[index] = outcome.retval & 0xFFFFFFFF
    result.duration_ns[index] = outcome.duration_ns or 0
    result.hook_error[index] = -outcome.errno


def _note_storages(result: BulkResult, index: int, fd: int) -> None:
    for store, values, present in result.storages.values():
        raw = store.lookup(fd)
        present[index] = raw is not None
        if raw is not None:
            ctypes.memmove(ctypes.addressof(values) + index * store.value_size, raw, len(raw))
