"""The recording pass: what each comparison compared, which keys were asked for, what helpers said.

Each point of record writes 64 bytes into a ring: its number, the operands, a key. The edges of
jumps follow from the operands. Calls that depend on time, chance or failure get a stub as well,
which an input switches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bpfunit._sys import bpf, uapi
from bpfunit.explorer.facts import (
    BRANCH,
    CHOSEN,
    CONSTANT,
    KEY,
    KEYED,
    RESULT,
    TAIL,
    TAIL_CALL,
    Site,
    StubFacts,
    answers_pointer,
    failure_of,
)
from bpfunit.rewrite import insn as i
from bpfunit.rewrite.code import Image, ProgramCode, Unreached
from bpfunit.rewrite.flow import Flow, RewriteError
from bpfunit.rewrite.insn import Insn
from bpfunit.rewrite.liveness import FRAME_POINTER, Liveness, reads_writes, stack_floor
from bpfunit.rewrite.patcher import Patcher
from bpfunit.rewrite.valuemap import ValueMap

RECORDS = 4096  # of one run; older ones are lost
RECORD_SIZE, KEY_AT, KEY_ROOM = 64, 24, 40
_FIRST, _A, _B = 64, 8, 16  # where records begin; where operands lie in one
_STACK_LIMIT = -512  # MAX_BPF_STACK, include/linux/filter.h
_PREFERENCE = (5, 4, 3, 2, 1, 0, 9, 8, 7, 6)
_SPILLABLE = (9, 8, 7, 6)
# Helpers that return nothing: spin_lock, spin_unlock, ringbuf_submit, ringbuf_discard, and theirs
# of dynptrs.
_SILENT = (93, 94, 132, 133, 199, 200)
_STUB_SIZE = 16
_MAX_STUBS = 1024


@dataclass(frozen=True)
class _Manner:
    """How far the pass goes; less where the verifier refuses more.

    Attributes:
        piece: bytes by which keys are copied: the verifier wants the stack's alignment.
        failures: whether calls that may fail get a stub.
        keys: whether keys are recorded.
    """

    piece: int = 8
    failures: bool = True
    keys: bool = True


_MANNERS = [
    _Manner(),
    _Manner(4),
    _Manner(1),
    _Manner(8, failures=False),
    _Manner(4, failures=False),
    _Manner(1, failures=False),
    _Manner(8, failures=False, keys=False),
]


def maps_in_registers(flow: Flow) -> dict[int, int]:
    """Return for each helper call the descriptor of the map whose address it is given, if any.

    That is r1, and r2 of a tail call.

    The register is followed through moves and over jumps, so that a map of a map is not taken for
    the outer one.
    """
    unknown = (0,) * 11
    states: dict[int, tuple[int, ...]] = {flow.block_at(s): unknown for s in flow.functions}
    pending = list(states)
    found: dict[int, int] = {}
    while pending:
        block = flow.blocks[number := pending.pop()]
        registers = list(states[number])
        for index in range(block.start, block.end):
            insn = flow.insns[index]
            if insn.is_call:
                tail = insn.is_helper_call and insn.imm == TAIL_CALL
                found[index] = registers[2 if tail else 1]
                registers[:6] = [0] * 6
            elif insn.loads_map and insn.src == i.PSEUDO_MAP_FD:
                registers[insn.dst] = insn.imm
            elif insn.code == i.ALU64 | i.MOV | i.SRC_REG:
                registers[insn.dst] = registers[insn.src]
            else:
                _, writes = reads_writes(insn)
                registers = [0 if writes >> n & 1 else fd for n, fd in enumerate(registers)]
        for successor in {block.fall, block.taken} - {None}:
            assert successor is not None
            before = states.get(successor)
            after = tuple(registers)
            if before is not None:
                after = tuple(a if a == b else 0 for a, b in zip(before, after, strict=True))
            if after != before:
                states[successor] = after
                pending.append(successor)
    return {index: fd for index, fd in found.items() if fd}


class Recorder:
    """The pass, for one program of an object; others load as they are.

    Args:
        program: the program's name.

    Attributes:
        sites: the points of record; ``map`` is a descriptor here.
        stubs: the calls that a stub may answer.
        notes: what could not be recorded, and why.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.sites: list[Site] = []
        self.stubs: list[StubFacts] = []
        self.map_fds: list[int] = []
        self.notes: list[str] = []
        self.ring = ValueMap("bpfunit_ring", _FIRST + RECORDS * RECORD_SIZE)
        self.stub_memory = ValueMap("bpfunit_stubs", _STUB_SIZE * _MAX_STUBS)

    def rewrite(self, program: ProgramCode) -> None:
        """Put records into ``program``.

        Raises:
            RewriteError: the verifier refuses it in every manner.
        """
        if program.name != self.program:
            return
        flow = program.flow()
        reason = ""
        for manner in _MANNERS:
            placer = _Placer(flow, manner, self.ring.fd, self.stub_memory.fd)
            try:
                placer.place()
                patched = program.patch(placer.patcher)
            except RewriteError as error:
                reason = str(error)
                continue
            trial = program.try_load(Image.of(patched))
            if trial.accepted:
                break
            reason = reason or trial.reason
        else:
            raise RewriteError(
                f"explore {program.name}: the verifier refuses it with records: {reason}"
            )
        if not manner.failures:
            self.notes.append("failures of helpers are not stubbed: the verifier refuses them")
        if not manner.keys:
            self.notes.append("keys are not recorded: the verifier refuses their copies")
        self.sites, self.stubs = placer.sites, placer.stubs
        self.map_fds = sorted(
            {insn.imm for insn in program.insns if insn.is_wide and insn.src in (1, 2)}
        )
        program.accept(Image.of(patched))

    def loaded(self, unreached: Mapping[str, Unreached]) -> None:
        """Refuse a program whose section cannot be rewritten.

        Raises:
            RewriteError: it is one.
        """
        if self.program in unreached:
            section = unreached[self.program].section
            raise RewriteError(
                f"explore {self.program}: programs of section {section!r} cannot be rewritten, so"
                " that nothing can be seen of their comparisons"
            )

    def close(self) -> None:
        """Release the maps."""
        self.ring.close()
        self.stub_memory.close()


