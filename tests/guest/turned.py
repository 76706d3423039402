"""Programs with one branch edge changed, on their way into the kernel: mutants without a compiler.

Each changes what the program does where it takes that edge, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

from bpfunit.rewrite import insn as i
from bpfunit.rewrite.code import Image, ProgramCode, Unreached
from bpfunit.rewrite.patcher import Patcher

#: The operation that decides the other way, by the upper four bits of the opcode.
OPPOSITE = {0x10: 0x50, 0x20: 0xB0, 0x30: 0xA0, 0x60: 0xD0, 0x70: 0xC0}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}
_FRAME = 10


class Inverted:
    """A pass that has a conditional jump decide the other way.

    Args:
        program: the program's name.
        insn: the jump.
    """

    def __init__(self, program: str, insn: int) -> None:
        self._program, self._insn = program, insn

    @staticmethod
    def fits(op: int) -> bool:
        """Return whether a jump has an opposite: all but `if a & b` have."""
        return op in OPPOSITE

    def rewrite(self, program: ProgramCode) -> None:
        """Turn the jump around."""
        if program.name != self._program:
            return
        insns = list(program.insns)
        jump = insns[self._insn]
        insns[self._insn] = jump._replace(code=OPPOSITE[jump.op] | jump.code & 0x0F)
        program.accept(program.image._replace(insns=i.encode(insns)))

    def loaded(self, unreached: Mapping[str, Unreached]) -> None:
        """Nothing to do."""


class LedOut:
    """A pass that has one edge of a conditional jump leave the program with a verdict of its own.

    Args:
        program: the program's name.
        insn: the jump.
        taken: which of its edges.
        verdict: what is returned.
    """

    def __init__(self, program: str, insn: int, taken: bool, verdict: int) -> None:
        self._program, self._insn, self._taken, self._verdict = program, insn, taken, verdict

    def rewrite(self, program: ProgramCode) -> None:
        """Lead the edge out. The verifier wants what follows to be reached: by what is never so."""
        if program.name != self._program:
            return
        patcher = Patcher(program.flow())
        add = patcher.on_taken if self._taken else patcher.on_fallthrough
        never = i.branch_imm(i.JEQ, _FRAME, 0, 2)
        add(self._insn, [never, i.mov_imm(0, self._verdict), i.exit_()])
        program.accept(Image.of(program.patch(patcher)))

    def loaded(self, unreached: Mapping[str, Unreached]) -> None:
        """Nothing to do."""
