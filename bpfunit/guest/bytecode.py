"""Compiled Python for guests, whose own compiling would cost seconds under software emulation.

An editable checkout, or a host that sets ``PYTHONDONTWRITEBYTECODE``, has no ``__pycache__`` for
the guest to see. So the host compiles into its cache, and the guest finds the files where Python
looks for them. A file that changed since carries another time and size; Python passes it over.
"""

from __future__ import annotations

import py_compile
import struct
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from virtme.cpiowriter import CpioWriter

from bpfunit._paths import cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOT = "bytecode"  # below this directory of the initramfs lies the tree to lay over the host's


def archive(packages: Iterable[Path], parts: Mapping[Path, str] | None = None) -> bytes:
    """Return a cpio archive with the bytecode of all modules below some directories.

    Args:
        packages: directories; what has an up-to-date ``__pycache__`` beside it is left out.
        parts: other files to lay over the host's, each with its place.
    """
    with tempfile.TemporaryFile() as file:
        cpio = CpioWriter(file)
        made: set[Path] = set()
        _make_directory(cpio, Path(ROOT), made)
        for package in packages:
            for source in sorted(package.rglob("*.py")):
                target = source.parent / "__pycache__" / _cached_name(source)
                if _is_current(target, source):
                    continue
                compiled = _compiled(source)
                if compiled is None:
                    continue
                _make_directory(cpio, ROOT / target.parent.relative_to("/"), made)
                with compiled.open("rb") as body:
                    name = ROOT / target.relative_to("/")
                    cpio.write_file(name=str(name).encode(), body=body, mode=0o644)
        for part, place in (parts or {}).items():
            _make_directory(cpio, (ROOT / Path(place).relative_to("/")).parent, made)
            with part.open("rb") as body:
                name = ROOT / Path(place).relative_to("/")
                cpio.write_file(name=str(name).encode(), body=body, mode=0o755)
        cpio.write_trailer()
        file.seek(0)
        return file.read()


def _make_directory(cpio: CpioWriter, directory: Path, made: set[Path]) -> None:
    for one in [*reversed(directory.parents), directory]:
        if one != Path() and one not in made:
            made.add(one)
            cpio.mkdir(str(one).encode(), 0o755)


def _cached_name(source: Path) -> str:
    return f"{source.stem}.{sys.implementation.cache_tag}.pyc"


def _is_current(bytecode: Path, source: Path) -> bool:
    try:
        file: IO[bytes]
        with bytecode.open("rb") as file:
            header = file.read(16)
    except OSError:
        return False
    stat = source.stat()
    return len(header) == 16 and header[4:] == struct.pack(
        "<III", 0, int(stat.st_mtime) & 0xFFFFFFFF, stat.st_size & 0xFFFFFFFF
    )


def _compiled(source: Path) -> Path | None:
    """Return the cached bytecode of a module, None when it does not compile."""
    target = cache_dir() / ROOT / source.relative_to("/").parent / _cached_name(source)
    if not _is_current(target, source):
        try:
            py_compile.compile(str(source), cfile=str(target), doraise=True)
        except py_compile.PyCompileError:
            return None  # whoever imports it will say
    return target
