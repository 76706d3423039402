"""BPF objects that the tests compile for themselves, from tests/guest/bpf/.

``python -m tests.objects`` compiles them all; guests then find them, and need not run clang
themselves.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_SOURCES = Path(__file__).resolve().parent / "guest" / "bpf"
_BUILD = _ROOT / "build" / "tests"
_FLAGS = ["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]


def compiled(name: str, *defines: str) -> Path:
    """Return the object of ``<name>.bpf.c``, compiled unless its like is there already."""
    source = _SOURCES / f"{name}.bpf.c"
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    command = ["clang", *_FLAGS, "-idirafter", f"/usr/include/{multiarch}"]
    command += [f"-D{define}" for define in defines]
    digest = hashlib.sha256(source.read_bytes() + repr(command).encode()).hexdigest()[:12]
    target = _BUILD / f"{name}-{digest}.bpf.o"
    if not target.exists():
        _BUILD.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        subprocess.run([*command, "-c", str(source), "-o", str(partial)], check=True, timeout=300)
        partial.rename(target)
    return target


if __name__ == "__main__":
    for path in sorted(_SOURCES.glob("*.bpf.c")):
        sys.stdout.write(f"{compiled(path.name.removesuffix('.bpf.c'))}\n")
