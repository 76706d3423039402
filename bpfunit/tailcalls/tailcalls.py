"""Spies in program arrays, and the chain of tail calls that a run made.

A spy is a small BPF program of ours in a slot: it records that it was entered and the context it
saw, and returns. It needs no change to the program under test. Tracing goes further: at load time
each ``bpf_tail_call`` of the program gets a record in front and one behind, which is only reached
when the call failed (nothing in the slot, or the kernel's bound of 33 reached).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bpfunit._sys import bpf
from bpfunit.errors import BpfunitError
from bpfunit.objects.maps import Map
from bpfunit.progtypes.base import ProgramRef, ProgramType, type_of
from bpfunit.rewrite import insn as i
from bpfunit.rewrite.code import ProgramCode, Unreached
from bpfunit.rewrite.insn import Insn
from bpfunit.rewrite.patcher import Patcher
from bpfunit.rewrite.valuemap import ValueMap

_CAPACITY = 128  # records of one run; the kernel allows 33 tail calls, each is at most two records
_HEADER = 8  # how many records were written, u64
_LEAD = 8  # a record is {u32 tag; u32 index; context}
_MISSED = 0  # the tag of «the call before this came back»

# (array's name or descriptor, index) -> (array's name, what the slot holds)
Resolve = Callable[["str | int", int], "tuple[str, str | None]"]


@dataclass(frozen=True)
class TailCall:
    """One tail call of a run.

    Attributes:
        map: the program array.
        index: the slot.
        target: what the slot held: a program's name, "spy", or None for an empty slot.
        ctx: the context that the target saw, as far as programs of its type may read it; None where
            the type's context is not described.
        entered: False when the call came back: empty slot, or the kernel's bound of 33 reached.
        traced: whether tracing saw it, rather than a spy.
    """

    map: str
    index: int
    target: str | None
    ctx: Any
    entered: bool = True
    traced: bool = False

    @property
    def shown(self) -> str:
        """The context as text for a report."""
        user = getattr(self.ctx, "user", None)
        return str(user) if user is not None else repr(self.ctx)


class Loaded(Protocol):
    """Whatever stands for a loaded program."""

    @property
    def ref(self) -> ProgramRef:
        """The program."""
        ...


class CallRecorder:
    """The memory that spies and traced calls of one program type write to, one for each object.

    Args:
        program_type: the type, whose context is in each record.
        traced: whether every tail call is recorded, so that spies need not.
    """

    CAPACITY = _CAPACITY

    def __init__(self, program_type: ProgramType, *, traced: bool = False) -> None:
        self._type, self.traced = program_type, traced
        self.lost = 0
        self.record_size = _LEAD + program_type.context_size
        self._map = ValueMap("bpfunit_calls", _HEADER + _CAPACITY * self.record_size)
        self._tags: list[str | int] = ["(missed)"]  # by tag: a map's name, or its descriptor

    def code(self, attach_type: int, where: str | int | None, *, index: bool = True) -> list[Insn]:
        """Return code that appends a record; r1 is the context, r3 the index; r0, r4, r5 are used.

        Those three are free in front of a ``bpf_tail_call``, which takes r1 to r3 and clobbers the
        rest.

        Args:
            attach_type: of the program that the code is for.
            where: the program array, by name or descriptor; None for «the call before came back».
            index: whether r3 is the index.
        """
        fields = self._type.readable_words(attach_type) if where is not None else ()
        tag = _MISSED if where is None else self._tag(where)
        fill = [
            i.alu_imm(i.MUL, 5, self.record_size),
            i.alu_reg(i.ADD, 4, 5),
            i.store_imm(4, 4, _HEADER, tag),
        ]
        if index:
            fill.append(i.store(4, 4, _HEADER + 4, 3))
        for offset in range(0, self.record_size - _LEAD, 4):
            position = _HEADER + _LEAD + offset
            if offset in fields:
                fill += [i.load(4, 0, 1, offset), i.store(4, 4, position, 0)]
            else:
                # the memory may hold an earlier record, of a program that could read this field
                fill.append(i.store_imm(4, 4, position, 0))
        return [
            *i.load_map_value(4, self._map.fd, 0),
            i.load(8, 5, 4, 0),
            i.mov_reg(0, 5),
            i.alu_imm(i.ADD, 0, 1),
            i.store(8, 4, 0, 0),
            i.branch_imm(i.JGE, 5, _CAPACITY, len(fill)),
            *fill,
        ]

    def _tag(self, where: str | int) -> int:
        """Return a number for records about this program array (name, or descriptor)."""
        if where not in self._tags:
            self._tags.append(where)
        return self._tags.index(where)

    def take(self) -> bytes:
        """Return the records since the last take, for :meth:`decode`; `lost` did not fit."""
        memory = self._map.memory
        count = int.from_bytes(memory[:_HEADER], sys.byteorder)
        self.lost = max(0, count - _CAPACITY)
        if not count:
            return b""
        memory[:_HEADER] = bytes(_HEADER)
        return bytes(memory[_HEADER : _HEADER + min(count, _CAPACITY) * self.record_size])

    def decode(self, records: bytes, resolve: Resolve) -> list[TailCall]:
        """Read the records of one run, in order.

        Args:
            records: what :meth:`take` returned.
            resolve: tells, of an array and an index, the array's name and what its slot held.
        """
        calls: list[TailCall] = []
        for start in range(0, len(records), self.record_size):
            tag, index = struct.unpack_from("=II", records, start)
            if tag == _MISSED:
                calls[-1] = replace(calls[-1], entered=False)
                continue
            name, target = resolve(self._tags[tag], index)
            raw = records[start + _LEAD : start + self.record_size]
            context = self._type.decode_context(raw) if raw else None
            calls.append(TailCall(name, index, target, context, True, self.traced))
        return calls

    def refusal(self, lost: int) -> Callable[[], list[TailCall]]:
        """Return what refuses to list the calls of a run that made too many.

        Args:
            lost: how many there was no room for.
        """

        def refuse() -> list[TailCall]:
            raise BpfunitError(
                f"list tail calls: {lost + _CAPACITY} records, there is room for {_CAPACITY}; "
                "run with fewer repeats"
            )

        return refuse

    def address(self) -> int:
        """Return where the count is mapped, for a reader in C."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map.memory))

    def discard(self) -> None:
        """Forget what was recorded."""
        self._map.memory[:_HEADER] = bytes(_HEADER)

    def close(self) -> None:
        """Release the map."""
        self._map.close()


