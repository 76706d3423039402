"""Running inputs in this kernel: the program with records in it, and the loop in C around it."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from bpfunit import _native
from bpfunit._sys import bpf, libbpf, uapi
from bpfunit._sys.uapi import Cmd, MapType
from bpfunit.coverage.model import Model
from bpfunit.coverage.probes import Probe, ProbePoint
from bpfunit.coverage.recorder import CoverageRecorder
from bpfunit.errors import BpfunitError
from bpfunit.explorer import facts as kinds
from bpfunit.explorer import heads, packets
from bpfunit.explorer.facts import Facts, MapFacts
from bpfunit.explorer.recorder import RECORDS, Recorder, with_map_indices
from bpfunit.explorer.wire import Input, Outcome, Wire, batches
from bpfunit.objects.globals import data_sections
from bpfunit.objects.object import load
from bpfunit.progtypes.base import ProgramType
from bpfunit.progtypes.cgroup_device import DeviceContext, DeviceProgram
from bpfunit.progtypes.sk_lookup import SkLookup
from bpfunit.progtypes.sock_addr import BpfSockAddr, SockAddrProgram
from bpfunit.rewrite import ambient
from bpfunit.rewrite import insn as asm

_OUT_ROOM = 1 << 25
_SPARE = 1 << 18  # of _native/explore.c
_MAX_VALUE = 1 << 16
_MAX_KEY = 512
_CONSTANT = 1 << 7  # BPF_F_RDONLY_PROG
_DATA_ROOM = 256
_DELETABLE = {
    MapType.HASH,
    MapType.LRU_HASH,
    MapType.PERCPU_HASH,
    MapType.LRU_PERCPU_HASH,
    MapType.LPM_TRIE,
}


class ExploreError(BpfunitError):
    """A program that cannot be explored, with the reason."""


class Executor:
    """A program loaded with records, ready to run inputs; a context manager.

    Args:
        path: the object.
        program: the program's name.
        options: for :func:`bpfunit.load`.

    Raises:
        ExploreError: the program's type has no test run here, or there is no C compiler.
        RewriteError: the verifier refuses the program with records in it.
    """

    def __init__(
        self, path: str | os.PathLike[str], program: str, options: Mapping[str, Any] | None = None
    ) -> None:
        self._resources = ExitStack()
        self._function = _native.explore()
        if self._function is None:
            raise ExploreError(
                "explore: the loop around the program is C and no compiler was found; install cc,"
                " gcc or clang"
            )
        options = {"programs": [program], **(options or {})}
        try:
            model = _model(path, program, options)
            self._recorder = Recorder(program)
            self._resources.callback(self._recorder.close)
            with ambient.none():
                self.loaded = self._resources.enter_context(
                    load(path, instrument=[self._recorder], **options)
                )
            self._program = self.loaded.programs[program]
            if reason := self._program.program_type.unfit():
                raise ExploreError(f"explore {program}: {reason}")
            self._map_fds: list[int] = []
            self.ring_names: list[str] = []
            self._spy = -1
            self.facts = self._make_facts(model)
            self._wire = Wire(self.facts)
            self._job = self._make_job()
        except BaseException:
            self._resources.close()
            raise

    # -- what there is

    def _make_facts(self, model: Model | None) -> Facts:
        program, recorder = self._program, self._recorder
        of_type = program.program_type
        maps = list(self._maps())
        index_of = {fd: n for n, fd in enumerate(self._map_fds)}
        sites = with_map_indices(recorder.sites, index_of)
        head = self._head = heads.head_of(program)
        contexts = _contexts(program, of_type) if head is None else head.contexts()
        return Facts(
            program=program.name,
            section=program.section,
            kernel=os.uname().release,
            type=of_type.name,
            sites=sites,
            dead=_dead(model, sites),
            places=_places(model, sites),
            maps=maps,
            stubs=recorder.stubs,
            words=_words(program, of_type) if head is None else list(head.words),
            contexts=contexts,
            packets=packets.beginnings() if _takes_packet(of_type) else [],
            pairs=[] if head is None else head.pairs(),
            notes=recorder.notes,
        )

    def _maps(self) -> Any:
        """Yield what the program's maps are, and keep their descriptors in the same order."""
        obj, wanted = self.loaded, self._recorder.map_fds
        named = {one.fd: one for one in obj.maps.values()}
        sections = {
            libbpf.lib().bpf_map__fd(handle): (name, handle)
            for name, handle in data_sections(obj._handle)
        }
        cpus = int(libbpf.lib().libbpf_num_possible_cpus())
        for fd in wanted:
            info = bpf.object_info("inspect map", fd, uapi.MapInfo())
            size, stride = int(info.value_size), int(info.value_size)
            if info.type in uapi.PERCPU_MAPS:
                stride = (size + 7) // 8 * 8 * cpus
            if stride > _MAX_VALUE or info.key_size > _MAX_KEY:
                continue
            initial = b""
            if fd in sections:
                if info.map_flags & _CONSTANT:
                    continue
                kind, name = kinds.SECTION, sections[fd][0]
                initial = _only_value(fd, size)
            elif fd in named:
                name = named[fd].name
                found = _kind(int(info.type))
                if found is None:
                    continue
                kind = found
            else:
                continue
            self._map_fds.append(fd)
            yield MapFacts(
                name,
                kind,
                int(info.type),
                int(info.key_size),
                size,
                stride,
                int(info.max_entries),
                initial,
            )

    def _make_job(self) -> Any:
        facts, recorder = self.facts, self._recorder
        self._keep: list[Any] = []
        maps = (_native.ExploredMap * (len(facts.maps) or 1))()
        for n, one in enumerate(facts.maps):
            initial = self._kept(one.initial) if one.initial else None
            maps[n] = _native.ExploredMap(
                self._map_fds[n], one.kind, one.key_size, one.stride, initial
            )
        if any(one.kind == kinds.PROGRAMS for one in facts.maps):
            self._spy = self._load_spy()
        sites = (_native.ExploredSite * (len(facts.sites) or 1))()
        for n, site in enumerate(facts.sites):
            is_key = site.kind == kinds.KEY
            has_b = site.kind == kinds.BRANCH and site.imm is None
            whole = -1
            if is_key and site.map >= 0 and site.key_size == facts.maps[site.map].key_size:
                whole = site.map
            sites[n] = _native.ExploredSite(not is_key, has_b, site.key_size, whole)
        listener = -1
        if any(one.kind == kinds.SOCKETS for one in facts.maps):
            listener = self._resources.enter_context(_listener()).fileno()
        rings = list(self._rings())
        ring_array = (_native.Ring * (len(rings) or 1))(*rings)
        default = bytearray(len(recorder.stub_memory.memory))
        order = facts.order
        for slot, stub in enumerate(facts.stubs):
            answer = int(stub.always).to_bytes(8, order) + stub.value.to_bytes(8, order)
            default[slot * 16 : slot * 16 + 16] = answer
        self._out = ctypes.create_string_buffer(max(_OUT_ROOM, 8 * (RECORDS * 64 + _SPARE)))
        of_type = self._program.program_type
        fields = of_type.socket_fields
        self._keep += [maps, sites, ring_array]
        return _native.Exploration(
            prog_fd=self._program.fd,
            spy_fd=self._spy,
            answer_size=of_type.answer_size,
            has_ctx_out=int(of_type.answers),
            data_room=_DATA_ROOM if facts.packets else 0,
            fd_offset=fields.fd if fields else -1,
            made_of_offset=fields.made_of if fields else -1,
            maps=len(facts.maps),
            rings=len(rings),
            sites=len(facts.sites),
            map=ctypes.addressof(maps),
            ring=ctypes.addressof(ring_array),
            site=ctypes.addressof(sites),
            head=_native.address_of(recorder.ring.memory),
            record_mask=RECORDS - 1,
            stub=_native.address_of(recorder.stub_memory.memory),
            stub_default=self._kept(bytes(default)),
            stub_size=16 * len(facts.stubs),
            out=ctypes.addressof(self._out),
            out_room=len(self._out),
            socket_fd=listener,
            socket_offset=-1 if self._head is None else heads.SOCK_AT,
            answer_head=of_type.headers[1],
            answer_shown=0 if self._head is None else self._head.shown,
        )

    def _kept(self, raw: bytes) -> int:
        buffer = ctypes.create_string_buffer(raw, len(raw))
        self._keep.append(buffer)
        return ctypes.addressof(buffer)

    def _rings(self) -> Any:
        """Map the ring buffers that the program writes, to read and to empty them."""
        page = mmap.PAGESIZE
        for one in self.loaded.maps.values():
            if one.type != MapType.RINGBUF or one.fd not in self._recorder.map_fds:
                continue
            consumer = mmap.mmap(one.fd, page)
            rest = mmap.mmap(one.fd, page + 2 * one.max_entries, prot=mmap.PROT_READ, offset=page)
            start = _native.address_of(rest)
            self.ring_names.append(one.name)
            self._keep += [consumer, rest]
            yield (_native.address_of(consumer), start, start + page, one.max_entries - 1)

    def _load_spy(self) -> int:
        """Load what stands for any program that could be in a program array."""
        code = asm.encode([asm.mov_imm(0, 1), asm.exit_()])
        program = self._program
        fd, log = bpf.prog_load("bpfunit_spy", program.type, program.attach_type, code)
        if fd < 0:
            raise ExploreError(f"explore {program.name}: a spy for tail calls: {log or fd}")
        self._resources.callback(os.close, fd)
        return fd

    # -- runs

    def execute(self, inputs: Sequence[Input]) -> list[Outcome]:
        """Run inputs, each from maps as they were at the load."""
        found: list[Outcome] = []
        for batch in batches(inputs, 256):
            for raw in self.run_bytes(self._wire.encode(batch)):
                found += self._wire.decode(raw)
        return found

    def run_bytes(self, encoded: bytes) -> list[bytes]:
        """Run inputs in the form of :class:`bpfunit.explorer.wire.Wire`; return their outcomes."""
        given = ctypes.create_string_buffer(encoded, len(encoded))
        job = self._job
        job.in_, job.in_size = ctypes.addressof(given), len(encoded)
        found, at = [], 0
        while at < len(encoded):
            reached = self._function(ctypes.byref(job), at)
            if reached == at:
                raise ExploreError("explore: an input of too many steps")
            found.append(ctypes.string_at(self._out, job.out_used))
            at = reached
        return found

    def close(self) -> None:
        """Unload everything."""
        self._resources.close()

    def __enter__(self) -> Executor:
        """Return self."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()


def _only_value(fd: int, size: int) -> bytes:
    key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(size)
    attr = uapi.MapElemAttr(map_fd=fd, key=ctypes.addressof(key), value=ctypes.addressof(value))
    bpf.call_checked("read data section", Cmd.MAP_LOOKUP_ELEM, attr)
    return value.raw


def _kind(map_type: int) -> int | None:
    if map_type in _DELETABLE:
        return kinds.DELETE
    if map_type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
        return kinds.ARRAY
    if map_type == MapType.REUSEPORT_SOCKARRAY:
        return kinds.GROUP
    if map_type in uapi.SOCKET_MAPS:
        return kinds.SOCKETS
    return {MapType.SK_STORAGE: kinds.STORAGE, MapType.PROG_ARRAY: kinds.PROGRAMS}.get(
        MapType(map_type) if map_type in set(MapType) else MapType.UNSPEC
    )


def _listener() -> socket.socket:
    """Return a listening socket, which any map of sockets takes."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def _takes_packet(of_type: ProgramType) -> bool:
    return of_type.name in packets.TYPES


