"""Where an object's types come from: its BTF, its DWARF, and the files that the user names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from bpfunit._sys import libbpf
from bpfunit.errors import BpfunitError, NotFoundError
from bpfunit.values import btfbytes
from bpfunit.values.btf import Types, raw_btf, types_of
from bpfunit.values.layout import BtfError, require_equal
from bpfunit.values.typefiles import compiled_types, dwarf_types

TypeSource = str | os.PathLike[str] | Types
_NO_TYPES = btfbytes.Writer().bytes()
_ELF, _C_SUFFIXES = b"\x7fELF", {".h", ".c"}

_session_files: list[tuple[Path, tuple[str, ...]]] = []


def use_for_session(files: Iterable[str | os.PathLike[str]], flags: Sequence[str] = ()) -> None:
    """Name files whose types every object of this process may need (``--bpf-types``).

    Args:
        files: as :func:`bpfunit.load_types` takes them; they replace those named before.
        flags: for clang.
    """
    _session_files[:] = [(Path(file), tuple(flags)) for file in files]


def named_types(given: TypeSource | Sequence[TypeSource] | None) -> tuple[Types, ...]:
    """Return the types of what one load names, and of what the session does.

    Raises:
        BtfError: a file has none, or clang refused it.
    """
    if given is None:
        given = ()
    one = isinstance(given, (str, os.PathLike, Types))
    sources: Any = (given,) if one else given
    own = [source if isinstance(source, Types) else load_types(source) for source in sources]
    return (*own, *(load_types(path, flags) for path, flags in _session_files))


class ObjectTypes(Types):
    """The types of one object, a name looked up in its BTF, its DWARF and the named files.

    Args:
        raw: the object's BTF, None when it has none.
        path: the object.
        named: types of files that the user names.
    """

    def __init__(self, raw: bytes | None, path: Path, named: tuple[Types, ...] = ()) -> None:
        super().__init__(raw or _NO_TYPES, path.name)
        self._path, self._named, self._has_btf = path, named, raw is not None
        self._found: dict[str, Any] = {}

    def find(self, name: str) -> Any | None:
        """Return the type of this C name, None when no source has it.

        Raises:
            BtfError: two sources have it and differ.
        """
        if name in self._found:
            return self._found[name]
        # an object's DWARF repeats its BTF, so it is parsed (slowly) for what the BTF lacks only
        first: tuple[str, Any] = (f"{self.source} (BTF)", super().find(name))
        if first[1] is None and (dwarf := dwarf_types(self._path)) is not None:
            first = (dwarf.source, dwarf.find(name))
        for types in self._named:
            other = types.find(name)
            if other is None:
                continue
            if first[1] is None:
                first = (types.source, other)
            else:
                require_equal(name, first, (types.source, other))
        self._found[name] = first[1]
        return first[1]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    def _missing(self, name: str) -> NotFoundError:
        dwarf = dwarf_types(self._path)
        if dwarf is None:
            debug = "has no DWARF (llvm-strip -g takes it off: load it unstripped)"
        else:
            debug = "has no such type in its DWARF either"
        btf = "its BTF keeps only what maps, signatures and globals refer to"
        if not self._has_btf:
            btf = "it has no BTF (compile it with clang -g)"
        searched = "".join(f", {types.source} lacks it" for types in self._named)
        return self._not_found(
            name,
            f"{btf}, and {self.source} {debug}{searched}; name a C header, an object or a BTF file"
            " that has the type: load(…, types=FILE), --bpf-types FILE, or bpf_types in"
            " pyproject.toml",
        )

    def __iter__(self) -> Iterator[str]:
        dwarf = dwarf_types(self._path)
        return iter(dict.fromkeys(chain(super().__iter__(), dwarf or (), *self._named)))

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *self]


def object_types(raw: bytes | None, path: Path, named: tuple[Types, ...] = ()) -> ObjectTypes:
    """Return the types of an object, made once per process: each test loads it afresh."""
    stat = path.stat()
    return _object_types(raw, path, stat.st_mtime_ns, stat.st_size, named)


@lru_cache(maxsize=64)
def _object_types(
    raw: bytes | None, path: Path, _mtime: int, _size: int, named: tuple[Types, ...]
) -> ObjectTypes:
    return ObjectTypes(raw, path, named)


# -- any file


def load_types(path: str | os.PathLike[str], flags: Sequence[str] = ()) -> Types:
    """Read the types of a file, no kernel needed.

    Args:
        path: a C header or source (``.h``, ``.c``: compiled by clang, every type kept), an object
            (its BTF and its DWARF), or a file of raw BTF.
        flags: for clang: include paths and macros.

    Raises:
        BtfError: the file has no types, or clang refused it.
    """
    file = Path(path).absolute()
    try:
        stat = file.stat()
        return _types_of_file(file, tuple(flags), stat.st_mtime_ns, stat.st_size, Path.cwd())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BtfError(f"read types of {file}: {reason}") from None


@lru_cache(maxsize=64)
def _types_of_file(
    file: Path, flags: tuple[str, ...], _mtime: int, _size: int, _directory: Path
) -> Types:
    """Read a file once per process: every load asks for the session's files."""
    if file.suffix in _C_SUFFIXES:
        return compiled_types(file, flags)
    with file.open("rb") as opened:
        start = opened.read(4)
    if start[:2] in (btfbytes.MAGIC.to_bytes(2, "little"), btfbytes.MAGIC.to_bytes(2, "big")):
        return types_of(file.read_bytes(), file.name)
    if start != _ELF:
        raise BtfError(
            f"read types of {file}: neither a C header or source (.h, .c), nor BTF,"
            " nor an object (compile it with clang -g -target bpf)"
        )
    return _elf_types(file)


def _elf_types(file: Path) -> Types:
    with libbpf.captured_log() as messages:
        try:
            handle = libbpf.lib().btf__parse(os.fsencode(file), None)
        except BpfunitError as error:
            if dwarf_types(file) is not None:
                return object_types(None, file)
            reason = messages[-1] if messages else str(error)
            raise BtfError(
                f"read BTF of {file}: {reason}; it has no DWARF either; compile it with clang -g"
                " -target bpf"
            ) from None
    try:
        return object_types(raw_btf(handle), file)
    finally:
        libbpf.lib().btf__free(handle)
