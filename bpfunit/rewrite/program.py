"""A program on its way into the kernel, as an instrumentation pass sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from bpfunit.rewrite.flow import Flow
from bpfunit.rewrite.info import FuncInfo, LineInfo
from bpfunit.rewrite.insn import Insn
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


def _no_trial(_candidate: Patched) -> Trial:
    raise NotImplementedError("this program was not read from a load in progress")


@dataclass
class ProgramCode:
    """Instructions about to be loaded: relocated, CO-RE applied, map descriptors in place.

    A pass changes it through `apply`; the next pass sees what this one left.

    Attributes:
        prog_type: ``enum bpf_prog_type``.
        attach_type: ``enum bpf_attach_type`` that the program is to be verified for.
        string_at: text at an offset of BTF's string section, for `LineInfo`.
        name_of_type: name of a BTF type, for `FuncInfo`.
        try_load: load a rewritten form of this program for the verifier's answer only.
        changed: whether any pass has rewritten it.
    """

    name: str
    section: str
    prog_type: int
    attach_type: int
    insns: list[Insn]
    func_info: list[FuncInfo] = field(default_factory=list)
    line_info: list[LineInfo] = field(default_factory=list)
    string_at: Callable[[int], str] = _no_strings
    name_of_type: Callable[[int], str] = _no_function_names
    try_load: Callable[[Patched], Trial] = _no_trial
    changed: bool = False

    def flow(self) -> Flow:
        """Return the control flow of the program as it stands now."""
        return Flow(self.insns, [record.insn_off for record in self.func_info])

    def patch(self, patcher: Patcher) -> Patched:
        """Return what the program would be with the patcher's edits, and change nothing."""
        return patcher.apply(self.func_info, self.line_info)

    def accept(self, patched: Patched) -> None:
        """Make ``patched`` the program that is loaded."""
        self.insns = patched.insns
        self.func_info, self.line_info = patched.func_info, patched.line_info
        self.changed = True

    def apply(self, patcher: Patcher) -> None:
        """Make the patcher's edits."""
        self.accept(self.patch(patcher))


class Instrumentation(Protocol):
    """One pass over every program of an object as it is loaded.

    `bpfunit.load` takes an ordered list of them: faults first, then call tracing, coverage last, so
    that each sees the program that will really run.
    """

    def rewrite(self, program: ProgramCode) -> None:
        """Change ``program``, or leave it; an exception fails the load with that exception."""

    def loaded(self, unreached: Mapping[str, str]) -> None:
        """Learn that the object is loaded.

        Args:
            unreached: programs that were loaded without passing through `rewrite`, with their
                sections.
        """