class _Placer:
    """Writes records and stubs into a patcher."""

    def __init__(self, flow: Flow, manner: _Manner, ring_fd: int, stub_fd: int) -> None:
        self._flow, self._manner = flow, manner
        self._ring_fd, self._stub_fd = ring_fd, stub_fd
        self._liveness = Liveness(flow)
        self._maps = maps_in_registers(flow)
        self._calls: dict[int, int] = {}
        self._shared: dict[int, int] = {}
        self.patcher = Patcher(flow)
        self.sites: list[Site] = []
        self.stubs: list[StubFacts] = []

    def place(self) -> None:
        for number, block in enumerate(self._flow.blocks):
            cost = block.end - block.start
            for index in range(block.start, block.end):
                if self._flow.insns[index].is_helper_call:
                    self._call(index, number)
            last = self._flow.insns[block.last]
            if last.is_branch:
                self._branch(block.last, number, cost)

    def _branch(self, index: int, number: int, cost: int) -> None:
        insn = self._flow.insns[index]
        by_register = bool(insn.code & i.SRC_REG)
        site = Site(
            BRANCH,
            index,
            number,
            op=insn.op,
            narrow=insn.cls == i.JMP32,
            imm=None if by_register else insn.imm,
            cost=cost,
        )
        stores = [(_A, insn.dst), *([(_B, insn.src)] if by_register else [])]
        free = self._liveness.free_before(index)
        self.patcher.before(index, self._record(site, free, stores, index))

    def _call(self, index: int, number: int) -> None:
        helper = self._flow.insns[index].imm
        occurrence = self._calls[helper] = self._calls.get(helper, -1) + 1
        if helper == TAIL_CALL:
            site = Site(TAIL, index, number, helper=helper, map=self._maps.get(index, 0))
            self.patcher.before(index, self._record(site, 0b110001, [(_A, 3)], index))
            # passed only when the call came back, and then r0 cannot be read
            site = Site(RESULT, index, number, helper=helper)
            self.patcher.on_fallthrough(index, self._record(site, 0b111110, [], index))
            return
        if helper in KEYED and self._manner.keys and (fd := self._maps.get(index)):
            self._key(index, number, helper, fd)
        if helper in _SILENT:
            return
        slot = self._stub(index, helper, occurrence)
        site = Site(RESULT, index, number, helper=helper, map=self._maps.get(index, 0), slot=slot)
        # behind any call r1 to r5 cannot be read
        self.patcher.on_fallthrough(index, self._record(site, 0b111110, [(_A, 0)], index))

    def _key(self, index: int, number: int, helper: int, fd: int) -> None:
        size = bpf.object_info("inspect map", fd, uapi.MapInfo()).key_size
        kept = min(size, KEY_ROOM)
        arguments = sum(1 << n for n in range(1, KEYED[helper] + 1))
        free = 0b111111 & ~arguments
        site = Site(KEY, index, number, helper=helper, map=fd, key_size=kept)
        self.patcher.before(index, self._record(site, free, [], index, key=kept))

    def _stub(self, index: int, helper: int, occurrence: int) -> int:
        failure = failure_of(helper) if self._manner.failures else None
        if helper not in CHOSEN and failure is None:
            return -1
        slot = self._shared.get(helper, len(self.stubs))
        if slot == _MAX_STUBS:
            return -1
        if slot == len(self.stubs):
            always = helper in CHOSEN
            value = CHOSEN[helper] if always else failure or 0
            if helper in CONSTANT:
                self._shared[helper], occurrence = slot, -1
            self.stubs.append(StubFacts(helper, occurrence, always, value))
        answer = [
            *i.load_map_value(0, self._stub_fd, slot * _STUB_SIZE),
            i.load(8, 0, 0, 8),
        ]
        if answers_pointer(helper):
            answer = [i.mov_imm(0, 0)]
        self.patcher.replace(
            index,
            [
                *i.load_map_value(0, self._stub_fd, slot * _STUB_SIZE),
                i.load(8, 0, 0, 0),
                i.branch_imm(i.JEQ, 0, 0, len(answer) + 1),
                *answer,
                i.goto(1),
                self._flow.insns[index],
            ],
        )
        return slot

    def _record(
        self, site: Site, free: int, stores: list[tuple[int, int]], index: int, key: int = 0
    ) -> list[Insn]:
        """Return code that writes one record; two registers of ``free`` are used, or saved."""
        registers = [r for r in _PREFERENCE if free >> r & 1][:2]
        taken = {register for _, register in stores} | set(registers)
        spilled = [r for r in _SPILLABLE if r not in taken][: 2 - len(registers)]
        place, scratch = [*registers, *spilled]
        number = len(self.sites)
        self.sites.append(site)
        body = [
            *i.load_map_value(place, self._ring_fd, 0),
            i.load(8, scratch, place, 0),
            i.alu_imm(i.ADD, scratch, 1),
            i.store(8, place, 0, scratch),
            i.alu_imm(i.AND, scratch, RECORDS - 1),
            i.alu_imm(i.LSH, scratch, 6),
            i.alu_reg(i.ADD, place, scratch),
            i.store_imm(4, place, _FIRST, number),
            *(i.store(8, place, _FIRST + offset, register) for offset, register in stores),
        ]
        for offset, size in _pieces(key, self._manner.piece):
            body.append(i.load(size, scratch, 2, offset))
            body.append(i.store(size, place, _FIRST + KEY_AT + offset, scratch))
        if not spilled:
            return body
        start = self._flow.function_of(index)
        floor = stack_floor(self._flow.insns, start, self._flow.function_end(start))
        pairs = [(r, floor - 8 * (n + 1)) for n, r in enumerate(spilled)]
        if pairs[-1][1] < _STACK_LIMIT:
            raise RewriteError(
                f"record instruction {index}: no free register, and no room to save one in a"
                f" stack of {-_STACK_LIMIT} bytes"
            )
        save = [i.store(8, FRAME_POINTER, slot, register) for register, slot in pairs]
        restore = [i.load(8, register, FRAME_POINTER, slot) for register, slot in pairs]
        return [*save, *body, *restore]


def _pieces(size: int, piece: int) -> Iterator[tuple[int, int]]:
    """Yield offsets and sizes of the pieces by which a key is copied."""
    offset = 0
    while offset < size:
        while piece > size - offset:
            piece //= 2
        yield offset, piece
        offset += piece


def with_map_indices(sites: list[Site], index_of: Mapping[int, int]) -> list[Site]:
    """Return the sites with maps by index in place of descriptors."""
    return [site._replace(map=index_of.get(site.map, -1)) for site in sites]


__all__ = ["RECORDS", "Recorder", "maps_in_registers", "with_map_indices"]
