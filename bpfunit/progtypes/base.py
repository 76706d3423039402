"""What is known of a type of BPF programs, and what types and engines hand to each other.

This file lies below engines, tail calls and runs, which know program types by this interface only.
The types themselves are the other files of this package, above them.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.errors import BpfunitError, NotFoundError

if TYPE_CHECKING:
    from bpfunit._sys.cgroup import Cgroup


class ContextError(BpfunitError, ValueError):
    """An input that the program's type and attach type cannot meet on a live system."""


class ProgramRef(NamedTuple):
    """A loaded program, as much of it as an engine needs.

    ``attach_type`` is that of ``enum bpf_attach_type``, 0 where nobody knows it. ``interpreted``
    says that the kernel has not compiled it for the processor.
    """

    fd: int
    name: str
    type: ProgramType
    attach_type: int
    interpreted: bool = False


class Watch(Protocol):
    """What a run says by the way: an engine that runs twice asks between the runs."""

    def before(self) -> None:
        """Forget what was said so far."""
        ...

    def said(self) -> tuple[dict[str, list[bytes]], list[str]]:
        """Return the ring-buffer records, by map, and the printed lines since :meth:`before`."""
        ...


class Request(NamedTuple):
    """One run, the same for every engine.

    ``ctx`` is the context in the type's UAPI layout, None to pass none at all. ``data`` is a
    packet, or whatever else the type takes beside a context. ``sock`` is the socket of the run,
    None where there is none, or the kernel is to make one; ``fresh`` says that it was made for this
    run alone, so that an engine may bind or connect it. ``data_size_out`` is the room for data on
    the way out, in bytes; 0 stands for what the type always answers.
    """

    ctx: bytes | None
    sock: socket.socket | None = None
    repeat: int = 1
    data: bytes | None = None
    data_size_out: int = 0
    flags: int = 0
    fresh: bool = False
    watch: Watch | None = None


class RawOutcome(NamedTuple):
    """What came back from one run, before anything is decoded.

    ``settled`` is the request's data with what it had left to the real call, so that another engine
    can be given the same; None where nothing was left open.
    """

    retval: int
    ctx: bytes
    duration_ns: int | None  # None where the engine has no clock around the program alone
    data: bytes = b""
    errno: int = 0  # the error that the hook hands to its system call, 0 for none
    settled: bytes | None = None


class LiveCalls(Protocol):
    """The real calls that bring a system to run programs of one type."""

    def attached(
        self, program: ProgramRef
    ) -> AbstractContextManager[Callable[[Request], RawOutcome]]:
        """Keep a program attached within the block; yield what runs one request by a real call."""
        ...

    def close(self) -> None:
        """Give back what was kept for all runs."""
        ...


#: Verdicts of hooks that let a call go on or not.
ALLOW: Mapping[int, str] = {0: "deny", 1: "allow"}


class SocketFields(NamedTuple):
    """Where a context speaks of the run's socket, in bytes from its start.

    ``fd`` is a u64 for a descriptor, ``made_of`` the first of three u32: family, type, protocol.
    """

    fd: int
    made_of: int


