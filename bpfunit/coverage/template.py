"""Recognising a program that was instrumented before, and instrumenting it again for nothing.

A test suite loads the same object hundreds of times. Between loads only the descriptors of its maps
differ, so the probed program is kept as bytes with the places where descriptors go.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Hashable, Sequence

from bpfunit._sys import bpf, uapi
from bpfunit.rewrite.code import Image, ProgramCode
from bpfunit.rewrite.insn import PSEUDO_MAP_VALUE, SLOT_SIZE
from bpfunit.rewrite.patcher import Patched

_IMM = slice(4, 8)  # where a slot keeps its 32-bit immediate
_BPF_F_RDONLY_PROG = 1 << 7  # uapi linux/bpf.h: what libbpf gives .rodata


class Template:
    """A rewritten program that can be made for any load of the same original.

    Attributes:
        fingerprint: a key of the original that does not depend on descriptors.
    """

    def __init__(self, program: ProgramCode, patched: Patched) -> None:
        insns = program.insns
        self._descriptors = [n for n, slot in enumerate(insns) if slot.loads_map]
        self._values = [n for n in self._descriptors if insns[n].src == PSEUDO_MAP_VALUE]
        self._size = len(program.image.insns)
        self._image = Image.of(patched)
        self._places = [
            (position, origin)
            for position, origin in enumerate(patched.origin)
            if origin >= 0 and insns[origin].loads_map
        ]
        self._inserted = [
            position
            for position, origin in enumerate(patched.origin)
            if origin < 0 and patched.insns[position].loads_map
        ]
        self._identity = _identify(program, self._descriptors)
        self._constants = _constants(program.image.insns, self._values)
        whole = repr((self._identity, self._constants))
        self.fingerprint = hashlib.sha256(whole.encode()).hexdigest()[:16]

    def fits(self, program: ProgramCode) -> bool:
        """Whether ``program`` is the original, be its maps others."""
        insns = program.image.insns
        return (
            len(insns) == self._size
            and _identify(program, self._descriptors) == self._identity
            and _constants(insns, self._values) == self._constants
        )

    def for_load(self, original: bytes, probes: int) -> Image:
        """Return the rewritten program with the map descriptors of this load.

        Args:
            original: the instructions of this load.
            probes: the descriptor of the map that the inserted code uses.
        """
        insns = bytearray(self._image.insns)
        for position, origin in self._places:
            source = origin * SLOT_SIZE + _IMM.start
            target = position * SLOT_SIZE + _IMM.start
            insns[target : target + 4] = original[source : source + 4]
        for position in self._inserted:
            target = position * SLOT_SIZE + _IMM.start
            insns[target : target + 4] = probes.to_bytes(4, sys.byteorder)
        return self._image._replace(insns=bytes(insns))


def identity_of(program: ProgramCode) -> Hashable:
    """Return all of a program that rewriting and the verifier depend on, be its maps others."""
    insns = program.insns
    descriptors = [n for n, slot in enumerate(insns) if slot.loads_map]
    values = [n for n in descriptors if insns[n].src == PSEUDO_MAP_VALUE]
    return _identify(program, descriptors), _constants(program.image.insns, values)


def _identify(program: ProgramCode, descriptors: Sequence[int]) -> tuple[Hashable, ...]:
    """Return all that the rewriting depends on; the verifier's verdict takes the constants."""
    insns = program.image.insns
    stable = bytearray(insns)
    for slot in descriptors:
        start = slot * SLOT_SIZE + _IMM.start
        stable[start : start + 4] = bytes(4)
    identity = (program.name, program.prog_type, program.attach_type)
    return *identity, bytes(stable), program.image[1:]


def _constants(insns: bytes, slots: Sequence[int]) -> tuple[bytes, ...]:
    """Return the values of the maps of constants, by which the verifier decides what is dead."""
    starts = [slot * SLOT_SIZE + _IMM.start for slot in slots]
    descriptors = dict.fromkeys(
        int.from_bytes(insns[start : start + 4], sys.byteorder) for start in starts
    )
    found = []
    for fd in descriptors:
        info = bpf.object_info("inspect map of constants", fd, uapi.MapInfo())
        if info.map_flags & _BPF_F_RDONLY_PROG:
            key, value = ctypes.c_uint32(), ctypes.create_string_buffer(info.value_size)
            attr = uapi.MapElemAttr(
                map_fd=fd, key=ctypes.addressof(key), value=ctypes.addressof(value)
            )
            bpf.call_checked("read map of constants", uapi.Cmd.MAP_LOOKUP_ELEM, attr)
            found.append(value.raw)
    return tuple(found)
