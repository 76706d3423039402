"""Programs: run them with a crafted input, once or many times."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from bpfunit import engines
from bpfunit._sys import bpf, uapi
from bpfunit.errors import ENOTSUPP, BpfunitError, SyscallError
from bpfunit.progtypes.base import ContextError, ProgramRef, ProgramType, Request, type_of
from bpfunit.rewrite import ambient
from bpfunit.runs import bulk, onecall
from bpfunit.runs.observation import Observation
from bpfunit.runs.result import Answer, Result

if TYPE_CHECKING:
    from bpfunit.objects.maps import Map
    from bpfunit.runs.onecall import OneCall

_Self = TypeVar("_Self", bound="Program")


class Program:
    """One loaded program; the subclass of its type has the ``run`` that fits it.

    Args:
        fd: its descriptor, which the program does not own.
        name: the name shown; by default the kernel's (15 characters).
        attach_type: ``enum bpf_attach_type`` that it was loaded for, None where nobody knows.
        section: the ELF section, "" where there is none.
        observation: what its object's runs are observed by.

    Attributes:
        program_type: what is known of its type.
    """

    result_class: ClassVar[type[Result]] = Result
    run_class: ClassVar[type[bulk.BulkRun]] = bulk.BulkRun

    def __init__(
        self,
        fd: int,
        name: str | None = None,
        attach_type: int | None = None,
        section: str = "",
        observation: Observation | None = None,
    ) -> None:
        info = _info(fd, name)
        self._id = int(info.id)
        self.section = section
        self._attach_type = attach_type
        self.observation = observation or Observation()
        self.ref = ProgramRef(
            fd,
            name or info.name.decode(),
            type_of(int(info.type)),
            attach_type or 0,
            interpreted=info.jited_prog_len == 0,
        )

    @staticmethod
    def of(
        fd: int,
        name: str | None = None,
        attach_type: int | None = None,
        section: str = "",
        observation: Observation | None = None,
    ) -> Program:
        """Return the program behind a descriptor as the class of its type."""
        wanted = type_of(int(_info(fd, name).type)).program_class or AnyProgram
        program: Program = wanted(fd, name, attach_type, section, observation)
        return program

    @classmethod
    def from_fd(
        cls: type[_Self], fd: int, attach_type: str | int | None = None, *, maps: Iterable[Map] = ()
    ) -> _Self:
        """Wrap a program of someone else's, for example bcc's ``load_func(…).fd``; it stays theirs.

        Args:
            fd: the descriptor.
            attach_type: what it was loaded for, where its type has several: "connect4",
                "cgroup/connect4" or the number. The kernel does not tell it.
            maps: maps to look into after each run: socket storages, ring buffers, program arrays.

        Raises:
            SyscallError: ``fd`` is not a BPF program.
            NotFoundError: there is no such attach type.
            BpfunitError: the program is of another type than the class that was asked.
        """
        bpf.require_bpf_fd("wrap program", fd, "prog")
        if isinstance(attach_type, str):
            attach_type = type_of(int(_info(fd, None).type)).attach_type_of(attach_type)
        program = Program.of(fd, attach_type=attach_type)
        if not isinstance(program, cls):
            raise BpfunitError(
                f"wrap {program.name} as {cls.__name__}: its type is {program.program_type.name}"
                f"; use {type(program).__name__}.from_fd or Program.from_fd"
            )
        program.observation.name = program.name
        program.observation.watch({one.name: one for one in maps})
        return program

    @property
    def fd(self) -> int:
        """The descriptor; -1 once the object is closed.

        Who has it can do anything with the program: an object whose descriptors were read is not
        kept for another test.
        """
        self._note_escape("descriptor")
        return self.ref.fd

    @property
    def id(self) -> int:
        """The kernel's number of the program."""
        self._note_escape("number")
        return self._id

    @property
    def descriptor(self) -> int:
        """The same as ``fd``, for calls that leave nothing behind."""
        return self.ref.fd

    @property
    def owner(self) -> Observation:
        """Who wants to know when the program's descriptor or number is read."""
        return self.observation

    def _note_escape(self, what: str) -> None:
        if self.ref.fd >= 0:
            self.observation.note_escape(f"the {what} of a program was read")

    def renewed(self: _Self) -> _Self:
        """Return the same program as another object, and be dead from now on."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        self.let_go()
        return other

    @property
    def name(self) -> str:
        """The name."""
        return self.ref.name

    @property
    def program_type(self) -> ProgramType:
        """What is known of the program's type."""
        return self.ref.type

    @property
    def type(self) -> int:
        """The number of the type, ``enum bpf_prog_type``."""
        return self.ref.type.number

    @property
    def attach_type(self) -> int:
        """The attach type's number; 0 where nobody knows it."""
        return self.ref.attach_type

    @property
    def interpreted(self) -> bool:
        """Whether the kernel interprets it: a kernel without a BPF JIT, or whose JIT is off."""
        return self.ref.interpreted

    def __repr__(self) -> str:
        return f"<program {self.name}: {self.section or self.program_type.name}, fd {self.ref.fd}>"

    def let_go(self) -> None:
        """Forget the descriptor, whose number may be someone else's by now."""
        self.ref = self.ref._replace(fd=-1)

    def check_open(self) -> None:
        """Refuse to run a program whose object is closed.

        Raises:
            SyscallError: EBADF, it is.
        """
        if self.ref.fd < 0:
            raise SyscallError(f"run {self.name}", errno.EBADF, "its object is closed")

    def run(self, *args: Any, **options: Any) -> Result:
        """Run the program with a crafted input and return what it did.

        The class of the program's type says what the input is made of. Options that all have:

        Args:
            *args: the input.
            **options: ``repeat``: how often to run, each time from the crafted input. ``observe``:
                collect log lines, ring-buffer records, printed lines, tail calls and the branches
                taken. Observed runs of one object wait for one another, so that each gets its own;
                with False runs of several threads are in the kernel at the same time, and asking
                the result for any of these raises NotObservedError. On the engine ``both`` such a
                run is one of ``testrun``.

        Raises:
            SyscallError: the kernel refused the run; ``errno`` says why (524, ENOTSUPP, when
                nothing gives this program type a test run).
            ContextError: an input that the program never sees on a live system.
            NotApplicableError: this engine cannot produce such a run.
        """
        raise NotImplementedError(f"{type(self).__name__} has no run")

    def engine(self, *, observe: bool) -> engines.Engine:
        """Return the engine of this program's runs.

        Types that no real call is known for have the kernel's test run alone. Comparing needs the
        maps to itself: a run that others may make at the same time is not compared.
        """
        if not self.program_type.live:
            return engines.get("testrun")
        chosen = engines.get(self.observation.engine)
        return engines.get("testrun") if chosen.name == "both" and not observe else chosen

    def execute(
        self, request: Request, ctx_in: Any = None, *, observe: bool = True, **shown: Any
    ) -> Any:
        """Run one request on the object's engine, observed, and return the type's result.

        Args:
            request: the run.
            ctx_in: the context as it was crafted, for the result and for reports.
            observe: see :meth:`run`.
            **shown: what the class of the results wants beside.

        Raises:
            BpfunitError: as :meth:`run`.
        """
        observation = self.observation
        if observe and not request.flags and (one := self.one_call()) is not None:
            done = self._execute_at_once(one, request, ctx_in, shown)
            if done is not None:
                return done
        engine = self.engine(observe=observe)
        try:
            with observation.observing() if observe else nullcontext():
                if observe:
                    observation.before()
                    request = request._replace(watch=observation)
                outcome = engine.run(self.ref, request)
                result = self.result_class(self.ref, engine.name, outcome, ctx_in, **shown)
                if observe:
                    observation.after(result, request.sock)
                else:
                    observation.read_storages(result, request.sock)
        except BpfunitError as error:
            observation.remember(f"{self.name}({ctx_in!r}): {error}")
            self._raise_not_applicable(error, engine.name)
            raise
        return result

    def one_call(self) -> OneCall | None:
        """Return the program's runs in one call of C, None where they go the long way."""
        prepared, fd = self.observation.prepared, self.ref.fd
        try:
            return prepared[fd]
        except KeyError:
            self.check_open()
            with self.observation.lock:
                one = prepared[fd] = onecall.prepare(self.ref, self.observation)
            return one

    def _execute_at_once(
        self, one: OneCall, request: Request, ctx_in: Any, shown: Mapping[str, Any]
    ) -> Result | None:
        """Do what :meth:`execute` does in one call of C; None where another engine is chosen."""
        observation, of_type = self.observation, self.ref.type
        try:
            ctx, data = of_type.encode(request)
            size = len(ctx) if ctx is not None else 0
            ctx_room = of_type.ctx_size_out(size) if ctx is not None and of_type.answers else 0
            data_room = request.data_size_out or of_type.answer_size
            with observation.lock, ambient.one_run():
                raw = one.run(ctx, data, ctx_room, data_room, request.repeat, request.sock)
                if raw is None:
                    return None
                answer = Answer(raw, one, size, ambient.run_observer())
                result = self.result_class(self.ref, "testrun", answer, ctx_in, **shown)
                one.note(result)
        except BpfunitError as error:
            observation.remember(f"{self.name}({ctx_in!r}): {error}")
            self._raise_not_applicable(error, "testrun")
            raise
        observation.remember(result)
        return result

    def _raise_not_applicable(self, error: BpfunitError, engine: str) -> None:
        """Say of a type without real calls, run on the engine of those, that it has no run here."""
        chosen = engines.get(self.observation.engine).name
        if getattr(error, "errno", 0) == ENOTSUPP and engine != chosen:
            raise engines.NotApplicableError(
                f"run {self.name}: this kernel has no test run for its type, and no real call"
                f" of the engine {chosen} reaches it"
            ) from error

    def run_many(self, inputs: Iterable[Any] | bytes, **options: Any) -> bulk.BulkResult:
        """Run once for each input, without a Python round trip per field.

        See :func:`bpfunit.runs.bulk.run_many` for the options and the result.
        """
        self.check_open()
        return bulk.run_many(self, inputs, **options)

    @property
    def runs_on_contexts(self) -> bool:
        """Whether :meth:`run_many` takes contexts, of one size all, rather than requests."""
        return self.program_type.context is not None

    def as_context(self, given: Any) -> Any:
        """Return the context that one input of :meth:`run_many` stands for."""
        return self.refuse_input(given)

    def as_request(self, given: Any) -> Request:
        """Return the run that one input of :meth:`run_many` stands for, if that is no context."""
        if isinstance(given, Mapping):
            return Request(**given)
        if isinstance(given, Request):
            return given
        return Request(bytes(given))

    def refuse_input(self, given: Any) -> Any:
        """Refuse an input of another type's.

        Raises:
            ContextError: always.
        """
        raise ContextError(
            f"run {self.name}: its type is {self.program_type.name}; give it"
            f" {self.program_type.takes}, found {given!r}"
        )


class AnyProgram(Program):
    """A program of a type without a class of its own: a context and data, as they are."""

    def run(
        self,
        ctx: Any = None,
        *,
        data: bytes | None = None,
        headroom: int = 0,
        repeat: int = 1,
        observe: bool = True,
    ) -> Result:
        """Run the program with this context and this data.

        Args:
            ctx: the context: a structure, bytes, or None to pass none at all.
            data: what the type takes beside, None for nothing.
            headroom: bytes by which the answer may be longer than ``data``.
            repeat: how often to run.
            observe: see :meth:`Program.run`.

        Raises:
            SyscallError: the kernel refused the run; 524 (ENOTSUPP) when the type has no test run.
            NotApplicableError: this engine cannot produce such a run.
        """
        self.check_open()
        if isinstance(ctx, str):
            self.refuse_input(ctx)
        capacity = len(data) + headroom if data is not None else headroom
        raw = None if ctx is None else bytes(ctx)
        request = Request(raw, None, repeat, data, capacity)
        result: Result = self.execute(request, ctx, observe=observe)
        return result


def _info(fd: int, name: str | None) -> uapi.ProgInfo:
    return bpf.object_info(f"inspect program {name or fd}", fd, uapi.ProgInfo())