class CallTracer:
    """An instrumentation pass that records every ``bpf_tail_call``; see the module's docstring."""

    def __init__(self, recorder: Callable[[ProgramType], CallRecorder]) -> None:
        self._recorder = recorder

    def rewrite(self, program: ProgramCode) -> None:
        """Put a record in front of each tail call of ``program`` and one on its way back."""
        calls = [
            n
            for n, insn in enumerate(program.insns)
            if insn.is_helper_call and insn.imm == i.HELPER_TAIL_CALL
        ]
        if not calls:
            return
        recorder = self._recorder(type_of(program.prog_type))
        patcher = Patcher(program.flow())
        for n in calls:
            where = _array_of(program.insns, n)
            patcher.before(n, recorder.code(program.attach_type, where))
            patcher.on_fallthrough(n, recorder.code(program.attach_type, None, index=False))
        program.apply(patcher)

    def loaded(self, unreached: Mapping[str, Unreached]) -> None:
        """Refuse a load in which calls cannot be seen that were to be traced.

        Raises:
            BpfunitError: a program of a section that cannot be rewritten makes tail calls.
        """
        untraced = [
            f"{name} ({section})"
            for name, (section, helpers) in unreached.items()
            if i.HELPER_TAIL_CALL in helpers
        ]
        if untraced:
            raise BpfunitError(
                f"trace tail calls of {', '.join(untraced)}: programs of that section cannot be "
                "rewritten; load them on their own (programs=…), without trace_tail_calls"
            )


