"""The global variables of an object, read and written before and after the load."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bpfunit._sys import bpf, libbpf, uapi
from bpfunit._sys.uapi import Cmd
from bpfunit.errors import BpfunitError, NotFoundError, SyscallError
from bpfunit.values import records
from bpfunit.values.btf import Types, Variable

_MMAPABLE = 1 << 10  # BPF_F_MMAPABLE
_ENOTSUPP = 524
_KCONFIG, _CONSTANTS = ".kconfig", ".rodata"


class Globals:
    """The global variables of a loaded object: ``obj.globals.bpf_log_level = 3``.

    A static variable of a function has the function's name in front, so it is written in brackets:
    ``obj.globals["account.calls"]``.
    """

    _section_memory: Sections

    def __init__(self, sections: Sections) -> None:
        object.__setattr__(self, "_section_memory", sections)

    def __getattr__(self, name: str) -> Any:
        return self._section_memory.read(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._section_memory.write(name, value)

    def __getitem__(self, name: str) -> Any:
        return self._section_memory.read(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._section_memory.write(name, value)

    def __dir__(self) -> list[str]:
        return sorted(self._section_memory.variables)


class Sections:
    """The data sections of one object.

    Args:
        source: the object's name, for errors.
        types: its types.
        handles: libbpf's maps of its data sections, by section (``.data``).
    """

    def __init__(
        self,
        source: str,
        types: Types,
        handles: Mapping[str, int],
    ) -> None:
        self._source, self._types, self._handles = source, types, handles
        self._closed = False
        # .maps, .ksyms and the like hold no variable of the program's
        self.variables = {
            name: found for name, found in types.variables.items() if found[0].section in handles
        }
        self.loaded = False
        self._mapped: dict[str, mmap.mmap | None] = {}
        self._chosen: dict[str, bytes] = {}  # of .kconfig, which libbpf fills as it loads

    def descriptors(self) -> dict[str, int]:
        """Return the maps that sections became with the load, by section: ``.data``."""
        lib = libbpf.lib()
        return {name: lib.bpf_map__fd(handle) for name, handle in self._handles.items()}

    @property
    def overrides_configuration(self) -> bool:
        """Whether values were chosen for externs that libbpf fills."""
        return bool(self._chosen)

    def close(self) -> None:
        """Unmap the sections; no variable can be read or written any more."""
        self._closed = True
        for mapped in self._mapped.values():
            if mapped is not None:
                mapped.close()
        self._mapped.clear()

    def renewed(self) -> Sections:
        """Return the same sections as another object, and be dead from now on."""
        other = object.__new__(Sections)
        other.__dict__.update(self.__dict__)
        other._mapped = {}
        self._mapped, mapped = {}, self._mapped
        self._closed = True
        for one in filter(None, mapped.values()):
            one.close()
        return other

    def _place(self, name: str) -> tuple[Variable, Any]:
        if self._closed:
            operation = f"look up global {name} of {self._source}"
            raise SyscallError(operation, errno.EBADF, "its object is closed")
        found = self.variables.get(name)
        if found is None:
            raise NotFoundError(f"look up global in {self._source}", name, sorted(self.variables))
        if len(found) > 1:
            positions = ", ".join(f"{one.section}+{one.offset}" for one in found)
            raise BpfunitError(
                f"look up global {name} of {self._source}: {len(found)} static variables have this"
                f" name ({positions}); rename all but one"
            )
        return found[0], self._types.storage_by_id(found[0].type_id)

    def read(self, name: str) -> Any:
        """Return a variable's value.

        Raises:
            NotFoundError: there is no such variable.
            BpfunitError: several have this name.
        """
        variable, ctype = self._place(name)
        end = variable.offset + ctypes.sizeof(ctype)
        if not self.loaded or variable.section.startswith((_CONSTANTS, _KCONFIG)):
            raw = self._initial(variable)[variable.offset : end]
        elif mapped := self._map(variable.section):
            raw = mapped[variable.offset : end]
        else:
            raw = self._element(variable.section)[variable.offset : end]
        return records.decode(ctype, raw)

    def write(self, name: str, value: Any) -> None:
        """Give a variable a value.

        Raises:
            NotFoundError: there is no such variable.
            BpfunitError: it is constant, the kernel lets nobody write it, or several have the name.
        """
        variable, ctype = self._place(name)
        constant = variable.section.startswith((_CONSTANTS, _KCONFIG))
        if self.loaded and constant:
            raise BpfunitError(
                f"set global {name}: it is constant (const volatile, or an extern) once loaded;"
                f" give it to load(globals={{{name!r}: …}})"
            )
        raw = records.encode(f"global {name}", ctype, value)
        if not self.loaded:
            self._initial(variable)  # says so where the section is not there
            base = libbpf.lib().bpf_map__initial_value(
                self._handles[variable.section], ctypes.byref(ctypes.c_size_t())
            )
            ctypes.memmove(base + variable.offset, raw, len(raw))
            if variable.section == _KCONFIG:
                self._chosen[name] = raw
        elif mapped := self._map(variable.section):
            mapped[variable.offset : variable.offset + len(raw)] = raw
        else:
            self._write_element(name, variable, raw)

    # -- memory

    def _initial(self, variable: Variable) -> bytes:
        """Return libbpf's copy of a section: what it holds before the load."""
        size = ctypes.c_size_t()
        base = libbpf.lib().bpf_map__initial_value(
            self._handles[variable.section], ctypes.byref(size)
        )
        if not base or variable.offset + variable.size > size.value:
            raise BpfunitError(f"reach section {variable.section} of {self._source}: not there")
        return ctypes.string_at(base, size.value)

    def _map(self, section: str) -> mmap.mmap | None:
        """Map a section of the loaded object; None where the kernel does not map it.

        libbpf asks for it only where a variable is not static; the kernel refuses (ENOTSUPP) where
        one holds kptrs, locks, lists, trees or timers.
        """
        if section not in self._mapped:
            lib, handle = libbpf.lib(), self._handles[section]
            self._mapped[section] = None
            if lib.bpf_map__map_flags(handle) & _MMAPABLE:
                pages = -(-lib.bpf_map__value_size(handle) // mmap.PAGESIZE) * mmap.PAGESIZE
                try:
                    mapped = mmap.mmap(lib.bpf_map__fd(handle), pages)
                except OSError as error:
                    if error.errno != _ENOTSUPP:
                        raise SyscallError(
                            f"map section {section} of {self._source}", error.errno or 0
                        ) from None
                else:
                    self._mapped[section] = mapped
        return self._mapped[section]

    def _element(self, section: str) -> bytes:
        """Return the one element of the array that is a section."""
        raw = ctypes.create_string_buffer(libbpf.lib().bpf_map__value_size(self._handles[section]))
        self._call("read", section, Cmd.MAP_LOOKUP_ELEM, raw)
        return raw.raw

    def _write_element(self, name: str, variable: Variable, raw: bytes) -> None:
        section = variable.section
        if libbpf.lib().bpf_map__map_flags(self._handles[section]) & _MMAPABLE:
            raise BpfunitError(
                f"set global {name}: its section {section} holds kptrs, locks, lists, trees or"
                " timers, which a write from user space would free; put the variable into another"
                " section, or give it to load(globals=…)"
            )
        whole = bytearray(self._element(section))
        whole[variable.offset : variable.offset + len(raw)] = raw
        buffer = ctypes.create_string_buffer(bytes(whole), len(whole))
        self._call("write", section, Cmd.MAP_UPDATE_ELEM, buffer)

    def _call(self, verb: str, section: str, command: Cmd, value: Any) -> None:
        key = ctypes.c_uint32(0)
        attr = uapi.MapElemAttr(
            map_fd=libbpf.lib().bpf_map__fd(self._handles[section]),
            key=ctypes.addressof(key),
            value=ctypes.addressof(value),
        )
        bpf.call_checked(f"{verb} section {section} of {self._source}", command, attr)

    # -- .kconfig

    @property
    def asks_for_configuration(self) -> bool:
        """Whether an extern wants a value of the kernel's configuration (``CONFIG_…``)."""
        return any(
            name.startswith("CONFIG_") and found[0].section == _KCONFIG
            for name, found in self.variables.items()
        )

    def extern_listener(self) -> Callable[[str], None] | None:
        """Return what has to hear libbpf's messages during the load, None for nothing.

        libbpf fills ``.kconfig`` as it loads and has no way to be told otherwise, but says each
        value in a message at the moment when a write still counts.
        """
        if not self._chosen:
            return None

        def listen(message: str) -> None:
            if "extern (" in message:
                self._choose()

        return listen

    def _choose(self) -> None:
        base = libbpf.lib().bpf_map__initial_value(
            self._handles[_KCONFIG], ctypes.byref(ctypes.c_size_t())
        )
        for name, raw in self._chosen.items():
            ctypes.memmove(base + self.variables[name][0].offset, raw, len(raw))

    def require_chosen(self) -> None:
        """Make sure that the program sees the values that were chosen for externs.

        Raises:
            BpfunitError: it does not; this libbpf sets them in another way.
        """
        if not self._chosen:
            return
        whole = self._element(_KCONFIG)
        for name, raw in self._chosen.items():
            offset = self.variables[name][0].offset
            if whole[offset : offset + len(raw)] != raw:
                version = libbpf.lib().libbpf_version_string().decode()
                raise BpfunitError(
                    f"set global {name}: libbpf {version} took the kernel's own value; use another"
                    " libbpf, or a const volatile variable"
                )


def data_sections(obj: int) -> Iterable[tuple[str, int]]:
    """Yield the data sections of an object that libbpf has open, and their maps."""
    lib = libbpf.lib()
    for handle in libbpf.each("bpf_object__next_map", obj):
        if lib.bpf_map__is_internal(handle):
            name = lib.bpf_map__name(handle).decode()
            yield name[name.index(".") :], handle
