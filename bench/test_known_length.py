"""What exact mode counts, held against programs of a length that is known."""

from __future__ import annotations

import platform

import pytest

from bpfunit import features
from bpfunit.bench import Mode, mode_of_guest
from bpfunit.engines import NotApplicableHereError
from bpfunit.rewrite import insn as asm
from tests.guest.rawrun import RawProgram

_MOVES = 1000


def _instructions(moves: int) -> int:
    """Return what a run of so many moves, and what belongs to every program, is said to cost."""
    code = [*[asm.mov_imm(0, 7)] * moves, asm.mov_imm(0, 1), asm.exit_()]
    with RawProgram(code) as program:
        context = program.craft(dst="10.96.0.1:80")
        return min(program.run(context).duration for _ in range(10))


def test_each_instruction_of_a_program_is_counted() -> None:
    """One instruction of the processor for a move into a register, as the JITs make it.

    An interpreter takes several for it, and the same number for each.
    """
    if mode_of_guest() is not Mode.EXACT:
        raise NotApplicableHereError("nobody counts instructions here (--guest-accel icount does)")
    base = _instructions(0)
    more = [_instructions(n * _MOVES) - base for n in (1, 2, 3)]
    each = round(more[-1] / (3 * _MOVES))
    # s390x has a clock of 4,096 ticks a microsecond, and so rounds
    off = 1 if platform.machine() == "s390x" else 0
    assert more == [pytest.approx(n * _MOVES * each, abs=off) for n in (1, 2, 3)]
    assert each == 1 if features.has_jit() else each > 1
