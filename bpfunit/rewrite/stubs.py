"""Replacing helper calls at load time by values of the test's choice.

The verifier sees the program with the replacement in place, so a stub cannot make a program do what
the kernel would refuse: a helper that returns a pointer or NULL can only be stubbed to NULL.
"""

from __future__ import annotations

import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bpfunit.errors import BpfunitError
from bpfunit.rewrite import insn as i
from bpfunit.rewrite.code import ProgramCode, Unreached
from bpfunit.rewrite.helpers import helper_number
from bpfunit.rewrite.insn import Insn
from bpfunit.rewrite.patcher import Patcher
from bpfunit.rewrite.valuemap import ValueMap


class FaultError(BpfunitError):
    """A fault that cannot be set up as asked."""


class Argument(NamedTuple):
    """A condition on a call: argument ``number`` (1 to 5) holds ``value`` (32 bits, signed)."""

    number: int
    value: int


class HelperStub(ABC):
    """An instrumentation pass that replaces calls of one helper.

    A stub lives in a map as well as in the program, so that it can be switched and refilled between
    runs of one load. Loading fails when no call matches: a fault that never strikes proves nothing.

    Args:
        helper: the helper's name, for example ``"bpf_sk_storage_get"``.
        program: only in the program of this name; None for all.
        site: only the call site of this number, from 0, in the order of the program's instructions;
            None for all.
        line: only call sites whose source line contains this text; None for all.
        argument: only calls whose argument has this value when they are made; None for all.
    """

    state_size = 0

    def __init__(
        self,
        helper: str,
        *,
        program: str | None = None,
        site: int | None = None,
        line: str | None = None,
        argument: Argument | None = None,
    ) -> None:
        self.helper = helper
        self._number = helper_number(helper)
        self._program, self._site, self._line = program, site, line
        if argument is not None and not 1 <= argument.number <= 5:
            raise FaultError(
                f"stub {helper}: a helper has arguments 1 to 5, there is no {argument.number}"
            )
        self._argument = argument
        self._replaced = 0
        self._seen: list[str] = []
        self._state = ValueMap("bpfunit_stub", _SWITCH_SIZE + self.state_size)
        self.active = True

    @property
    def active(self) -> bool:
        """Whether the stub answers; when False the real helper is called. May change any time."""
        return self._state.memory[0] != 0

    @active.setter
    def active(self, value: bool) -> None:
        self._state.memory[0] = int(value)

    @property
    def calls(self) -> int:
        """How many calls the stub has answered since it was made or `reset`."""
        count: int = struct.unpack_from("=Q", self._state.memory, _CALLS)[0]
        return count

    def reset(self) -> None:
        """Set `calls` back to 0; a sequence starts over."""
        self._state.write(_CALLS, bytes(8))

    def close(self) -> None:
        """Release the stub's map; loaded programs keep it as long as they need it."""
        self._state.close()

    @abstractmethod
    def _answer(self) -> Sequence[Insn]:
        """Return code that leaves the answer in r0, and may use r1 to r5.

        It starts with the state's address in r1 and the number of earlier answers in r2.
        """

    def rewrite(self, program: ProgramCode) -> None:
        """Replace the matching calls of ``program``."""
        if self._program is not None and program.name != self._program:
            return
        patcher = Patcher(program.flow())
        sites = [
            index
            for index, insn in enumerate(program.insns)
            if insn.is_helper_call and insn.imm == self._number
        ]
        for number, index in enumerate(sites):
            text = _source_line(program, index)
            self._seen.append(f"{program.name} site {number}: {text or 'no line info'}")
            if self._site in (None, number) and (self._line or "") in text:
                patcher.replace(index, self._snippet(program.insns[index]))
                self._replaced += 1
        program.apply(patcher)

    def loaded(self, unreached: Mapping[str, Unreached]) -> None:
        """Refuse a load in which nothing was replaced, or a program's calls could not be.

        Raises:
            FaultError: no call matched, with the calls there are; or a program that calls the
                helper is of a section that cannot be rewritten, and was not left out by
                ``program``, ``site`` or ``line``.
        """
        if self._program is None and self._site is None and self._line is None:
            beyond = [
                f"{name} ({section})"
                for name, (section, helpers) in unreached.items()
                if self._number in helpers
            ]
            if beyond:
                raise FaultError(
                    f"stub {self.helper}: {', '.join(beyond)} would go on calling it, since "
                    "programs of that section cannot be rewritten; name the program that is meant"
                )
        if not self._replaced:
            calls = "; ".join(self._seen) or "none in the chosen programs"
            raise FaultError(f"stub {self.helper}: no call site matches; calls of it: {calls}")

    def _snippet(self, call: Insn) -> list[Insn]:
        """Return the replacement of ``call``: answer if active and the argument fits, else call.

        The switch is looked up through r0, which holds nothing before a call.
        """
        answer = [
            *i.load_map_value(1, self._state.fd, 0),
            i.load(8, 2, 1, _CALLS),
            i.mov_reg(3, 2),
            i.alu_imm(i.ADD, 3, 1),
            i.store(8, 1, _CALLS, 3),
            *self._answer(),
        ]
        otherwise = len(answer) + 1  # the answer, then a jump over the real call
        checks: list[Insn] = []
        if self._argument is not None:
            number, value = self._argument
            # From here: two slots of address, the load and its test, then the answer.
            checks.append(i.branch_imm(i.JNE, number, value, 4 + otherwise))
        checks += [
            *i.load_map_value(0, self._state.fd, 0),
            i.load(1, 0, 0, 0),
            i.branch_imm(i.JEQ, 0, 0, otherwise),
        ]
        return [*checks, *answer, i.goto(1), call]


