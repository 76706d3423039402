"""eBPF instructions as values: decoding, encoding and the few that a probe is made of.

The encoding is that of the kernel's ``Documentation/bpf/standardization/instruction-set.rst``:
eight bytes each, most often in this machine's byte order, and a 64-bit immediate takes two such
slots. A program is a plain list of slots, so that indices are the kernel's: the second slot of a
pair is an instruction with opcode 0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from bpfunit._arch import LITTLE_ENDIAN

LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)

# Jump operations, the upper four bits of an opcode of class JMP or JMP32.
JA, JEQ, JGT, JGE, JNE, CALL, EXIT, JCOND = 0x00, 0x10, 0x20, 0x30, 0x50, 0x80, 0x90, 0xE0
# ALU operations that the analyses have to know.
ADD, SUB, MUL, AND, LSH, NEG, MOD, MOV, END = 0x00, 0x10, 0x20, 0x50, 0x60, 0x80, 0x90, 0xB0, 0xD0

LD_IMM64 = 0x18
MODE_ABS, MODE_IND, MODE_ATOMIC = 0x20, 0x40, 0xC0
SRC_REG = 0x08
FETCH, XCHG, CMPXCHG, LOAD_ACQ, STORE_REL = 0x01, 0xE1, 0xF1, 0x100, 0x110

# src_reg of ld_imm64 and of a call: what the immediate is (uapi linux/bpf.h).
PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_BTF_ID, PSEUDO_FUNC = 1, 2, 3, 4
PSEUDO_MAP_IDX, PSEUDO_MAP_IDX_VALUE = 5, 6
PSEUDO_CALL, PSEUDO_KFUNC = 1, 2

# After a tail call that succeeds nothing of the caller runs.
HELPER_TAIL_CALL = 12

# By whether it is little-endian. The two registers share a byte; which of them has its lower half
# follows the byte order.
_LAYOUTS = {True: (struct.Struct("<BBhi"), 0, 4), False: (struct.Struct(">BBhi"), 4, 0)}
SLOT_SIZE = 8

# A slot as one number of this machine, for looking through many: what masks opcode and source
# register, and how far up the immediate stands.
OPCODE_AND_SOURCE = 0xF0FF if LITTLE_ENDIAN else 0xFF0F << 48
_IMM_SHIFT = 32 if LITTLE_ENDIAN else 0
#: The conditional jumps by operation, as C spells them; "s" in front compares as signed.
JUMP_SIGNS = {
    0x10: "==",
    0x20: ">",
    0x30: ">=",
    0x40: "&",
    0x50: "!=",
    0x60: "s>",
    0x70: "s>=",
    0xA0: "<",
    0xB0: "<=",
    0xC0: "s<",
    0xD0: "s<=",
}


class Insn(NamedTuple):
    """One slot: opcode, destination and source register, 16-bit offset, 32-bit immediate."""

    code: int
    dst: int = 0
    src: int = 0
    off: int = 0
    imm: int = 0

    @property
    def cls(self) -> int:
        """The instruction class, the lower three bits of the opcode."""
        return self.code & 0x07

    @property
    def op(self) -> int:
        """The operation of an ALU or jump instruction, the upper four bits of the opcode."""
        return self.code & 0xF0

    @property
    def is_wide(self) -> bool:
        """Whether this is the first slot of a 64-bit immediate load."""
        return self.code == LD_IMM64

    @property
    def is_goto(self) -> bool:
        """Whether this jumps always: ``goto`` (16-bit) or ``gotol`` (32-bit, since Linux 6.6)."""
        return self.code in (JMP | JA, JMP32 | JA)

    @property
    def is_may_goto(self) -> bool:
        """Whether this is ``may_goto`` (since Linux 6.8), whose condition is the kernel's own."""
        return self.code == JMP | JCOND

    @property
    def is_branch(self) -> bool:
        """Whether this is a conditional jump on register values."""
        return self.cls in (JMP, JMP32) and self.op in JUMP_SIGNS

    @property
    def is_call(self) -> bool:
        """Whether this calls a helper, a kernel function or a subprogram."""
        return self.code in (JMP | CALL, JMP | CALL | SRC_REG)

    @property
    def is_subprogram_call(self) -> bool:
        """Whether this calls a subprogram of the same program."""
        return self.is_call and self.src == PSEUDO_CALL

    @property
    def is_helper_call(self) -> bool:
        """Whether this calls a helper, whose number is the immediate."""
        return self.is_call and self.src == 0

    @property
    def is_callback(self) -> bool:
        """Whether this loads the address of a subprogram, to pass it as a callback."""
        return self.is_wide and self.src == PSEUDO_FUNC

    @property
    def is_exit(self) -> bool:
        """Whether this returns from the program or subprogram."""
        return self.code == JMP | EXIT

    @property
    def loads_map(self) -> bool:
        """Whether this loads a map's address or one of its value, by descriptor or index."""
        return self.is_wide and self.src in (
            PSEUDO_MAP_FD,
            PSEUDO_MAP_VALUE,
            PSEUDO_MAP_IDX,
            PSEUDO_MAP_IDX_VALUE,
        )

    def condition(self) -> str:
        """Return the condition of a conditional jump as text, for example ``r1 != 0``."""
        prefix = "w" if self.cls == JMP32 else "r"
        right = f"{prefix}{self.src}" if self.code & SRC_REG else str(self.imm)
        return f"{prefix}{self.dst} {JUMP_SIGNS[self.op]} {right}"


