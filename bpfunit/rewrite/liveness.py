"""Which registers hold nothing that is needed, at a point of a program.

Two facts make a register free for a probe. It is *dead* when every path writes it before reading
it. And it is *unset* when no path to the point has written it: the verifier refuses to read such a
register, so whatever seems to read it later (a call appears to read r1 to r5, whatever the callee
takes) does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from bpfunit.rewrite.flow import Flow
from bpfunit.rewrite.insn import (
    ADD,
    ALU,
    ALU64,
    CMPXCHG,
    END,
    FETCH,
    LD,
    LDX,
    LOAD_ACQ,
    MODE_ABS,
    MODE_ATOMIC,
    MODE_IND,
    MOV,
    NEG,
    SRC_REG,
    ST,
    STORE_REL,
    STX,
    Insn,
)

FRAME_POINTER = 10
_CALL_ARGUMENTS = 0b0000111110  # r1 to r5
_CALL_CLOBBERS = 0b0000111111  # r0 to r5: unreadable after any call
ALL = 0b1111111111  # r0 to r9
_MODE = 0xE0


def _atomic(insn: Insn) -> tuple[int, int]:
    dst, src = 1 << insn.dst, 1 << insn.src
    if insn.imm == LOAD_ACQ:
        return src, dst
    if insn.imm == STORE_REL:
        return dst | src, 0
    if insn.imm == CMPXCHG:
        return dst | src | 1, 1
    return dst | src, src if insn.imm & FETCH else 0


@lru_cache(maxsize=8192)
def reads_writes(insn: Insn) -> tuple[int, int]:
    """Return the registers that an instruction may read and those it surely writes, as bit sets.

    Registers that a call leaves unreadable count as written.
    """
    dst, src = 1 << insn.dst, 1 << insn.src
    cls = insn.cls
    if insn.code == 0:
        return 0, 0
    if cls in (ALU, ALU64):
        reads = src if insn.code & SRC_REG and insn.op not in (END, NEG) else 0
        if insn.op != MOV:
            reads |= dst
        return reads, dst
    if cls == LDX:
        return src, dst
    if cls == STX:
        return _atomic(insn) if insn.code & _MODE == MODE_ATOMIC else (dst | src, 0)
    if cls == ST:
        return dst, 0
    if cls == LD:
        if insn.code & _MODE in (MODE_ABS, MODE_IND):
            index = src if insn.code & _MODE == MODE_IND else 0
            return 1 << 6 | index, _CALL_CLOBBERS
        return 0, dst
    if insn.is_call:
        register = dst if insn.code & SRC_REG else 0
        return _CALL_ARGUMENTS | register, _CALL_CLOBBERS
    if insn.is_exit:
        return 1, 0
    if insn.is_branch:
        return dst | (src if insn.code & SRC_REG else 0), 0
    return 0, 0


class Liveness:
    """Free registers before each instruction and on each edge of a program's control flow."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._insns = flow.insns
        self._effects = [reads_writes(insn) for insn in flow.insns]
        self._live_in = self._solve_live()
        self._set_in = self._solve_set()

    def _block_live_in(self, start: int, end: int, live: int) -> int:
        for reads, writes in reversed(self._effects[start:end]):
            live = live & ~writes | reads
        return live

    def _live_out(self, number: int, live_in: Sequence[int]) -> int:
        block = self._flow.blocks[number]
        live = 0
        for successor in (block.fall, block.taken):
            if successor is not None:
                live |= live_in[successor]
        return live

    def _solve_live(self) -> list[int]:
        blocks = self._flow.blocks
        live_in = [0] * len(blocks)
        pending = list(range(len(blocks)))
        while pending:
            number = pending.pop()
            block = blocks[number]
            found = self._block_live_in(block.start, block.end, self._live_out(number, live_in))
            if found != live_in[number]:
                live_in[number] = found
                pending.extend(block.predecessors)
        return live_in

    def _after_calls(self, insn: Insn, effects: tuple[int, int], was_set: int) -> int:
        """Return what may be set after ``insn``: a call unsets r1 to r5."""
        if insn.is_call:
            was_set &= ~_CALL_ARGUMENTS
            return was_set | 1
        return was_set | effects[1]

    def _block_set_out(self, start: int, end: int, was_set: int) -> int:
        for index in range(start, end):
            was_set = self._after_calls(self._insns[index], self._effects[index], was_set)
        return was_set

    def _solve_set(self) -> list[int]:
        blocks, functions = self._flow.blocks, self._flow.functions
        set_in = [0] * len(blocks)
        for start in functions:
            # The main function is given r1 alone; a subprogram up to five arguments.
            set_in[self._flow.block_at(start)] = 0b10 if start == 0 else _CALL_ARGUMENTS
        pending = list(range(len(blocks)))
        while pending:
            block = blocks[number := pending.pop(0)]
            found = self._block_set_out(block.start, block.end, set_in[number])
            for successor in (block.fall, block.taken):
                if successor is not None and found & ~set_in[successor]:
                    set_in[successor] |= found
                    pending.append(successor)
        return set_in

    def free_before(self, index: int) -> int:
        """Return the free registers just before slot ``index``, as a bit set of r0 to r9."""
        number = self._flow.block_at(index)
        block = self._flow.blocks[number]
        live = self._block_live_in(index, block.end, self._live_out(number, self._live_in))
        was_set = self._block_set_out(block.start, index, self._set_in[number])
        return ALL & ~(live & was_set)

    def free_on_edge(self, source: int, target: int) -> int:
        """Return the free registers on the way from block ``source`` to block ``target``."""
        block = self._flow.blocks[source]
        was_set = self._block_set_out(block.start, block.end, self._set_in[source])
        return ALL & ~(self._live_in[target] & was_set)


def stack_floor(insns: Sequence[Insn], start: int, end: int) -> int:
    """Return the lowest stack offset that a function may use: 0 or negative, a multiple of eight.

    An over-estimate of the depth: the lowest constant added to any register, plus the lowest offset
    of any access, as if both were the frame pointer's.
    """
    lowest_sum = lowest_offset = 0
    for insn in insns[start:end]:
        if insn.cls in (LDX, ST, STX):
            lowest_offset = min(lowest_offset, insn.off)
        elif insn.code == ALU64 | ADD and -512 <= insn.imm < 0:
            lowest_sum = min(lowest_sum, insn.imm)
    return (lowest_sum + lowest_offset) & ~7
