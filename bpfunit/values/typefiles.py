"""Types that cost seconds to make: of C headers and sources, and of DWARF.

A compiler's run and DWARF through pyelftools are kept as BTF in the cache, by what
it was made from, so that a guest finds what its host made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from bpfunit._paths import cache_dir
from bpfunit.values import dwarf
from bpfunit.values.btf import Types, types_of
from bpfunit.values.layout import BtfError

#: The host's directory of types, for guests, whose root has another home than the host's user.
DIRECTORY_VARIABLE = "BPFUNIT_TYPES"
_FORMAT = 1  # of the cached files; count up when the conversion changes
_COMPILERS = ("clang", *(f"clang-{version}" for version in range(30, 10, -1)))
_COMPILE_TIMEOUT_S = 300
_HEADER = 4  # bytes in front of a cached file's list of dependencies: its length


def directory() -> Path:
    """Return where types are cached."""
    return cache_dir() / "types"


def _cached(name: str) -> bytes | None:
    handed = os.environ.get(DIRECTORY_VARIABLE)
    for folder in {Path(handed) if handed else directory(), directory()}:
        try:
            return Path(folder, name).read_bytes()
        except OSError:
            continue
    return None


def _keep(name: str, content: bytes) -> None:
    try:
        directory().mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=directory())
    except OSError:
        return  # a cache that cannot be written: it is made again next time
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    Path(partial).replace(directory() / name)


# -- DWARF


def dwarf_types(path: Path) -> Types | None:
    """Return the types of an object's DWARF, None when it has none; parsed once per content.

    Raises:
        DwarfError: the DWARF is malformed.
    """
    stat = path.stat()
    return _dwarf_types(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=64)
def _dwarf_types(path: Path, _mtime: int, _size: int, _inode: int) -> Types | None:
    content = path.read_bytes()
    name = f"dwarf-{_FORMAT}-{hashlib.sha256(content).hexdigest()[:32]}.btf"
    raw = _cached(name)
    if raw is None:
        raw = dwarf.btf_from(content, str(path)) or b""
        _keep(name, raw)
    return types_of(raw, f"{path.name} (DWARF)") if raw else None


# -- C


def compiler() -> str:
    """Return the clang at hand: ``$CLANG``, ``clang``, or the newest ``clang-N``.

    Raises:
        BtfError: there is none.
    """
    asked = os.environ.get("CLANG")
    for name in [asked] if asked else _COMPILERS:
        if found := shutil.which(name):
            return found
    raise BtfError(f"compile types: no {asked or 'clang'} on PATH; install it (apt install clang)")


def compiled_types(path: Path, flags: Sequence[str] = ()) -> Types:
    """Return every type that a C header or source declares, those it includes among them.

    Args:
        path: the file; it has to compile alone, with what the flags give it.
        flags: for clang: ``-Iinclude``, ``-DNAME=1``, ``-include linux/bpf.h``.

    Raises:
        BtfError: there is no clang, or it refused the file; its messages are in the error.
    """
    resolved = path.resolve()
    key = repr((_FORMAT, str(resolved), list(flags), os.getcwd() if flags else ""))  # noqa: PTH109
    name = f"c-{hashlib.sha256(key.encode()).hexdigest()[:32]}.btf"
    kept = _cached(name)
    if kept is not None:
        length = int.from_bytes(kept[:_HEADER], "little")
        if _are_current(json.loads(kept[_HEADER : _HEADER + length])):
            return types_of(kept[_HEADER + length :], path.name)
    clang = compiler()
    raw, read = _compile(clang, resolved, flags)
    state = json.dumps(_state([clang, *read])).encode()
    _keep(name, len(state).to_bytes(_HEADER, "little") + state + raw)
    return types_of(raw, path.name)


def _state(files: Iterable[str]) -> list[tuple[str, int, int]]:
    stats = [(name, Path(name).stat()) for name in files]
    return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]


def _are_current(state: Sequence[Sequence[object]]) -> bool:
    try:
        return [list(one) for one in _state(str(name) for name, *_ in state)] == list(state)
    except OSError:
        return False


def _compile(clang: str, path: Path, flags: Sequence[str]) -> tuple[bytes, list[str]]:
    """Return the types as BTF, and the files that the compiler read."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    with tempfile.TemporaryDirectory(prefix="bpfunit-types-") as folder:
        made, rules = Path(folder, "types.o"), Path(folder, "types.d")
        command = [clang, "-target", "bpf", "-O2", "-g", "-fno-eliminate-unused-debug-types"]
        # a header warns about its own "#pragma once"; nobody runs the code
        command += ["-x", "c", "-std=gnu11", "-w", "-MD", "-MF", str(rules)]
        command += [*flags, "-idirafter", f"/usr/include/{multiarch}"]
        command += ["-c", str(path), "-o", str(made)]
        try:
            run = subprocess.run(command, capture_output=True, timeout=_COMPILE_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BtfError(f"compile types of {path}: {error}") from error
        if run.returncode:
            said = run.stderr.decode(errors="replace").strip()
            raise BtfError(
                f"compile types of {path}: clang refused it; what it needs goes into flags"
                f" (types_flags=, --bpf-types-flag: -Iinclude, -DNAME=1, -include FILE)\n{said}"
            )
        raw = dwarf.btf_from(made.read_bytes(), str(path))
        if raw is None:
            raise BtfError(f"compile types of {path}: it declares no type")
        return raw, _dependencies(rules.read_text())


def _dependencies(rules: str) -> list[str]:
    """Read the files out of a rule for make, in which a space in a name is escaped."""
    escaped = rules.partition(": ")[2].replace("\\\n", " ").replace("\\ ", "\0")
    return [str(Path(name.replace("\0", " ")).resolve()) for name in escaped.split()]
