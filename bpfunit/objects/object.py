"""Objects: an ELF file of BPF programs and maps, loaded into this kernel with fresh maps."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bpfunit import _native, engines
from bpfunit._sys import libbpf, uapi
from bpfunit._sys.uapi import MapType
from bpfunit.errors import BpfunitError, NotFoundError, SyscallError
from bpfunit.objects import kconfig
from bpfunit.objects.globals import Globals, Sections, data_sections
from bpfunit.objects.initialisers import programs_in_arrays
from bpfunit.objects.maps import Map
from bpfunit.objects.queues import QueueMap
from bpfunit.objects.verifier import load_failure, open_failure
from bpfunit.progtypes.base import instrumentable_sections
from bpfunit.rewrite import ambient, callback
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.code import HearsOfEnds, Instrumentation
from bpfunit.runs.observation import Observation
from bpfunit.runs.program import Program
from bpfunit.tailcalls.tailcalls import CallTracer, ProgArray
from bpfunit.values.btf import Types, raw_btf
from bpfunit.values.names import Names
from bpfunit.values.sources import ObjectTypes, TypeSource, named_types, object_types

_LOG_ROOM = (1 << 24) - 1  # the largest log that kernels before 5.2 take (BPF_LOG_BUF_SIZE)
_PRINTK_HELPERS = {6, 177}  # bpf_trace_printk, bpf_trace_vprintk
_PERF_OUTPUT_HELPERS = {25, 111, 121}  # bpf_{perf_event,skb,xdp}_output
_LISTED_SLOTS = 64
# libbpf's messages and the passes of a load go through one callback each, whoever loads
_loading = threading.RLock()

_LOAD_MAP_FD = asm.opcode_and_source(asm.LD_IMM64, asm.PSEUDO_MAP_FD)
_CALL_HELPER = asm.opcode_and_source(asm.JMP | asm.CALL)
_CALL_KERNEL = asm.opcode_and_source(asm.JMP | asm.CALL, asm.PSEUDO_KFUNC)


class Object:
    """A loaded object; use :func:`load`, and close it or use it as a context manager.

    Attributes:
        path: the file.
        types: its C types by name.
        maps: its maps by name.
        programs: its programs by name.
        globals: its global variables.
        helpers: the numbers of the kernel's helpers that its programs call.
        calls_kernel: whether they call functions of the kernel (kfuncs).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.observation = Observation(Path(path).name)
        self.helpers: set[int] = set()
        self.calls_kernel = False
        self._resources = ExitStack()
        self._handle = 0
        self._types: ObjectTypes | None = None
        self._map_ids: dict[str, tuple[int, int]] = {}
        self._log = mmap.mmap(-1, _LOG_ROOM)  # takes memory only as far as the kernel writes
        self._resources.callback(self._log.close)
        self._maps: dict[str, Any] = {}
        self._programs: dict[str, Program] = {}
        self._not_loaded: dict[str, str] = {}
        self._sections: Sections | None = None
        self._name()

    def _name(self) -> None:
        self.maps: Names[Any] = Names("map", self.path.name, self._maps)
        self.programs: Names[Any] = Names(
            "program", self.path.name, self._programs, self._not_loaded
        )

    # -- opening

    def _open(self, named: tuple[Types, ...], pin_root: str | os.PathLike[str] | None) -> None:
        view = (ctypes.c_char * _LOG_ROOM).from_buffer(self._log)
        opts = libbpf.OpenOpts(
            sz=ctypes.sizeof(libbpf.OpenOpts),
            kernel_log_buf=ctypes.addressof(view),
            kernel_log_size=_LOG_ROOM,
            pin_root_path=os.fsencode(pin_root) if pin_root is not None else None,
        )
        del view
        lib = libbpf.lib()
        with libbpf.captured_log() as messages:
            try:
                self._handle = lib.bpf_object__open_file(os.fsencode(self.path), ctypes.byref(opts))
            except SyscallError as error:
                raise open_failure(str(self.path), error.errno or 0, messages) from None
        self._resources.callback(lib.bpf_object__close, self._handle)
        btf = lib.bpf_object__btf(self._handle)
        self._types = object_types(raw_btf(btf) if btf else None, self.path, named)
        for handle in libbpf.each("bpf_object__next_map", self._handle):
            # noted now: libbpf forgets those of some types, and puts another object's in the place
            # of those of a map that was pinned
            ids = lib.bpf_map__btf_key_type_id(handle), lib.bpf_map__btf_value_type_id(handle)
            self._map_ids[lib.bpf_map__name(handle).decode()] = ids
            if pin_root is None and lib.bpf_map__pin_path(handle):
                lib.bpf_map__set_pin_path(handle, None)
        self._on_request = {
            lib.bpf_program__name(handle).decode()
            for handle in libbpf.each("bpf_object__next_program", self._handle)
            if not lib.bpf_program__autoload(handle)
        }
        self._sections = Sections(
            self.path.name,
            self._types,
            dict(data_sections(self._handle)),
        )
        self.globals = Globals(self._sections)
        if self._sections.asks_for_configuration:
            kconfig.provide()

    @property
    def types(self) -> Types:
        """The C types by name: of its BTF, its DWARF, and the files named by ``types``."""
        assert self._types is not None, "opened first"
        return self._types

    # -- loading

    def _select(self, programs: Sequence[str]) -> None:
        lib = libbpf.lib()
        handles = {
            lib.bpf_program__name(p).decode(): p
            for p in libbpf.each("bpf_object__next_program", self._handle)
        }
        for name in programs:
            if name not in handles:
                raise NotFoundError(f"load from {self.path.name}", name, sorted(handles))
        wanted = {*programs, *programs_in_arrays(self.path)}
        for name, handle in handles.items():
            lib.bpf_program__set_autoload(handle, name in wanted)

    def _resize(self, max_entries: Mapping[str, int]) -> None:
        lib = libbpf.lib()
        handles = {
            lib.bpf_map__name(m).decode(): m
            for m in libbpf.each("bpf_object__next_map", self._handle)
        }
        for name, count in max_entries.items():
            if name not in handles:
                raise NotFoundError(f"resize map of {self.path.name}", name, sorted(handles))
            lib.bpf_map__set_max_entries(handles[name], count)

    def _share(self, maps: Mapping[str, Map]) -> None:
        """Put maps of other objects in the place of this one's."""
        lib = libbpf.lib()
        handles = {
            lib.bpf_map__name(m).decode(): m
            for m in libbpf.each("bpf_object__next_map", self._handle)
        }
        for name, one in maps.items():
            if name not in handles:
                raise NotFoundError(f"share map with {self.path.name}", name, sorted(handles))
            handle = handles[name]
            declared = (
                lib.bpf_map__type(handle),
                lib.bpf_map__key_size(handle),
                lib.bpf_map__value_size(handle),
            )
            if declared != (found := (one.type, one.key_size, one.value_size)):
                raise BpfunitError(
                    f"share map {name} with {self.path.name}: it declares type, key size and value"
                    f" size {declared}, and the map that is given has {found}"
                )
            # by ``fd``, which says that somebody else may write to it from now on
            lib.bpf_map__reuse_fd(handle, one.fd)

    def _load(self, passes: Sequence[Instrumentation]) -> None:
        lib = libbpf.lib()
        with libbpf.captured_log(self.sections.extern_listener()) as messages:
            try:
                if passes:
                    with callback.instrumented(self._handle, passes):
                        lib.bpf_object__load(self._handle)
                    for step in passes:
                        if isinstance(step, HearsOfEnds):
                            self._resources.callback(step.hold())
                else:
                    lib.bpf_object__load(self._handle)
            except SyscallError as error:
                log = self._log[: self._log.find(b"\0")].decode(errors="replace")
                raise load_failure(str(self.path), error.errno or 0, log, messages) from None
        self.sections.loaded = True
        self.sections.require_chosen()

    def _collect(self, map_types: Mapping[str, Any], log_maps: Mapping[str, Any] | None) -> None:
        lib = libbpf.lib()
        maps = self._maps
        for handle in libbpf.each("bpf_object__next_map", self._handle):
            if lib.bpf_map__is_internal(handle) or lib.bpf_map__fd(handle) < 0:
                continue
            name = lib.bpf_map__name(handle).decode()
            key, value = self._map_types(name, handle, map_types.get(name))
            maps[name] = _map_class(lib.bpf_map__type(handle))(
                lib.bpf_map__fd(handle), name, key, value
            )
            maps[name].owner = self.observation
        for name in map_types:
            self.maps[name]  # a type for a map that does not exist is a mistake
        by_fd = {m.descriptor: m for m in maps.values()}
        for handle in libbpf.each("bpf_object__next_program", self._handle):
            name = lib.bpf_program__name(handle).decode()
            if lib.bpf_program__fd(handle) < 0:
                self._not_loaded[name] = _why_not_loaded(name, name in self._on_request)
                continue
            program = Program.of(
                lib.bpf_program__fd(handle),
                name,
                lib.bpf_program__expected_attach_type(handle),
                lib.bpf_program__section_name(handle).decode(),
                self.observation,
            )
            self._programs[name] = program
            self._relate(program, handle, by_fd)
        self._observe(list(maps.values()), log_maps)

    def _map_types(self, name: str, handle: int, given: Any) -> tuple[Any, Any]:
        known = [self.types.storage_by_id(i) if i else None for i in self._map_ids[name]]
        if libbpf.lib().bpf_map__type(handle) == MapType.STRUCT_OPS:
            known[1] = None  # the kernel's own structure around it is the value
        if given is not None:
            pair = given if isinstance(given, tuple) else (None, given)
            if len(pair) != 2:
                raise BpfunitError(
                    f"load {self.path.name}: map_types takes (key type, value type),"
                    f" found {given!r}"
                )
            for n, one in enumerate(pair):
                if one is not None:
                    known[n] = self.types[one] if isinstance(one, str) else one
        return known[0], known[1]

    def _relate(self, program: Program, handle: int, by_fd: Mapping[int, Any]) -> None:
        """Find which arrays a program tail-calls into, and whether it prints."""
        lib = libbpf.lib()
        size = lib.bpf_program__insn_cnt(handle) * asm.SLOT_SIZE
        code = ctypes.string_at(lib.bpf_program__insns(handle), size)
        loaded_fds, helpers, kfuncs = _scanned(code)
        for fd in loaded_fds:
            target = by_fd.get(fd)
            if isinstance(target, ProgArray):
                target.users.append(program.ref)
        self.helpers |= helpers
        self.calls_kernel = self.calls_kernel or bool(kfuncs)
        self._prints = self._prints or bool(helpers & _PRINTK_HELPERS)
        self._sends = self._sends or bool(helpers & _PERF_OUTPUT_HELPERS)

    _prints = _sends = _retired = False

    @property
    def prints(self) -> bool:
        """Whether its programs call ``bpf_printk``."""
        return self._prints

    def _observe(self, maps: list[Any], log_maps: Mapping[str, Any] | None) -> None:
        arrays = [m for m in maps if isinstance(m, ProgArray)]
        for array in arrays:
            for index in range(min(array.max_entries, _LISTED_SLOTS)):
                if raw := array.lookup(index):  # filled by the object itself (values = {…})
                    array.contents[index] = f"program id {int.from_bytes(raw, sys.byteorder)}"
        log_types: dict[str, Any] | None = None
        if log_maps is not None:
            log_types = {
                self.maps[name].name: self.types[one] if isinstance(one, str) else one
                for name, one in log_maps.items()
            }
        self.observation.watch(self._maps, log_types)
        if self._sends:
            self.observation.watch_perf_events()
        if self._prints:
            self.observation.watch_printk()

    # -- another test

    @property
    def is_open(self) -> bool:
        """Whether it is loaded, and this Python object is the one that stands for it."""
        return bool(self._handle)

    @property
    def sections(self) -> Sections:
        """The memory of its global variables."""
        assert self._sections is not None, "opened first"
        return self._sections

    def renewed(self) -> Object:
        """Return the same loaded object with new Python objects for all that it has.

        The old ones are dead then, as after :meth:`close`. What the maps hold is not touched.
        """
        other = object.__new__(Object)
        other.__dict__.update(self.__dict__)
        other._resources = self._resources.pop_all()
        other._maps = {name: one.renewed() for name, one in self._maps.items()}
        other._programs = {name: one.renewed() for name, one in self._programs.items()}
        other._name()
        other._sections = self.sections.renewed()
        other.globals = Globals(other._sections)
        other.observation.start_again(other._maps)
        self._handle, self._retired = 0, True
        return other

    # -- the end

    def close(self) -> None:
        """Unload programs and maps; their Python objects are dead then."""
        if self._retired:
            return  # another object stands for what is loaded
        for array in self._maps.values():
            for spy in getattr(array, "spies", ()):
                spy.close()
        self.observation.close()
        if self._sections is not None:
            self._sections.close()
        self._resources.close()
        for one in self._maps.values():
            one.close()
        for program in self._programs.values():
            program.let_go()
        self._handle = 0

    def __enter__(self) -> Object:
        """Return self."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        return f"<object {self.path.name}: {len(self.programs)} programs, {len(self.maps)} maps>"


def _scanned(code: bytes) -> tuple[set[int], set[int], set[int]]:
    """Return the descriptors that code loads, the helpers it calls, and the kfuncs."""
    # every test loads thousands of instructions
    if (extension := _native.extension()) is not None:
        fds, helpers, kfuncs = map(set, extension.scan(code))
        return fds, helpers, kfuncs
    words = memoryview(code).cast("Q")
    fds, helpers, kfuncs = (
        {asm.immediate(word) for word in words if word & asm.OPCODE_AND_SOURCE == kind}
        for kind in (_LOAD_MAP_FD, _CALL_HELPER, _CALL_KERNEL)
    )
    return fds, helpers, kfuncs


def _map_class(map_type: int) -> type[Map]:
    if map_type == MapType.PROG_ARRAY:
        return ProgArray
    return QueueMap if map_type in uapi.KEYLESS_MAPS else Map


def _why_not_loaded(name: str, on_request: bool) -> str:
    why = 'its SEC("?…") loads it on request only' if on_request else "it was not chosen"
    return f"{name} is in the object and was not loaded ({why}): load(programs=[{name!r}, …])"


def load(
    path: str | os.PathLike[str],
    *,
    globals: Mapping[str, Any] | None = None,
    map_types: Mapping[str, Any] | None = None,
    types: TypeSource | Sequence[TypeSource] | None = None,
    programs: Sequence[str] | None = None,
    max_entries: Mapping[str, int] | None = None,
    log_maps: Mapping[str, Any] | None = None,
    trace_tail_calls: bool = False,
    instrument: Sequence[Instrumentation] = (),
    engine: str | None = None,
    pin_root: str | os.PathLike[str] | None = None,
    maps: Mapping[str, Map] | None = None,
) -> Object:
    """Load a BPF object into the running kernel, with maps of its own.

    Args:
        path: the ELF file.
        globals: values of global variables, set before the load so that ``const volatile`` ones
            count.
        map_types: ``{map: (key type, value type)}`` by C name or ctypes type, for maps that
            declare sizes only.
        types: where to find types that the object's BTF and DWARF lack: a C header or source, an
            object, a BTF file, or :func:`bpfunit.load_types` of one with flags for clang; several
            in a list. ``--bpf-types`` adds to them.
        programs: load only these, and those that program arrays are declared with; by default all
            that the object marks for loading.
        max_entries: other sizes for maps, for example 1 to have one run full.
        log_maps: ``{ring buffer: record type}`` of the object's own log; by default ring buffers
            with "log" in their name, whose records are {``__u32 ret; char msg[]``}.
        trace_tail_calls: record every tail call (about 35 instructions in front of each).
        instrument: rewriting passes such as ``faults.stub(…)``, in order; tracing and coverage come
            after them.
        engine: "testrun", "live" or "both", by default the process's choice (``--bpf-engine``).
        pin_root: a directory of a BPF file system, made when it is not there, in which maps with
            ``LIBBPF_PIN_BY_NAME`` are pinned and found by later loads. Without it nothing is
            pinned and nothing found: each load has maps of its own.
        maps: ``{map: a map of another object}``: maps that both objects share, as programs of one
            system do that are built apart. Records in a shared ring buffer are seen by one of them.

    Raises:
        BpfunitError: a map of ``maps`` is of another type or size than the object declares.
        LoadError: the file cannot be opened or is no BPF object, or the kernel refused a map.
        VerifierError: the verifier refused a program; its last lines are in the message.
        NotFoundError: a name in the options does not exist; the message lists those that do.
        BtfError: a file of ``types`` has none, or two sources of one name differ.
        LibbpfMissingError: libbpf.so.1 is not installed.
    """
    all_passes: list[Instrumentation] = list(instrument)
    if engine is not None:
        engines.get(engine)  # the engine live wants to be there before the test's sockets
    obj = Object(path)
    obj.observation.engine = engine
    with _loading, ExitStack() as undo:
        undo.callback(obj.close)
        if trace_tail_calls:
            obj.observation.trace()
            all_passes.append(CallTracer(obj.observation.recorder))
        all_passes += ambient.passes()
        if all_passes:
            callback.install(instrumentable_sections())
        if pin_root is not None:
            Path(pin_root).mkdir(parents=True, exist_ok=True)
        obj._open(named_types(types), pin_root)
        for name, value in (globals or {}).items():
            obj.sections.write(name, value)
        if programs is not None:
            obj._select(programs)
        obj._resize(max_entries or {})
        obj._share(maps or {})
        obj._load(all_passes)
        obj._collect(map_types or {}, log_maps)
        undo.pop_all()
    return obj
