"""A program on its way into the kernel, as an instrumentation pass sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

from bpfunit.rewrite.flow import Flow
from bpfunit.rewrite.info import (
    FuncInfo,
    LineInfo,
    decode_func_info,
    decode_line_info,
    encode_func_info,
    encode_line_info,
)
from bpfunit.rewrite.insn import Insn, decode, encode
from bpfunit.rewrite.patcher import Patched, Patcher


class Trial(NamedTuple):
    """The verifier's answer to a trial load.

    Attributes:
        accepted: whether the kernel took the program.
        reason: the deciding last lines of the verifier's log, or "".
        survivors: the instructions as the kernel kept them, dead code gone; empty if refused.
    """

    accepted: bool
    reason: str
    survivors: Sequence[Insn]


def _no_strings(_offset: int) -> str:
    return ""


def _no_function_names(_type_id: int) -> str:
    return ""


def _no_trial(_candidate: Image) -> Trial:
    raise NotImplementedError("this program was not read from a load in progress")


class Image(NamedTuple):
    """A program as bytes: instructions, and func_info and line_info in records of known size."""

    insns: bytes
    func_info: bytes = b""
    line_info: bytes = b""

    @classmethod
    def of(cls, patched: Patched) -> Image:
        """Return the bytes of a rewritten program."""
        return cls(
            encode(patched.insns),
            encode_func_info(patched.func_info),
            encode_line_info(patched.line_info),
        )


@dataclass
class ProgramCode:
    """A program about to be loaded: relocated, CO-RE applied, map descriptors in place.

    A pass changes it through `apply`; the next pass sees what this one left. Instructions and
    records are decoded when they are first asked for: a pass that knows the program by its bytes
    never needs them.

    Attributes:
        image: the program as it stands now.
        prog_type: ``enum bpf_prog_type``.
        attach_type: ``enum bpf_attach_type`` that the program is to be verified for.
        string_at: text at an offset of BTF's string section, for `LineInfo`.
        name_of_type: name of a BTF type, for `FuncInfo`.
        try_load: load a rewritten form of this program for the verifier's answer only.
        changed: whether any pass has rewritten it.
        inserted: slots that passes have added; they are no code of the program's author.
    """

    name: str
    section: str
    prog_type: int
    attach_type: int
    image: Image
    string_at: Callable[[int], str] = _no_strings
    name_of_type: Callable[[int], str] = _no_function_names
    try_load: Callable[[Image], Trial] = _no_trial
    changed: bool = False
    inserted: frozenset[int] = frozenset()

    @cached_property
    def insns(self) -> list[Insn]:
        """The instructions, one for each slot."""
        return decode(self.image.insns)

    @cached_property
    def func_info(self) -> list[FuncInfo]:
        """Where functions start; empty without BTF."""
        return decode_func_info(self.image.func_info)

    @cached_property
    def line_info(self) -> list[LineInfo]:
        """Where source lines start; empty without BTF."""
        return decode_line_info(self.image.line_info)

    def flow(self) -> Flow:
        """Return the control flow of the program as it stands now."""
        return Flow(self.insns, [record.insn_off for record in self.func_info])

    def patch(self, patcher: Patcher) -> Patched:
        """Return what the program would be with the patcher's edits, and change nothing."""
        return patcher.apply(self.func_info, self.line_info)

    def accept(self, image: Image) -> None:
        """Make ``image`` the program that is loaded."""
        self.image = image
        self.changed = True
        for decoded in ("insns", "func_info", "line_info"):
            self.__dict__.pop(decoded, None)

    def apply(self, patcher: Patcher) -> None:
        """Make the patcher's edits."""
        patched = self.patch(patcher)
        self.inserted = frozenset(
            slot
            for slot, origin in enumerate(patched.origin)
            if origin < 0 or origin in self.inserted
        )
        self.accept(Image.of(patched))


class Unreached(NamedTuple):
    """A program that was loaded without passing through any instrumentation.

    Attributes:
        section: its ELF section.
        helpers: numbers of the helpers that it calls.
    """

    section: str
    helpers: frozenset[int] = frozenset()


class Instrumentation(Protocol):
    """One pass over every program of an object as it is loaded.

    `bpfunit.load` takes an ordered list of them: faults first, then call tracing, coverage last, so
    that each sees the program that will really run.
    """

    def rewrite(self, program: ProgramCode) -> None:
        """Change ``program``, or leave it; an exception fails the load with that exception."""

    def loaded(self, unreached: Mapping[str, Unreached]) -> None:
        """Learn that the object is loaded; an exception fails the load with that exception.

        Args:
            unreached: programs that were loaded without passing through `rewrite`.
        """


@runtime_checkable
class HearsOfEnds(Protocol):
    """A pass that wants to know when an object is closed whose programs it has changed."""

    def hold(self) -> Callable[[], None]:
        """Return what is to be called at the end of the object that was loaded last."""


@runtime_checkable
class HearsOfFailures(Protocol):
    """A pass that wants to know of loads that came to nothing as well."""

    def not_loaded(self) -> None:
        """Learn that the load failed for which `rewrite` was called last."""