def decode(data: bytes, *, little_endian: bool = LITTLE_ENDIAN) -> list[Insn]:
    """Split the bytes of a program into slots.

    Args:
        data: the bytes.
        little_endian: their byte order; this machine's by default.

    Raises:
        ValueError: the length is no multiple of eight.
    """
    if len(data) % SLOT_SIZE:
        raise ValueError(f"decode program: {len(data)} bytes are no multiple of {SLOT_SIZE}")
    slot, to_dst, to_src = _LAYOUTS[little_endian]
    return [
        Insn(code, regs >> to_dst & 0x0F, regs >> to_src & 0x0F, off, imm)
        for code, regs, off, imm in slot.iter_unpack(data)
    ]


def encode(insns: Iterable[Insn], *, little_endian: bool = LITTLE_ENDIAN) -> bytes:
    """Join slots into the bytes that a kernel of a byte order takes, by default the one here."""
    slot, to_dst, to_src = _LAYOUTS[little_endian]
    pack = slot.pack
    return b"".join(pack(i.code, i.dst << to_dst | i.src << to_src, i.off, i.imm) for i in insns)


def opcode_and_source(code: int, src: int = 0) -> int:
    """Return what `OPCODE_AND_SOURCE` leaves of a slot with these, as one number."""
    return src << 12 | code if LITTLE_ENDIAN else (code << 8 | src) << 48


def immediate(word: int) -> int:
    """Return the immediate of a slot that was read as one number, without its sign."""
    return word >> _IMM_SHIFT & 0xFFFFFFFF


def _signed32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - 0x100000000 if value & 0x80000000 else value


def load_imm64(dst: int, value: int) -> list[Insn]:
    """``dst = value``, a 64-bit constant."""
    return [
        Insn(LD_IMM64, dst, 0, 0, _signed32(value)),
        Insn(0, imm=_signed32(value >> 32)),
    ]


def load_map_value(dst: int, fd: int, offset: int) -> list[Insn]:
    """``dst = address of byte offset in the only value of the array map fd`` (since Linux 5.2)."""
    return [Insn(LD_IMM64, dst, PSEUDO_MAP_VALUE, 0, fd), Insn(0, imm=offset)]


def load_map_fd(dst: int, fd: int) -> list[Insn]:
    """``dst = the map fd``, as helpers take it."""
    return [Insn(LD_IMM64, dst, PSEUDO_MAP_FD, 0, fd), Insn(0)]


def mov_imm(dst: int, value: int) -> Insn:
    """``dst = value``, a constant of 32 bits, sign-extended."""
    return Insn(ALU64 | MOV, dst, imm=value)


def mov_reg(dst: int, src: int) -> Insn:
    """``dst = src``."""
    return Insn(ALU64 | MOV | SRC_REG, dst, src)


def alu_imm(op: int, dst: int, value: int) -> Insn:
    """``dst op= value`` in 64 bits."""
    return Insn(ALU64 | op, dst, imm=value)


def alu_reg(op: int, dst: int, src: int) -> Insn:
    """``dst op= src`` in 64 bits."""
    return Insn(ALU64 | op | SRC_REG, dst, src)


# Sizes of memory accesses, by bytes.
_SIZE_BITS = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_MODE_MEM = 0x60


def load(size: int, dst: int, base: int, off: int) -> Insn:
    """``dst = *(size bytes)(base + off)``."""
    return Insn(LDX | _MODE_MEM | _SIZE_BITS[size], dst, base, off)


def store(size: int, base: int, off: int, src: int) -> Insn:
    """``*(size bytes)(base + off) = src``."""
    return Insn(STX | _MODE_MEM | _SIZE_BITS[size], base, src, off)


def store_imm(size: int, base: int, off: int, value: int) -> Insn:
    """``*(size bytes)(base + off) = value``."""
    return Insn(ST | _MODE_MEM | _SIZE_BITS[size], base, 0, off, value)


def atomic_add64(base: int, off: int, src: int) -> Insn:
    """``*(u64 *)(base + off) += src``, atomically."""
    return Insn(STX | MODE_ATOMIC | _SIZE_BITS[8], base, src, off, ADD)


def goto(off: int) -> Insn:
    """Jump over ``off`` slots."""
    return Insn(JMP | JA, off=off)


def branch_imm(op: int, dst: int, value: int, off: int) -> Insn:
    """Jump over ``off`` slots if ``dst op value`` holds in 64 bits."""
    return Insn(JMP | op, dst, off=off, imm=value)


def call(helper: int) -> Insn:
    """Call a helper, a number of ``enum bpf_func_id``."""
    return Insn(JMP | CALL, imm=helper)


def exit_() -> Insn:
    """Return from the program or subprogram."""
    return Insn(JMP | EXIT)