def _contexts(program: Any, of_type: ProgramType) -> list[bytes]:
    """Return contexts to begin with: kinds of sockets are enumerated, not two free fields.

    A search that may choose any family, type and protocol has the kernel load modules for them.
    """
    if isinstance(program, SockAddrProgram):
        tcp_udp = [(socket.SOCK_STREAM, 6), (socket.SOCK_DGRAM, 17)]
        if program.hook.datagram:
            tcp_udp.reverse()
        return [bytes(program.craft(type=kind, proto=proto)) for kind, proto in tcp_udp]
    if _takes_packet(of_type):
        return [bytes(of_type.context_size) if of_type.name.startswith("sched") else b""]
    if of_type.name == "sk_lookup":
        found = []
        for family, proto in ((2, 6), (2, 17), (10, 6)):
            found.append(bytes(SkLookup(family=family, protocol=proto)))
        return found
    if isinstance(program, DeviceProgram):
        return [
            bytes(program.craft(f"{node} 1:3", access))
            for node in "cb"
            for access in ("r", "w", "rw", "m", "")
        ]
    return [bytes(of_type.context_size)]


def _words(program: Any, of_type: ProgramType) -> list[tuple[int, int]]:
    """Return offset and bytes of the parts of the context that an input may choose."""
    if isinstance(program, SockAddrProgram):
        fixed = {
            getattr(BpfSockAddr, name).offset
            for name in ("user_family", "family", "type", "protocol")
        }
        port = BpfSockAddr.user_port.offset  # 16 bits in 32
        words = [n for n in of_type.readable_words(program.attach_type) if n not in fixed]
        return [_half(n) if n == port else (n, 4) for n in words]
    context = of_type.context
    if context is None:
        return []
    if of_type.name == "sk_lookup":
        fixed = {SkLookup.family.offset, SkLookup.protocol.offset}
        halves = {  # 16 bits: the whole field, and in 32
            SkLookup.remote_port.offset: (SkLookup.remote_port.offset, 2),
            SkLookup.local_port.offset: _half(SkLookup.local_port.offset),
        }
        words = [n for n in of_type.readable_words(program.attach_type) if n not in fixed]
        return [halves.get(n, (n, 4)) for n in words]
    if isinstance(program, DeviceProgram):
        return [_half(DeviceContext.major.offset), _half(DeviceContext.minor.offset)]
    if not _takes_packet(of_type):
        return [(n, 4) for n in of_type.readable_words(program.attach_type)]
    if not of_type.name.startswith("sched"):
        return []
    names = ("mark", "priority", "cb")  # what convert___skb_to_skb takes, net/bpf/test_run.c
    fields = [getattr(context, name) for name in names]
    return [(n, 4) for field in fields for n in range(field.offset, field.offset + field.size, 4)]