def _array_of(insns: Sequence[Insn], call: int) -> int | str:
    """Return the descriptor that the nearest load of r2 in front of a tail call holds."""
    for n in range(call - 1, -1, -1):
        insn = insns[n]
        if insn.is_wide and insn.dst == 2 and insn.src == i.PSEUDO_MAP_FD:
            return insn.imm
    return "(array chosen at run time)"


class Spy:
    """A recording program in one slot, which is emptied when the spy is closed."""

    def __init__(self, array: ProgArray, index: int, fd: int) -> None:
        self.array, self.index, self.fd = array, index, fd
        self.name = "spy"
        self.owner = array.owner

    @property
    def descriptor(self) -> int:
        """The same as ``fd``, as maps and programs have it."""
        return self.fd

    def close(self) -> None:
        """Empty the slot, unless something else has been put there, and drop the program."""
        if self.fd < 0:
            return
        if self.array.contents.get(self.index) is self:
            del self.array[self.index]
        os.close(self.fd)
        self.fd = -1

    def __enter__(self) -> Spy:
        """Return self."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()


class ProgArray(Map):
    """A program array: ``array[0] = program``, ``del array[0]``, ``array.spy(0)``.

    Values are programs, spies or descriptors; reading gives what was put here, or the kernel's id
    of a program that someone else put.
    """

    recorder: Callable[[ProgramType], CallRecorder]
    changed: Callable[[], None]  # to be told that a slot is filled or emptied, if anybody is

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.contents: dict[int, Any] = {}
        self.users: list[ProgramRef] = []  # programs of the object that refer to this array
        self.spies: list[Spy] = []

    def put(self, key: Any, value: Any, flags: int = 0) -> None:
        """Put a program into a slot.

        Raises:
            SyscallError: EINVAL when it does not fit the programs that use the array: its type, or
                since 6.12.57 its attach type, differs.
        """
        super().put(key, value, flags)
        self.contents[int(key)] = value
        self._tell()

    def _tell(self) -> None:
        if changed := getattr(self, "changed", None):
            changed()

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(key)
        self.contents.pop(int(key), None)
        self._tell()

    def renewed(self) -> ProgArray:
        """Return the same array as another object, with empty slots; its spies are gone."""
        for spy in self.spies:
            spy.close()
        other = super().renewed()
        assert isinstance(other, ProgArray)
        other.contents, other.spies = {}, []
        return other

    def names(self) -> dict[int, str]:
        """Return the names of what the slots hold; empty slots are missing."""
        return {n: getattr(held, "name", str(held)) for n, held in self.contents.items()}

    def real_slots(self) -> list[str]:
        """Return the slots that hold something other than a spy, as text."""
        return [
            f"{self.name}[{n}]" for n, held in self.contents.items() if not isinstance(held, Spy)
        ]

    def spy(self, index: int, *, returns: int = 1, like: Loaded | None = None) -> Spy:
        """Put a recording program into a slot and return it.

        Args:
            index: the slot.
            returns: what the spy returns, and thereby the program that called it (1 is «proceed»).
            like: a program whose type and attach type the spy takes; by default the first program
                of the object that refers to the array.

        Raises:
            BpfunitError: no program refers to the array and ``like`` is not given.
        """
        model = like.ref if like is not None else next(iter(self.users), None)
        if model is None:
            raise BpfunitError(
                f"spy on {self.name}[{index}]: no program of the object refers to the array;"
                " say like=program"
            )
        recorder = self.recorder(model.type)
        code = [i.mov_imm(3, index)]
        if not recorder.traced:  # a traced call has its record already
            code += recorder.code(model.attach_type, self.name)
        code += [i.mov_imm(0, returns), i.exit_()]
        fd, log = bpf.prog_load("bpfunit_spy", model.type.number, model.attach_type, i.encode(code))
        if fd < 0:
            raise BpfunitError(
                f"load spy for {self.name}[{index}]: {errno.errorcode.get(-fd, -fd)}\n{log}"
            )
        spy = Spy(self, index, fd)
        try:
            self[index] = spy
        except BaseException:
            os.close(fd)
            raise
        self.spies.append(spy)
        return spy
