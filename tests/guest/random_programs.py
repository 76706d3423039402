"""Random programs that the verifier accepts: scalars, jumps of every kind, loops, subprograms.

A program is a list of statements that know no address; jumps go forward to the start of a later
statement, loops stay within theirs, and every register is set at all times. So nothing that is
generated can be refused, and what it returns depends on the length of the packet alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from bpfunit.rewrite import insn as i
from bpfunit.rewrite.insn import Insn

_ALU = (0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x90, 0xA0)  # + - * / | & % ^
_SHIFTS = (0x60, 0x70, 0xC0)
_CONDITIONS = (0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xB0, 0xC0, 0xD0)
_GET_SMP_PROCESSOR_ID = 8
_SCRATCH = 9  # the counter of loops; nothing else writes it
_STACK_SLOTS = 4


@dataclass
class _Statement:
    """Instructions, and which of them jump to the start of which later statement."""

    insns: list[Insn]
    jumps: dict[int, int] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)  # position: number of the subprogram


class _Writer:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def _register(self) -> int:
        return self._rng.randrange(9)

    def _imm(self) -> int:
        return self._rng.choice((0, 1, -1, 7, self._rng.randrange(-(1 << 31), 1 << 31)))

    def arithmetic(self) -> _Statement:
        rng, cls = self._rng, self._rng.choice((i.ALU64, i.ALU))
        dst = self._register()
        if rng.random() < 0.2:
            width = 64 if cls == i.ALU64 else 32
            return _Statement([Insn(cls | rng.choice(_SHIFTS), dst, imm=rng.randrange(width))])
        op = rng.choice(_ALU)
        if rng.random() < 0.5:
            return _Statement([Insn(cls | op | i.SRC_REG, dst, self._register())])
        return _Statement([Insn(cls | op, dst, imm=self._imm() or 3)])

    def constant(self) -> _Statement:
        return _Statement(i.load_imm64(self._register(), self._rng.randrange(1 << 64)))

    def memory(self) -> _Statement:
        slot = -8 * self._rng.randint(1, _STACK_SLOTS)
        out, back = self._register(), self._register()
        return _Statement([i.store(8, 10, slot, out), i.load(8, back, 10, slot)])

    def jump(self, here: int, count: int) -> _Statement:
        rng, target = self._rng, self._rng.randint(here + 1, count)
        code = rng.choice((i.JMP, i.JMP32)) | rng.choice(_CONDITIONS)
        if rng.random() < 0.5:
            jump = Insn(code | i.SRC_REG, self._register(), self._register())
        else:
            jump = Insn(code, self._register(), imm=self._imm())
        if rng.random() < 0.15:
            # A goto that may be passed by, else what follows it would be unreachable.
            return _Statement([jump._replace(off=1), i.goto(0)], {1: target})
        return _Statement([jump], {0: target})

    def loop(self) -> _Statement:
        body = self.arithmetic().insns
        return _Statement(
            [
                i.mov_imm(_SCRATCH, self._rng.randint(1, 5)),
                *body,
                i.alu_imm(i.ADD, _SCRATCH, -1),
                i.branch_imm(i.JNE, _SCRATCH, 0, -len(body) - 2),
            ]
        )

    def _reset(self) -> list[Insn]:
        """Give r1 to r5 values again after a call."""
        return [i.mov_imm(register, self._imm()) for register in range(1, 6)]

    def helper(self) -> _Statement:
        call = Insn(i.JMP | i.CALL, imm=_GET_SMP_PROCESSOR_ID)
        return _Statement([call, *self._reset()])

    def subprogram(self, number: int) -> _Statement:
        call = Insn(i.JMP | i.CALL, src=i.PSEUDO_CALL)
        return _Statement([call, *self._reset()], calls={0: number})

    def function(self, length: int, callable_from: int, functions: int) -> list[_Statement]:
        """Return the statements of one function; it may call those with higher numbers."""
        # The main function gets a context, of which it reads the packet's length; others a number.
        length_of_packet = [i.load(4, 0, 1, 0), i.mov_reg(1, 0)]
        first = length_of_packet if callable_from == 1 else [i.mov_reg(0, 1)]
        first += [i.mov_imm(register, self._imm()) for register in range(2, 9)]
        first += [i.mov_imm(_SCRATCH, 0)]
        first += [i.store(8, 10, -8 * slot, 0) for slot in range(1, _STACK_SLOTS + 1)]
        statements = [_Statement(first)]
        for here in range(1, length):
            kind = self._rng.random()
            if kind < 0.35:
                statements.append(self.arithmetic())
            elif kind < 0.7:
                statements.append(self.jump(here, length))
            elif kind < 0.78:
                statements.append(self.memory())
            elif kind < 0.84:
                statements.append(self.constant())
            elif kind < 0.9:
                statements.append(self.loop())
            elif kind < 0.94:
                statements.append(self.helper())
            elif callable_from < functions:
                callee = self._rng.randrange(callable_from, functions)
                statements.append(self.subprogram(callee))
            else:
                statements.append(self.arithmetic())
        statements.append(_Statement([i.exit_()]))
        return statements


def random_program(seed: int, length: int = 30) -> list[Insn]:
    """Return a socket filter made of ``length`` statements a function, the same for each seed."""
    writer = _Writer(random.Random(seed))
    count = 1 + seed % 3
    functions = [writer.function(length, number + 1, count) for number in range(count)]
    called = {n for f in functions for s in f for n in s.calls.values()}
    # The verifier refuses code that nothing reaches, so each function is called at least once.
    for number in range(1, count):
        if number not in called:
            functions[0].insert(1, writer.subprogram(number))
            _shift_jumps(functions[0])
    return _link(functions)


def _shift_jumps(statements: list[_Statement]) -> None:
    for statement in statements:
        statement.jumps = {at: target + 1 for at, target in statement.jumps.items()}


def _link(functions: list[list[_Statement]]) -> list[Insn]:
    insns: list[Insn] = []
    starts: list[int] = []
    calls: list[tuple[int, int]] = []
    for statements in functions:
        starts.append(len(insns))
        places = []
        for statement in statements:
            places.append(len(insns))
            insns += statement.insns
        for place, statement in zip(places, statements, strict=True):
            for at, target in statement.jumps.items():
                distance = places[target] - (place + at) - 1
                insns[place + at] = insns[place + at]._replace(off=distance)
            calls += [(place + at, number) for at, number in statement.calls.items()]
    for at, number in calls:
        insns[at] = insns[at]._replace(imm=starts[number] - at - 1)
    return insns
