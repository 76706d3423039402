"""Control flow of a program: its functions, the successors of each instruction, basic blocks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from bpfunit.errors import BpfunitError
from bpfunit.rewrite.insn import HELPER_TAIL_CALL, JMP32, Insn


class RewriteError(BpfunitError):
    """A program that cannot be rewritten, with the reason."""


def jump_target(insns: Sequence[Insn], index: int) -> int | None:
    """Return the slot that the jump at ``index`` goes to when taken; None for anything else.

    ``gotol`` keeps its distance in the 32-bit immediate, all others in the 16-bit offset.
    """
    insn = insns[index]
    if insn.is_goto:
        return index + 1 + (insn.imm if insn.cls == JMP32 else insn.off)
    if insn.is_branch or insn.is_may_goto:
        return index + 1 + insn.off
    return None


def function_target(insns: Sequence[Insn], index: int) -> int | None:
    """Return the slot of the subprogram that ``index`` calls or takes the address of, or None."""
    insn = insns[index]
    if insn.is_subprogram_call or insn.is_callback:
        return index + 1 + insn.imm
    return None


@dataclass
class Block:
    """Instructions that run one after another: ``start`` up to, not including, ``end``.

    ``fall`` is the block that follows when the last instruction does not jump, ``taken`` the one
    that it jumps to; each is an index into `Flow.blocks`, or None.
    """

    start: int
    end: int
    last: int
    fall: int | None = None
    taken: int | None = None
    predecessors: list[int] = field(default_factory=list)


class Flow:
    """The control flow graph of all functions of a program.

    Args:
        insns: the program, main function first, subprograms appended.
        entries: more slots at which functions start, for example from func_info.

    Raises:
        RewriteError: a jump or call leads out of the program or into half an instruction.
    """

    def __init__(self, insns: Sequence[Insn], entries: Sequence[int] = ()) -> None:
        self.insns = insns
        starts = {0, *entries}
        for index in range(len(insns)):
            target = function_target(insns, index)
            if target is not None:
                starts.add(self._checked(index, target))
        self.functions = sorted(starts)
        self.blocks = self._split()
        self._starts = [block.start for block in self.blocks]
        self._connect()

    def _checked(self, index: int, target: int) -> int:
        if not 0 <= target < len(self.insns) or self.insns[target].code == 0:
            raise RewriteError(
                f"read program: the jump or call at instruction {index} leads to {target}, "
                f"which is no instruction of the {len(self.insns)}"
            )
        return target

    def function_of(self, index: int) -> int:
        """Return the first slot of the function that ``index`` lies in."""
        return self.functions[bisect_right(self.functions, index) - 1]

    def function_end(self, start: int) -> int:
        """Return the slot behind the function that starts at ``start``."""
        position = bisect_right(self.functions, start)
        return self.functions[position] if position < len(self.functions) else len(self.insns)

    def block_at(self, index: int) -> int:
        """Return the number of the block that slot ``index`` lies in."""
        return bisect_right(self._starts, index) - 1

    @staticmethod
    def ends_block(insn: Insn) -> bool:
        """Whether control may go elsewhere than to the next instruction.

        A tail call ends a block as well: what follows runs only if it fails.
        """
        return (
            insn.is_branch
            or insn.is_goto
            or insn.is_may_goto
            or insn.is_exit
            or (insn.is_helper_call and insn.imm == HELPER_TAIL_CALL)
        )

    def _split(self) -> list[Block]:
        leaders = set(self.functions)
        for index, insn in enumerate(self.insns):
            target = jump_target(self.insns, index)
            if target is not None:
                leaders.add(self._checked(index, target))
            if self.ends_block(insn) and index + 1 < len(self.insns):
                leaders.add(index + 1)
        starts = sorted(leaders)
        blocks = []
        for start, end in zip(starts, [*starts[1:], len(self.insns)], strict=True):
            last = end - 1
            if self.insns[last].code == 0 and last > start:
                last -= 1
            blocks.append(Block(start, end, last))
        return blocks

    def _connect(self) -> None:
        for number, block in enumerate(self.blocks):
            insn = self.insns[block.last]
            target = jump_target(self.insns, block.last)
            if target is not None:
                block.taken = self.block_at(target)
            falls = not (insn.is_exit or insn.is_goto) and block.end not in self.functions
            if falls and block.end < len(self.insns):
                block.fall = number + 1
            for successor in {block.taken, block.fall} - {None}:
                assert successor is not None
                self.blocks[successor].predecessors.append(number)