def _half(offset: int) -> tuple[int, int]:
    """Return the half of a word that has the lower 16 bits of its number."""
    return offset if sys.byteorder == "little" else offset + 2, 2


def _model(path: str | os.PathLike[str], program: str, options: Mapping[str, Any]) -> Model | None:
    """Return the coverage model of the program as this kernel has it; None where it has none."""
    recorder = CoverageRecorder()
    try:
        with ambient.none(), load(path, instrument=[recorder], **options):
            found = [one for one in recorder.models() if one.program == program]
        return found[0] if found else None
    finally:
        recorder.close()


def _dead(model: Model | None, sites: Sequence[kinds.Site]) -> frozenset[tuple[int, bool]]:
    if model is None:
        return frozenset()
    found = set()
    for number, site in enumerate(sites):
        if site.kind != kinds.BRANCH:
            continue
        for kind, taken in ((ProbePoint.TAKEN, True), (ProbePoint.FALL, False)):
            probe = model.probe_numbers.get(Probe(kind, site.block))
            if probe in model.dead:
                found.add((number, taken))
    return frozenset(found)


def _places(
    model: Model | None, sites: Sequence[kinds.Site]
) -> dict[int, tuple[str, int, int, str]]:
    if model is None:
        return {}
    found = {}
    for number, site in enumerate(sites):
        block = model.blocks[site.block]
        at = block.end if site.kind == kinds.BRANCH else None
        at = at or (block.lines[-1] if block.lines else None)
        if at is not None:
            text = model.texts.get((at.file, at.line), "").strip()
            found[number] = (at.file, at.line, at.column, text)
    return found