# The state in the map: the switch in the first eight bytes, then the count of answers.
_CALLS = 8
_SWITCH_SIZE = 16


def _source_line(program: ProgramCode, index: int) -> str:
    text = ""
    for record in program.line_info:
        if record.insn_off > index:
            break
        text = program.string_at(record.line_off).strip()
    return text


def _as_u64(helper: str, value: int) -> bytes:
    if not -(1 << 63) <= value < 1 << 64:
        raise FaultError(f"stub {helper}: {value} does not fit a 64-bit return value")
    return struct.pack("=Q", value & (1 << 64) - 1)


class ConstantStub(HelperStub):
    """Answers every call with the same value, which the verifier knows.

    Args:
        returns: the value, 64 bits, signed or unsigned; 0 is NULL.
        **where: as for `HelperStub`.
    """

    def __init__(self, helper: str, returns: int, **where: Any) -> None:
        self._returns = int.from_bytes(_as_u64(helper, returns), sys.byteorder)
        super().__init__(helper, **where)

    def _answer(self) -> Sequence[Insn]:
        return i.load_imm64(0, self._returns)


class SequenceStub(HelperStub):
    """Answers with one chosen value after another, from the first again when all are used.

    Args:
        values: 1 to `CAPACITY` values, 64 bits each.
        **where: as for `HelperStub`.
    """

    CAPACITY = 1024
    state_size = 8 + 8 * CAPACITY

    def __init__(self, helper: str, values: Sequence[int], **where: Any) -> None:
        super().__init__(helper, **where)
        self.set(values)

    def set(self, values: Sequence[int]) -> None:
        """Take new values, from now on and for programs already loaded; starts with the first.

        Raises:
            FaultError: no value, or more than `CAPACITY`.
        """
        if not 1 <= len(values) <= self.CAPACITY:
            raise FaultError(
                f"stub {self.helper}: a sequence has 1 to {self.CAPACITY} values, "
                f"found {len(values)}"
            )
        data = b"".join(_as_u64(self.helper, value) for value in values)
        self._state.write(_SWITCH_SIZE, struct.pack("=Q", len(values)) + data)
        self.reset()

    def _answer(self) -> Sequence[Insn]:
        return [
            i.load(8, 3, 1, _SWITCH_SIZE),
            i.alu_reg(i.MOD, 2, 3),
            # The verifier does not know the length: the mask tells it that the index is in bounds.
            i.alu_imm(i.AND, 2, self.CAPACITY - 1),
            i.alu_imm(i.LSH, 2, 3),
            i.alu_reg(i.ADD, 1, 2),
            i.load(8, 0, 1, _SWITCH_SIZE + 8),
        ]


class ClockStub(HelperStub):
    """Answers with a clock that the test winds: a start, and a step added at each call.

    Args:
        start: the first answer, in nanoseconds.
        step: nanoseconds from one answer to the next.
        **where: as for `HelperStub`.
    """

    state_size = 16

    def __init__(
        self, start: int = 0, step: int = 0, helper: str = "bpf_ktime_get_ns", **where: Any
    ) -> None:
        super().__init__(helper, **where)
        self.set(start, step)

    def set(self, start: int, step: int = 0) -> None:
        """Wind the clock: the next answer is ``start``, each later one ``step`` more."""
        data = _as_u64(self.helper, start) + _as_u64(self.helper, step)
        self._state.write(_SWITCH_SIZE, data)
        self.reset()

    def _answer(self) -> Sequence[Insn]:
        return [
            i.load(8, 0, 1, _SWITCH_SIZE),
            i.load(8, 3, 1, _SWITCH_SIZE + 8),
            i.alu_reg(i.MUL, 2, 3),
            i.alu_reg(i.ADD, 0, 2),
        ]
