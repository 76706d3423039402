"""A guest of another architecture: interpreter and libraries of its own, the rest the host's.

The user space of that architecture lies over the host's files, so that what both have is the
guest's. The interpreter that tests run under may lie elsewhere (pyenv, ``/usr/local``), and a venv
knows the place: there the guest finds its own.
"""

from __future__ import annotations

import shlex
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# Of the host's variables those that name files with its machine code.
WITHHELD = ("BPFUNIT_LIBBPF", "BPFUNIT_NATIVE", "LD_LIBRARY_PATH", "LD_PRELOAD")
_LOADERS_CACHE = Path("/etc/ld.so.cache")


def commands() -> str:
    """Return what init.sh does, in the guest's root, to put its Python in the place of the host's.

    Lines of shell, run by BusyBox before anything else of the root is used.
    """
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    own_interpreter, own_library = f"/usr/bin/{version}", f"/usr/lib/{version}"
    interpreter = str(Path(sys.executable).resolve())
    library = str(_library())
    lines = []
    if interpreter != own_interpreter:
        lines.append(_mount("bind", own_interpreter, interpreter))
    if library != own_library:
        packages = f"{library}/site-packages"  # of an interpreter without a venv
        if Path(packages).is_dir():
            kept = f"{own_library}/site-packages"
            lines += [f"/bin/busybox mkdir -p .{kept}", _mount("bind", packages, kept)]
        lines.append(_mount("rbind", own_library, library))
    return "".join(f"{line}\n" for line in lines)


def _mount(how: str, source: str, target: str) -> str:
    return f"/bin/busybox mount -o {how} {shlex.quote(f'.{source}')} {shlex.quote(f'.{target}')}"


def warm_files(
    listed: Iterable[str], root: Path, parts: Mapping[Path, str] | None = None
) -> dict[str, str]:
    """Return the files that a warm Python of a root needs, each with the place it has in the guest.

    Args:
        listed: what the interpreter here reads for the same.
        root: the other architecture's user space.
        parts: files with machine code of packages, each with its place.
    """
    parts = parts or {}
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    interpreter, library = Path(sys.executable).resolve(), _library()
    own = root / "usr/lib" / version
    found = {str(root / "usr/bin" / version): str(interpreter)}
    ours = [Path(path) for path in listed]
    standard = [path.relative_to(library) for path in ours if _is_standard(path, library)]
    # what only this interpreter reads: of its machine, or in C in the other one
    standard += [one.relative_to(own) for one in own.glob("_sysconfigdata*.py")]
    standard += [one.relative_to(own) for one in (own / "encodings").rglob("*.py*")]
    modules = sorted((own / "lib-dynload").glob("*.so"))
    standard += [one.relative_to(own) for one in modules]
    found.update((str(own / one), str(library / one)) for one in standard if (own / one).is_file())
    for one in _libraries([root / "usr/bin" / version, *modules, *parts], root):
        found[str(one)] = f"/{one.relative_to(root)}"
    for path in ours:
        if not _is_standard(path, library) and path != _LOADERS_CACHE and not _is_binary(path):
            found[str(path)] = str(path)
    found.update((str(part), place) for part, place in parts.items())
    return found


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib")).resolve()


def _is_standard(path: Path, library: Path) -> bool:
    packages = library / "site-packages"
    return path.is_relative_to(library) and not path.is_relative_to(packages)


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _libraries(files: Sequence[Path], root: Path) -> list[Path]:
    """Return the libraries whose names occur in files, and in each other, with the loader."""
    there = {one.name: one for one in root.glob("usr/lib/*-linux-gnu/*.so*")}
    loaders = list(root.glob("usr/lib*/ld*.so.*"))
    found: dict[str, Path] = {one.name: one for one in (there.get("libbpf.so.1"),) if one}
    waiting = [*files, *found.values(), *loaders]
    while waiting:
        data = waiting.pop().read_bytes()
        needed = {name: one for name, one in there.items() if name.encode() + b"\0" in data}
        waiting += [one for name, one in needed.items() if name not in found]
        found.update(needed)
    return [*found.values(), *loaders]
