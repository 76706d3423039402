"""Placing probes: where they go, which register they take, what they cost.

A probe sits on each function's entry, on both edges of each conditional jump, and behind each tail
call (reached only if the call fails). A *flag* is a one-byte store of 1, a *counter* an atomic
64-bit addition; both are right on any number of CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from bpfunit.rewrite import insn as i
from bpfunit.rewrite.flow import Flow, RewriteError
from bpfunit.rewrite.insn import HELPER_TAIL_CALL, Insn
from bpfunit.rewrite.liveness import FRAME_POINTER, Liveness, stack_floor
from bpfunit.rewrite.patcher import Patcher

_STACK_LIMIT = -512  # MAX_BPF_STACK, include/linux/filter.h
# The registers that a call leaves unreadable come first: a JIT saves r6 to r9 where they are used.
_PREFERENCE = (5, 4, 3, 2, 1, 0, 9, 8, 7, 6)
_SPILLABLE = (9, 8, 7, 6)


class Mode(Enum):
    """What a probe records, and the bytes that it takes: whether it was passed, or how often."""

    FLAGS = "flags"
    COUNTERS = "counters"

    @property
    def width(self) -> int:
        """Bytes in the map for each probe."""
        return 1 if self is Mode.FLAGS else 8


class ProbePoint(str, Enum):
    """Where a probe sits."""

    ENTRY = "entry"
    TAKEN = "taken"
    FALL = "fall"
    AFTER_TAIL_CALL = "after"


class Probe(NamedTuple):
    """One probe: on an edge that leaves ``block`` at its end, or at its start (entry)."""

    point: ProbePoint
    block: int


@dataclass(frozen=True)
class Placement:
    """The probes of one program; a probe's place in `probes` is its place in the map.

    Attributes:
        spills: how many probes had to save a register on the stack.
    """

    probes: tuple[Probe, ...]
    spills: int


class _Placer:
    """Writes probes into a patcher, one after another."""

    def __init__(self, flow: Flow, mode: Mode, map_fd: int, patcher: Patcher) -> None:
        self._flow = flow
        self._mode = mode
        self._fd = map_fd
        self._patcher = patcher
        self._liveness = Liveness(flow)
        self.probes: list[Probe] = []
        self.spills = 0

    def place(self) -> None:
        for number, block in enumerate(self._flow.blocks):
            if block.start in self._flow.functions:
                free = self._liveness.free_before(block.start)
                snippet = self._snippet(Probe(ProbePoint.ENTRY, number), free, block.start)
                self._patcher.on_entry(block.start, snippet)
            last = self._flow.insns[block.last]
            if last.is_branch or last.is_may_goto:
                self._edge(ProbePoint.FALL, number, block.fall)
                self._edge(ProbePoint.TAKEN, number, block.taken)
            elif last.is_helper_call and last.imm == HELPER_TAIL_CALL:
                self._edge(ProbePoint.AFTER_TAIL_CALL, number, block.fall)

    def _edge(self, point: ProbePoint, number: int, target: int | None) -> None:
        last = self._flow.blocks[number].last
        if target is None:
            raise RewriteError(f"place probes: instruction {last} runs off the end of its function")
        free = self._liveness.free_on_edge(number, target)
        snippet = self._snippet(Probe(point, number), free, last)
        if point is ProbePoint.TAKEN:
            self._patcher.on_taken(last, snippet)
        else:
            self._patcher.on_fallthrough(last, snippet)

    def _snippet(self, probe: Probe, free: int, index: int) -> list[Insn]:
        offset = len(self.probes) * self._mode.width
        self.probes.append(probe)
        needed = 1 if self._mode is Mode.FLAGS else 2
        registers = [r for r in _PREFERENCE if free >> r & 1][:needed]
        spilled = [r for r in _SPILLABLE if r not in registers][: needed - len(registers)]
        registers += spilled
        body = i.load_map_value(registers[0], self._fd, offset)
        if self._mode is Mode.FLAGS:
            body.append(i.store_imm(1, registers[0], 0, 1))
        else:
            body += [i.mov_imm(registers[1], 1), i.atomic_add64(registers[0], 0, registers[1])]
        return self._saving(spilled, body, index) if spilled else body

    def _saving(self, registers: Sequence[int], body: list[Insn], index: int) -> list[Insn]:
        """Save registers below everything that the function keeps on its stack."""
        self.spills += 1
        start = self._flow.function_of(index)
        floor = stack_floor(self._flow.insns, start, self._flow.function_end(start))
        slots = [floor - 8 * (n + 1) for n in range(len(registers))]
        if slots[-1] < _STACK_LIMIT:
            raise RewriteError(
                f"place probes: no free register at instruction {index}, "
                f"and no room to save one in a stack of {-_STACK_LIMIT} bytes"
            )
        pairs = list(zip(registers, slots, strict=True))
        save = [i.store(8, FRAME_POINTER, slot, register) for register, slot in pairs]
        restore = [i.load(8, register, FRAME_POINTER, slot) for register, slot in pairs]
        return [*save, *body, *restore]


def count_probes(flow: Flow) -> int:
    """Return how many probes `place_probes` would place."""
    functions = set(flow.functions)
    count = sum(block.start in functions for block in flow.blocks)
    for block in flow.blocks:
        last = flow.insns[block.last]
        if last.is_branch or last.is_may_goto:
            count += 2
        elif last.is_helper_call and last.imm == HELPER_TAIL_CALL:
            count += 1
    return count


def place_probes(flow: Flow, mode: Mode, map_fd: int, patcher: Patcher) -> Placement:
    """Ask ``patcher`` for a probe at every point, recording into the map ``map_fd``.

    Raises:
        RewriteError: somewhere no register is free and none can be saved.
    """
    placer = _Placer(flow, mode, map_fd, patcher)
    placer.place()
    return Placement(tuple(placer.probes), placer.spills)


def surviving_probes(survivors: Sequence[Insn], map_id: int, mode: Mode) -> set[int]:
    """Return the probes that a loaded program still has; the verifier drops code it proves dead.

    The kernel shows an address in a map's value as map id and offset
    (``bpf_insn_prepare_dump``, kernel/bpf/syscall.c).
    """
    return {
        second.imm // mode.width
        for first, second in pairwise(survivors)
        if first.is_wide and first.src == i.PSEUDO_MAP_VALUE and first.imm == map_id
    }
