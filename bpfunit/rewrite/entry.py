"""Recording each entry of a program with the context it saw, without trampolines.

A chain of tail calls, self-reference included, is then a list of entries in order. The prologue
copies the readable fields of ``struct bpf_sock_addr`` into a record; which fields those are depends
on the attach type (``sock_addr_is_valid_access`` in net/core/filter.c, unchanged since 5.8).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.rewrite import insn as i
from bpfunit.rewrite.insn import Insn
from bpfunit.rewrite.patcher import Patcher
from bpfunit.rewrite.program import ProgramCode
from bpfunit.rewrite.valuemap import ValueMap

CONTEXT_SIZE = 72  # sizeof(struct bpf_sock_addr)
_HEADER = 8  # bytes before the records: how many entries there were, as u64
_RECORD = 8 + CONTEXT_SIZE  # the program's number as u64, then the context

# Byte offsets of 32-bit fields in struct bpf_sock_addr.
_USER_FAMILY, _USER_IP4, _USER_PORT = 0, 4, 24
_USER_IP6 = (8, 12, 16, 20)
_FAMILY, _TYPE, _PROTOCOL, _MSG_SRC_IP4 = 28, 32, 36, 40
_MSG_SRC_IP6 = (44, 48, 52, 56)
_COMMON = (_USER_FAMILY, _USER_PORT, _FAMILY, _TYPE, _PROTOCOL)


def _readable_fields(attach_type: int) -> tuple[int, ...]:
    """Return the offsets that a program of this attach type may read."""
    name = next((a.name for a in AttachType if a == attach_type), "")
    user = _USER_IP6 if name.startswith(("CGROUP_INET6", "CGROUP_UDP6")) else (_USER_IP4,)
    source: tuple[int, ...] = ()
    if name == "CGROUP_UDP4_SENDMSG":
        source = (_MSG_SRC_IP4,)
    elif name == "CGROUP_UDP6_SENDMSG":
        source = _MSG_SRC_IP6
    return _COMMON + user + source


class Entry(NamedTuple):
    """One entry into a program.

    Attributes:
        program: the program's name.
        context: ``struct bpf_sock_addr``, 72 bytes, with the address and port in network byte
            order; fields that this attach type cannot read are 0, and so is ``sk``.
    """

    program: str
    context: bytes


class EntryRecorder:
    """An instrumentation pass that records entries of cgroup_sock_addr programs.

    Args:
        capacity: how many entries are kept between two calls of `take`; later ones are counted
            only. The kernel bounds a chain of tail calls at 33.
    """

    def __init__(self, capacity: int = 64) -> None:
        self._capacity = capacity
        self._names: list[str] = []
        self._map = ValueMap("bpfunit_entries", _HEADER + capacity * _RECORD)

    def rewrite(self, program: ProgramCode) -> None:
        """Put the recording prologue in front of a cgroup_sock_addr program."""
        if program.prog_type != ProgType.CGROUP_SOCK_ADDR:
            return
        patcher = Patcher(program.flow())
        patcher.on_entry(0, self._prologue(len(self._names), program.attach_type))
        self._names.append(program.name)
        program.apply(patcher)

    def loaded(self, unreached: Mapping[str, str]) -> None:
        """Ignore programs of other sections: they are not of this type."""

    def _prologue(self, number: int, attach_type: int) -> list[Insn]:
        """Record number and context; r1, the context, is left alone and nothing else is set yet."""
        copies: list[Insn] = []
        for offset in _readable_fields(attach_type):
            copies += [i.load(4, 4, 1, offset), i.store(4, 2, 8 + offset, 4)]
        fill = [
            i.alu_imm(i.MUL, 3, _RECORD),
            i.alu_reg(i.ADD, 2, 3),
            i.alu_imm(i.ADD, 2, _HEADER),
            i.store_imm(8, 2, 0, number),
            *copies,
        ]
        return [
            *i.load_map_value(2, self._map.fd, 0),
            i.load(8, 3, 2, 0),
            i.mov_reg(4, 3),
            i.alu_imm(i.ADD, 4, 1),
            i.store(8, 2, 0, 4),
            i.branch_imm(i.JGE, 3, self._capacity, len(fill)),
            *fill,
        ]

    def take(self) -> list[Entry]:
        """Return the entries since the last call, in order, and forget them."""
        (count,) = struct.unpack_from("<Q", self._map.memory, 0)
        entries = []
        for index in range(min(count, self._capacity)):
            start = _HEADER + index * _RECORD
            (number,) = struct.unpack_from("<Q", self._map.memory, start)
            entries.append(
                Entry(self._names[number], self._map.memory[start + 8 : start + _RECORD])
            )
        self._map.clear()
        return entries

    def close(self) -> None:
        """Release the map."""
        self._map.close()
