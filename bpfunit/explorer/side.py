"""One build of a program, ready to run inputs: in this kernel, or in that of a guest.

The search works on bytes and numbers alone, so it may run on the host, which is many times as fast
as an emulated guest; what needs the kernel stays there: the loop in C, and the types of the maps.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bpfunit._sys import libbpf
from bpfunit.errors import BpfunitError
from bpfunit.explorer.case import Found
from bpfunit.explorer.executor import Executor
from bpfunit.explorer.facts import FIXED, SECTION, Facts
from bpfunit.explorer.result import Exploration
from bpfunit.explorer.search import Search
from bpfunit.explorer.wire import Input, Outcome, Wire, batches
from bpfunit.explorer.write import Writer, _context_role, leaves, role_of
from bpfunit.objects.globals import data_sections
from bpfunit.objects.object import load
from bpfunit.rewrite import ambient

_PIECE = 64  # inputs of one message: the guest runs the next while the host reads the last

Options = Mapping[str, Any]


@dataclass
class Description:
    """What is known of a program where it is not loaded.

    Attributes:
        facts: the program.
        ring_names: its ring buffers, in the order in which logs number them.
        roles: "addr" or "port" by (map, "key" or "value", offset) of the words that hold one.
        context_roles: the same by offset of the context.
        fd_offset: where the context holds a descriptor or cookie, of which can be compared only
            whether there is one; -1 for nowhere.
    """

    facts: Facts
    ring_names: list[str]
    roles: dict[tuple[int, str, int], str] = field(default_factory=dict)
    context_roles: dict[int, str] = field(default_factory=dict)
    fd_offset: int = -1

    def to_plain(self) -> list[Any]:
        """Return it as what any channel carries."""
        rest = (self.ring_names, self.roles, self.context_roles, self.fd_offset)
        return [self.facts.to_plain(), *rest]

    @classmethod
    def from_plain(cls, plain: Sequence[Any]) -> Description:
        """Make it of what :meth:`to_plain` gave."""
        facts, *rest = plain
        return cls(Facts.from_plain(facts), *rest)


class Side(Protocol):
    """A build of a program in some kernel."""

    @property
    def described(self) -> Description:
        """What is known of it."""

    def begin(self, inputs: Sequence[Input]) -> Iterator[Outcome]:
        """Begin to run inputs, and return an iterator that waits for what they do."""

    def execute(self, inputs: Sequence[Input]) -> list[Outcome]:
        """Run inputs, each from maps as they were at the load."""

    def body(self, given: Input) -> list[str]:
        """Return a test of an input as lines, without the function around it."""


class Here:
    """A build loaded in this kernel; a context manager.

    Attributes:
        executor: runs its inputs.
    """

    def __init__(self, path: str | os.PathLike[str], program: str, options: Options) -> None:
        self.executor = Executor(path, program, options)
        executor = self.executor
        self.described = Description(executor.facts, executor.ring_names)
        fields = executor.loaded.programs[program].program_type.socket_fields
        if fields is not None:
            self.described.fd_offset = fields.fd
        elif executor.facts.type == "sk_lookup":
            self.described.fd_offset = 0  # the cookie of the socket that was chosen
        self._add_roles()

    def _add_roles(self) -> None:
        described = self.described
        for number, one in enumerate(described.facts.maps):
            if one.kind in (SECTION, *FIXED):
                continue
            typed = self.executor.loaded.maps[one.name]
            for part, ctype in (("key", typed.key_type), ("value", typed.value_type)):
                for start, size, name in leaves(ctype) if ctype is not None else ():
                    for word in range(start & ~3, start + size, 4):
                        if role := role_of(name):
                            described.roles[number, part, word] = role
        if described.facts.type == "cgroup_sock_addr":
            for offset, _ in described.facts.words:
                if role := _context_role(offset):
                    described.context_roles[offset] = role

    def begin(self, inputs: Sequence[Input]) -> Iterator[Outcome]:
        """Run inputs."""
        return iter(self.executor.execute(inputs))

    def execute(self, inputs: Sequence[Input]) -> list[Outcome]:
        """Run inputs, each from maps as they were at the load."""
        return self.executor.execute(inputs)

    def run_bytes(self, encoded: bytes) -> bytes:
        """Run inputs in the form of :class:`bpfunit.explorer.wire.Wire`; return what they did."""
        return b"".join(self.executor.run_bytes(encoded))

    def body(self, given: Input) -> list[str]:
        """Return a test of an input as lines, without the function around it."""
        search = Search(self.executor.facts, self.executor.execute)
        exploration = Exploration(self.executor.facts, Found(), 0, {})
        (case,) = search.cases_of([given])
        return Writer(self.executor, exploration, search).body(case)

    def answer(self, what: str, *_rest: Any) -> Any:
        """Answer what a subclass knows beside.

        Raises:
            BpfunitError: it knows nothing of the kind.
        """
        raise BpfunitError(f"ask a build for {what}: no such request")

    def close(self) -> None:
        """Unload it."""
        self.executor.close()

    def __enter__(self) -> Here:
        """Return self."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Unload it."""
        self.close()


