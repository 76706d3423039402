"""A guest of another architecture: interpreter and libraries of its own, the rest the host's.

The user space of that architecture lies over the host's files, so that what both have is the
guest's. The interpreter that tests run under may lie elsewhere (pyenv, ``/usr/local``), and a venv
knows the place: there the guest finds its own.
"""

from __future__ import annotations

import shlex
import sys
import sysconfig
from pathlib import Path

# Of the host's variables those that name files with its machine code.
WITHHELD = ("BPFUNIT_LIBBPF", "BPFUNIT_NATIVE", "LD_LIBRARY_PATH", "LD_PRELOAD")


def commands() -> str:
    """Return what init.sh does, in the guest's root, to put its Python in the place of the host's.

    Lines of shell, run by BusyBox before anything else of the root is used.
    """
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    own_interpreter, own_library = f"/usr/bin/{version}", f"/usr/lib/{version}"
    interpreter = str(Path(sys.executable).resolve())
    library = str(Path(sysconfig.get_path("stdlib")).resolve())
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