class ProgramType:
    """One ``enum bpf_prog_type``: the facts that the rest of the package asks for.

    A type that Linux and the module know no run of is described by this class itself.

    Args:
        number: the type.

    Attributes:
        context: the UAPI structure that the program sees, None where that is not described.
        sections: libbpf's section names and the attach types they stand for; the first is the
            usual one.
        named_sections: whether what a program is attached to stands behind the section's name and a
            slash: ``kprobe/do_sys_openat2``.
        readable: members of ``context`` that programs of any attach type may read.
        native: whether kernels have a test run of the type's own.
        live: whether there are real calls that run it, see :meth:`make_live_calls`.
        once: whether a test run is one call of the program: the kernel wants ``repeat`` 0 and takes
            no time.
        context_is_socket: whether the program's context is the run's socket, which it can change
            without a helper.
        answers: whether a test run has a ``ctx_out``. Otherwise the context comes back, if at all,
            in the buffer that it came in.
        signed: whether return values can be negative.
        takes: what :meth:`Program.run` is given, for an error that refuses something else.
        verdicts: names of return values.
        hints: what the errno of a refused test run says for this type.
        compared: bytes of the context that a run can change; None for all.
        headers: bytes in front of the data that a run of the module takes, and of what it answers.
        answer_size: bytes of ``data_out`` that a run of the module answers with.
        socket_fields: where the context speaks of a socket.
        program_class: the subclass of ``Program``; None for the one that any type can be run by.
        example: arguments for ``run`` in a first test, as Python text; "" where there is no short
            one.
    """

    context: type[ctypes.Structure] | None = None
    sections: Mapping[str, int] = {}
    named_sections: bool = False
    readable: Sequence[str] = ()
    native: bool = False
    live: bool = False
    once: bool = False
    context_is_socket: bool = False
    answers: bool = True
    signed: bool = False
    takes: str = "a context (ctx=)"
    verdicts: Mapping[int, str] = {}
    hints: Mapping[int, str] = {}
    compared: int | None = None
    headers: tuple[int, int] = (0, 0)
    answer_size: int = 0
    socket_fields: SocketFields | None = None
    program_class: type[Any] | None = None
    example: str = ""

    def __init__(self, number: int) -> None:
        try:
            self.number: int = ProgType(number)
        except ValueError:
            self.number = number
        self.name = str(getattr(self.number, "name", number)).lower()

    def __repr__(self) -> str:
        return f"<program type {self.name}>"

    # -- names and numbers

    def attach_type_of(self, name: str) -> int:
        """Return the number of an attach type by section name, with or without ``cgroup/``.

        Raises:
            NotFoundError: the type has no such section.
        """
        for full in (name, f"cgroup/{name}"):
            if full in self.sections:
                return int(self.sections[full])
        raise NotFoundError("look up attach type", name, sorted(self.sections))

    @property
    def usual_attach_type(self) -> int:
        """An attach type that programs of the type are loaded for, 0 where it does not matter."""
        return next(iter(self.sections.values()), 0)

    def attach_name(self, attach_type: int | None) -> str:
        """Return an attach type's name for people."""
        if attach_type is None:
            return "unknown"
        try:
            return AttachType(attach_type).name.lower()
        except ValueError:
            return str(attach_type)

    def verdict(self, retval: int) -> str:
        """Return the name of a return value, the number where it has none."""
        return self.verdicts.get(retval, str(retval))

    # -- what the program sees

    @property
    def context_size(self) -> int:
        """``sizeof()`` the context in bytes, 0 where it is not described."""
        return ctypes.sizeof(self.context) if self.context is not None else 0

    def readable_fields(self, attach_type: int) -> Sequence[str]:
        """Return the members of the context that a program of this attach type may read."""
        return self.readable

    def readable_words(self, attach_type: int) -> list[int]:
        """Return the offsets in bytes of the 32-bit words of the readable fields."""
        offsets: list[int] = []
        for name in self.readable_fields(attach_type):
            field = getattr(self.context, name)
            offsets += range(field.offset, field.offset + field.size, 4)
        return offsets

    def describe(self, raw: bytes) -> str:
        """Return a context as text for people."""
        return repr(self.decode_context(raw)) if self.context is not None else raw.hex(" ", 4)

    def decode_context(self, raw: bytes) -> Any:
        """Return a context as its structure, the bytes where that is not described."""
        if self.context is None:
            return raw
        return self.context.from_buffer_copy(
            raw[: self.context_size].ljust(self.context_size, b"\0")
        )

    # -- how it runs

    def resource(self, context: Any) -> socket.socket | None:
        """Make what one run of this context needs beside it, which the caller closes."""
        return None

    def encode(self, request: Request) -> tuple[bytes | None, bytes | None]:
        """Return ``ctx_in`` and ``data_in`` of a test run."""
        return request.ctx, request.data

    def unfit(self) -> str:
        """Say why this kernel's test run of the type is not to be trusted, "" where it is."""
        return ""

    def hint(self, error: int, request: Request) -> str:
        """Say what a refused test run most likely had against a request, "" where nothing."""
        return self.hints.get(error, "")

    def retval_note(self, attach_type: int) -> str:
        """Say what ``retval`` is where it is not what the program returned, "" where it is."""
        return ""

    def ctx_size_out(self, ctx_size_in: int) -> int:
        """Return how many bytes of context a test run may answer with."""
        return ctx_size_in

    def decode(self, retval: int, ctx: bytes, data: bytes, duration_ns: int | None) -> RawOutcome:
        """Take apart what a test run answered."""
        return RawOutcome(retval, ctx, duration_ns, data)

    def call_leaves_traces(self, attach_type: int) -> bool:
        """Whether the real call changes its socket though an observer ends it."""
        return True

    def make_live_calls(self, cgroup: Cgroup) -> LiveCalls | None:
        """Return the type's real calls, None where there are none.

        Args:
            cgroup: the process's own, which its sockets belong to.
        """
        return None


# Sections of types, and of attach types, that no file describes yet: their programs load, are
# covered and traced like those of the others, though nothing can be crafted for them.
_OTHER_SECTIONS = (
    *(f"cgroup/{call}_unix" for call in ("connect", "sendmsg", "recvmsg", "getpeername")),
    *("cgroup/getsockname_unix", "netkit/primary", "netkit/peer", "perf_event"),
)

_types: dict[int, ProgramType] = {}


def register(one: ProgramType) -> None:
    """Make a type known; the file of a type does it as it is imported."""
    _types[one.number] = one


def type_of(number: int) -> ProgramType:
    """Return what is known of a program type; of one without a file, its number and name."""
    found = _types.get(number)
    if found is None:
        found = _types[number] = ProgramType(number)
    return found


def registered() -> Iterator[ProgramType]:
    """Yield the types that are known."""
    yield from _types.values()


def type_of_section(section: str) -> ProgramType | None:
    """Return the type whose programs stand in an ELF section, None for one that no file names.

    What follows a slash that belongs to no section of libbpf's is the author's own, and so are the
    flags behind a dot: ``tc/ingress``, ``xdp.frags``.
    """
    plain = section.removeprefix("?")
    for name in (plain, plain.partition("/")[0], plain.partition("/")[0].partition(".")[0]):
        for one in _types.values():
            if name in one.sections:
                return one
    return None


def instrumentable_sections() -> tuple[str, ...]:
    """Return the sections whose built-in handler sets types, and flags that we can set as well.

    There is no attach target to find as a program is loaded, so that a handler of ours can replace
    it (``section_defs`` and ``libbpf_prepare_prog_load`` in libbpf.c of 1.1 to 1.7). An older
    libbpf does not know them all, and then loads none of them either. As in libbpf, a "+" stands
    for a slash and any name, or nothing.
    """
    found = {
        f"{section}+" if one.named_sections else section
        for one in _types.values()
        for section in one.sections
    }
    return tuple(sorted(found.union(_OTHER_SECTIONS)))