def codes_of(
    path: str | os.PathLike[str], programs: Sequence[str], options: Options
) -> dict[str, str]:
    """Return digests of what decides how programs behave: their instructions, their first data."""
    digests = {name: hashlib.sha256() for name in programs}

    class Reader:
        def rewrite(self, code: Any) -> None:
            if code.name in digests:
                digests[code.name].update(_without_descriptors(code))

        def loaded(self, unreached: Any) -> None:
            """Nothing is refused."""

    wanted = list(programs)
    with ambient.none(), load(path, instrument=[Reader()], programs=wanted, **options) as obj:
        for name, handle in sorted(data_sections(obj._handle)):
            for digest in digests.values():
                digest.update(name.encode() + b"\0" + _beginning(handle))
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _beginning(handle: int) -> bytes:
    size = ctypes.c_size_t()
    base = libbpf.lib().bpf_map__initial_value(handle, ctypes.byref(size))
    return ctypes.string_at(base, size.value) if base else b""


def _without_descriptors(code: Any) -> bytes:
    """Return a program's instructions with map descriptors left out, which differ by load."""
    return b"".join(
        bytes((insn.code, insn.dst, insn.src))
        + insn.off.to_bytes(2, "little", signed=True)
        + (0 if insn.loads_map else insn.imm).to_bytes(4, "little", signed=True)
        for insn in code.insns
    )


# -- at the other end of a channel


Make = Callable[[str, str, Options], Here]


def serve(channel: Any, make: Make = Here) -> None:
    """Answer the requests of a :class:`Kernel` until one is None: the guest's half.

    Args:
        channel: to the host.
        make: loads a build.
    """
    sides: dict[int, Here] = {}
    try:
        while (request := channel.receive()) is not None:
            try:
                answer = _answer(sides, make, *request)
            except BpfunitError as error:
                answer = {"error": str(error)}
            channel.send(answer)
    finally:
        for side in sides.values():
            side.close()


def _answer(sides: dict[int, Here], make: Make, what: str, *rest: Any) -> Any:
    if what == "codes":
        return list(codes_of(*rest).items())
    number, *rest_of_side = rest
    if what == "open":
        side = sides[number] = make(*rest_of_side)
        return side.described.to_plain()
    if what == "run":
        return number, sides[number].run_bytes(*rest_of_side)
    if what == "body":
        return sides[number].body(Input.from_plain(*rest_of_side))
    if what != "close":
        return [sides[number].answer(what, *rest_of_side)]
    sides.pop(number).close()
    gc.collect()  # the buffers for outcomes: a guest has little memory
    return True


class Kernel:
    """The kernel at the other end of a channel, where :func:`serve` answers: the host's half."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._opened = 0
        self._outcomes: dict[int, deque[bytes]] = defaultdict(deque)

    def send(self, *request: Any) -> None:
        """Send a request; answers come in the order of requests.

        Those of "run" are read by :meth:`outcomes`, all others by :meth:`receive`.
        """
        self._channel.send(request)

    def receive(self) -> Any:
        """Return the next answer.

        Raises:
            BpfunitError: the request failed there, in its words.
        """
        answer = self._channel.receive()
        if isinstance(answer, dict):
            raise BpfunitError(answer["error"])
        return answer

    def outcomes(self, number: int) -> bytes:
        """Return what the next message of inputs to one side did; those of others are kept.

        Raises:
            BpfunitError: as :meth:`receive`.
        """
        while not self._outcomes[number]:
            other, outcomes = self.receive()
            self._outcomes[other].append(outcomes)
        return self._outcomes[number].popleft()

    def codes(self, path: str, programs: Sequence[str], options: Options) -> dict[str, str]:
        """Return what :func:`codes_of` says of programs there."""
        self.send("codes", path, list(programs), dict(options))
        return dict(self.receive())

    def open(self, path: str, program: str, options: Options) -> There:
        """Load a program there."""
        self._opened += 1
        self.send("open", self._opened, path, program, dict(options))
        return There(self, self._opened, Description.from_plain(self.receive()))

    def end(self) -> None:
        """Have the other end stop."""
        self._channel.send(None)


class There:
    """A build loaded in another kernel."""

    def __init__(self, kernel: Kernel, number: int, described: Description) -> None:
        self._kernel, self._number = kernel, number
        self.described = described
        self._wire = Wire(described.facts)

    def begin(self, inputs: Sequence[Input]) -> Iterator[Outcome]:
        """Send inputs, and return an iterator that waits for what they do."""
        pieces = 0
        for piece in batches(inputs, _PIECE):
            self._kernel.send("run", self._number, self._wire.encode(piece))
            pieces += 1
        return self._received(pieces)

    def _received(self, pieces: int) -> Iterator[Outcome]:
        for _ in range(pieces):
            yield from self._wire.decode(self._kernel.outcomes(self._number))

    def execute(self, inputs: Sequence[Input]) -> list[Outcome]:
        """Run inputs, each from maps as they were at the load."""
        return list(self.begin(inputs))

    def body(self, given: Input) -> list[str]:
        """Return a test of an input as lines, without the function around it."""
        self._kernel.send("body", self._number, given.to_plain())
        return list(self._kernel.receive())

    def ask(self, what: str, *rest: Any) -> Any:
        """Return what :meth:`Here.answer` says there.

        Raises:
            BpfunitError: the request failed there, in its words.
        """
        self._kernel.send(what, self._number, *rest)
        (answer,) = self._kernel.receive()
        return answer

    def close(self) -> None:
        """Unload it there."""
        self._kernel.send("close", self._number)
        self._kernel.receive()

    def __enter__(self) -> There:
        """Return self."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Unload it there."""
        self.close()
