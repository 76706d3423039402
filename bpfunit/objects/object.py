"""Objects: an ELF file of BPF programs and maps, loaded into this kernel with fresh maps."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bpfunit import engines
from bpfunit._sys import libbpf
from bpfunit._sys.uapi import MapType
from bpfunit.errors import BpfunitError, NotFoundError, SyscallError
from bpfunit.objects.maps import Map
from bpfunit.objects.verifier import LoadError, load_failure
from bpfunit.rewrite import ambient, callback
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.code import Instrumentation
from bpfunit.runs.observation import Session
from bpfunit.runs.program import Program
from bpfunit.tailcalls.tailcalls import CallTracer, ProgArray
from bpfunit.values import records
from bpfunit.values.btf import Types, Variable, raw_btf
from bpfunit.values.names import Names
from bpfunit.values.sources import ObjectTypes, TypeSource, named_types, object_types

_LOG_ROOM = (1 << 24) - 1  # the largest log that kernels before 5.2 take (BPF_LOG_BUF_SIZE)
_PRINTK_HELPERS = {6, 177}  # bpf_trace_printk, bpf_trace_vprintk
_LISTED_SLOTS = 64
# libbpf's messages and the passes of a load go through one callback each, whoever loads
_loading = threading.RLock()

# an instruction as a little-endian word: opcode, registers (source above), offset, value
_OPCODE_AND_SOURCE = 0xF0FF
_LOAD_MAP_FD = asm.PSEUDO_MAP_FD << 12 | asm.LD_IMM64
_CALL_HELPER = asm.JMP | asm.CALL


class Globals:
    """The global variables of a loaded object: ``obj.globals.bpf_log_level = 3``."""

    _object: Object

    def __init__(self, owner: Object) -> None:
        object.__setattr__(self, "_object", owner)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._object._read_global(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._object._write_global(name, value)

    def __dir__(self) -> list[str]:
        return sorted(self._object._variables)


class Object:
    """A loaded object; use :func:`load`, and close it or use it as a context manager.

    Attributes:
        path: the file.
        types: its C types by name.
        maps: its maps by name.
        programs: its programs by name.
        globals: its global variables.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.session = Session(Path(path).name)
        self._resources = ExitStack()
        self._handle = 0
        self._loaded = False
        self._types: ObjectTypes | None = None
        self._variables: dict[str, Variable] = {}
        self._sections: dict[str, int] = {}
        self._mapped: dict[str, mmap.mmap] = {}
        self._log = mmap.mmap(-1, _LOG_ROOM)  # takes memory only as far as the kernel writes
        self._resources.callback(self._log.close)
        self.maps: Names[Any] = Names("map", self.path.name, {})
        self.programs: Names[Program] = Names("program", self.path.name, {})
        self.globals = Globals(self)

    # -- opening

    def _open(self, named: tuple[Types, ...] = ()) -> None:
        view = (ctypes.c_char * _LOG_ROOM).from_buffer(self._log)
        opts = libbpf.OpenOpts(
            sz=ctypes.sizeof(libbpf.OpenOpts),
            kernel_log_buf=ctypes.addressof(view),
            kernel_log_size=_LOG_ROOM,
        )
        del view
        lib = libbpf.lib()
        with libbpf.captured_log() as messages:
            try:
                self._handle = lib.bpf_object__open_file(os.fsencode(self.path), ctypes.byref(opts))
            except SyscallError as error:
                hint = "is it a BPF object (clang -target bpf -g -O2)?" if error.errno != 2 else ""
                raise LoadError(f"open {self.path}", error.errno or 0, messages, hint) from None
        self._resources.callback(lib.bpf_object__close, self._handle)
        btf = lib.bpf_object__btf(self._handle)
        self._types = object_types(raw_btf(btf) if btf else None, self.path, named)
        self._variables = self._types.variables()
        for handle in libbpf.each("bpf_object__next_map", self._handle):
            if lib.bpf_map__is_internal(handle):
                name = lib.bpf_map__name(handle).decode()
                self._sections[name[name.index(".") :]] = handle

    @property
    def types(self) -> Types:
        """The C types by name: of its BTF, its DWARF, and the files named by ``types``."""
        assert self._types is not None, "opened first"
        return self._types

    # -- globals

    def _place(self, name: str) -> tuple[Variable, Any]:
        if name not in self._variables:
            raise NotFoundError(
                f"look up global in {self.path.name}", name, sorted(self._variables)
            )
        variable = self._variables[name]
        return variable, self.types.storage_by_id(variable.type_id)

    def _section(self, variable: Variable) -> memoryview:
        """Return the memory of a variable's section: libbpf's until the load, then the map's."""
        handle = self._sections.get(variable.section)
        size = ctypes.c_size_t()
        lib = libbpf.lib()
        base = lib.bpf_map__initial_value(handle, ctypes.byref(size)) if handle else None
        if not base or variable.offset + variable.size > size.value:
            raise BpfunitError(f"reach section {variable.section} of {self.path.name}: not there")
        if not self._loaded or variable.section.startswith(".rodata"):
            return memoryview((ctypes.c_char * size.value).from_address(base)).cast("B")
        # libbpf maps it over its own copy for skeletons only (before 1.5)
        if variable.section not in self._mapped:
            pages = -(-size.value // mmap.PAGESIZE) * mmap.PAGESIZE
            mapped = mmap.mmap(lib.bpf_map__fd(handle), pages)
            self._mapped[variable.section] = mapped
            self._resources.callback(mapped.close)
        return memoryview(self._mapped[variable.section])

    def _read_global(self, name: str) -> Any:
        variable, ctype = self._place(name)
        with self._section(variable) as memory:
            end = variable.offset + ctypes.sizeof(ctype)
            return records.decode(ctype, bytes(memory[variable.offset : end]))

    def _write_global(self, name: str, value: Any) -> None:
        variable, ctype = self._place(name)
        if self._loaded and variable.section.startswith(".rodata"):
            raise BpfunitError(
                f"set global {name}: it is constant (const volatile) once loaded; give it to"
                f" load(globals={{{name!r}: …}})"
            )
        raw = records.encode(f"global {name}", ctype, value)
        with self._section(variable) as memory:
            memory[variable.offset : variable.offset + len(raw)] = raw

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
        for name, handle in handles.items():
            lib.bpf_program__set_autoload(handle, name in programs)

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

    def _load(self, passes: Sequence[Instrumentation]) -> None:
        lib = libbpf.lib()
        with libbpf.captured_log() as messages:
            try:
                if passes:
                    with callback.instrumented(self._handle, passes):
                        lib.bpf_object__load(self._handle)
                else:
                    lib.bpf_object__load(self._handle)
            except SyscallError as error:
                log = self._log[: self._log.find(b"\0")].decode(errors="replace")
                raise load_failure(str(self.path), error.errno or 0, log, messages) from None
        self._loaded = True

    def _collect(self, map_types: Mapping[str, Any], log_maps: Mapping[str, Any] | None) -> None:
        lib = libbpf.lib()
        maps = self.maps._items
        for handle in libbpf.each("bpf_object__next_map", self._handle):
            if lib.bpf_map__is_internal(handle) or lib.bpf_map__fd(handle) < 0:
                continue
            name = lib.bpf_map__name(handle).decode()
            key, value = self._map_types(handle, map_types.get(name))
            kind = ProgArray if lib.bpf_map__type(handle) == MapType.PROG_ARRAY else Map
            maps[name] = kind(lib.bpf_map__fd(handle), name, key, value)
        for name in map_types:
            self.maps[name]  # a type for a map that does not exist is a mistake
        by_fd = {m.fd: m for m in maps.values()}
        for handle in libbpf.each("bpf_object__next_program", self._handle):
            if lib.bpf_program__fd(handle) < 0:
                continue
            program = Program(
                lib.bpf_program__fd(handle),
                lib.bpf_program__name(handle).decode(),
                lib.bpf_program__expected_attach_type(handle),
                lib.bpf_program__section_name(handle).decode(),
                self.session,
            )
            self.programs._items[program.name] = program
            self._relate(program, handle, by_fd)
        self._observe(list(maps.values()), log_maps)

    def _map_types(self, handle: int, given: Any) -> tuple[Any, Any]:
        lib = libbpf.lib()
        ids = (lib.bpf_map__btf_key_type_id(handle), lib.bpf_map__btf_value_type_id(handle))
        known = [self.types.storage_by_id(i) if i else None for i in ids]
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
        # every test loads thousands of instructions: only the words that matter are looked into
        words = memoryview(code).cast("Q")
        loaded_fds = {word >> 32 for word in words if word & _OPCODE_AND_SOURCE == _LOAD_MAP_FD}
        helpers = {word >> 32 for word in words if word & _OPCODE_AND_SOURCE == _CALL_HELPER}
        for fd in loaded_fds:
            target = by_fd.get(fd)
            if isinstance(target, ProgArray):
                target.users.append(program)
        self._prints = self._prints or bool(helpers & _PRINTK_HELPERS)

    _prints = False

    def _observe(self, maps: list[Any], log_maps: Mapping[str, Any] | None) -> None:
        arrays = [m for m in maps if isinstance(m, ProgArray)]
        for array in arrays:
            for index in range(min(array.max_entries, _LISTED_SLOTS)):
                if raw := array.lookup(index):  # filled by the object itself (values = {…})
                    array.contents[index] = f"program id {int.from_bytes(raw, 'little')}"
        log_types: dict[str, Any] | None = None
        if log_maps is not None:
            log_types = {
                self.maps[name].name: self.types[one] if isinstance(one, str) else one
                for name, one in log_maps.items()
            }
        self.session.watch(self.maps._items, log_types)
        if self._prints:
            self.session.watch_printk()

    # -- the end

    def close(self) -> None:
        """Unload programs and maps; their Python objects are dead then."""
        for array in self.maps.values():
            for spy in getattr(array, "spies", ()):
                spy.close()
        self.session.close()
        self._resources.close()
        for one in self.maps.values():
            one.close()
        for program in self.programs.values():
            program.fd = -1  # the number may be someone else's by now
        self._handle = 0

    def __enter__(self) -> Object:
        """Return self."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        return f"<object {self.path.name}: {len(self.programs)} programs, {len(self.maps)} maps>"


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
        programs: load only these; by default all that the object marks for loading.
        max_entries: other sizes for maps, for example 1 to have one run full.
        log_maps: ``{ring buffer: record type}`` of the object's own log; by default ring buffers
            with "log" in their name, whose records are {``__u32 ret; char msg[]``}.
        trace_tail_calls: record every tail call (about 35 instructions in front of each).
        instrument: rewriting passes such as ``faults.stub(…)``, in order; tracing and coverage come
            after them.
        engine: "testrun" or "connect", by default the process's choice (``--bpf-engine``).

    Raises:
        LoadError: the file cannot be opened or is no BPF object, or the kernel refused a map.
        VerifierError: the verifier refused a program; its last lines are in the message.
        NotFoundError: a name in the options does not exist; the message lists those that do.
        BtfError: a file of ``types`` has none, or two sources of one name differ.
        LibbpfMissingError: libbpf.so.1 is not installed.
    """
    all_passes: list[Instrumentation] = list(instrument)
    if engine is not None:
        engines.get(engine)  # the connect engine wants to be there before the test's sockets
    obj = Object(path)
    obj.session.engine = engine
    with _loading, ExitStack() as undo:
        undo.callback(obj.close)
        if trace_tail_calls:
            all_passes.append(CallTracer(obj.session.recorder()))
        all_passes += ambient.passes()
        if all_passes:
            callback.install()
        obj._open(named_types(types))
        for name, value in (globals or {}).items():
            obj._write_global(name, value)
        if programs is not None:
            obj._select(programs)
        obj._resize(max_entries or {})
        obj._load(all_passes)
        obj._collect(map_types or {}, log_maps)
        undo.pop_all()
    return obj


Loader = Callable[..., Object]
