"""BPF objects that the tests compile for themselves, from tests/guest/bpf/.

``python -m tests.objects`` compiles them all; guests then find them, and need not run clang
themselves. ``python -m tests.objects bpfeb`` compiles them for big-endian machines, too, and a
kernel's name, ``6.12/arm64``, has the fuzzer compiled for its guests.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_SOURCES = Path(__file__).resolve().parent / "guest" / "bpf"
_HEADERS = Path("/usr/include")
_BUILD = _ROOT / "build" / "tests"
#: What clang compiles for: machines of this one's byte order.
TARGET = "bpf" if sys.byteorder == "little" else "bpfeb"
_SUFFIX = "bpf.o" if TARGET == "bpf" else "bpfeb.o"
#: The programs under test, as ``make bpf`` builds them for this machine's byte order.
HOOK = _ROOT / "bpf" / "build" / f"hook.{_SUFFIX}"
MESH = _ROOT / "bpf" / "build" / f"mesh.{_SUFFIX}"
# Whose registers the macros of <bpf/bpf_tracing.h> name, by machine; x86-64's where none is here.
_REGISTERS = {"aarch64": ("__TARGET_ARCH_arm64",), "s390x": ("__TARGET_ARCH_s390",)}
FUZZER = sorted((_SOURCES.parent / "fuzz").glob("*.[ch]"))
#: For an object that has neither BTF nor DWARF.
WITHOUT_BTF = ["-g0"]
_FLAGS = ["-mcpu=v3", "-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]


def compiled(name: str, *defines: str, clang: str = "clang", flags: Sequence[str] = ()) -> Path:
    """Return the object of ``<name>.bpf.c``, compiled unless its like is there already."""
    source = _SOURCES / f"{name}.bpf.c"
    headers = b"".join(path.read_bytes() for path in sorted(_SOURCES.glob("*.h")))
    command = [
        clang,
        "-target",
        TARGET,
        *_FLAGS,
        *flags,
        "-idirafter",
        f"/usr/include/{_multiarch()}",
    ]
    command += [f"-D{define}" for define in defines]
    digest = hashlib.sha256(source.read_bytes() + headers + repr(command).encode()).hexdigest()[:12]
    target = _BUILD / f"{name}-{digest}.bpf.o"
    return _made(target, lambda partial: [*command, "-c", str(source), "-o", partial])


def of_registers(name: str, machine: str = "") -> Path:
    """Return the object of programs that read registers, for a machine as ``uname -m`` names it."""
    return compiled(name, *_REGISTERS.get(machine or platform.machine(), ()))


def of_source(source: Path, *flags: str) -> Path:
    """Return the object of a source outside of this directory, compiled as its own build does."""
    command = ["clang", "-target", TARGET, "-O2", "-g", *flags]
    command += ["-idirafter", f"/usr/include/{_multiarch()}"]
    digest = hashlib.sha256(source.read_bytes() + repr(command).encode()).hexdigest()[:12]
    target = _BUILD / f"{source.name.partition('.')[0]}-{digest}.bpf.o"
    return _made(target, lambda partial: [*command, "-c", str(source), "-o", partial])


def foreign() -> Path:
    """Return the object of the second hook."""
    return of_source(
        _ROOT / "tests" / "foreign" / "foreign.bpf.c", "-mcpu=v2", "-Wno-address-of-packed-member"
    )


def example(name: str) -> Path:
    """Return the object of an example."""
    return of_source(_ROOT / "examples" / "native" / f"{name}.bpf.c")


def _multiarch() -> str:
    """Return whose headers there are: the host's, in guests of other architectures as well."""
    # newer packages of kernel headers bring those of all machines; the C library's are of one
    there = {path.parent.name: path.parent for path in sorted(_HEADERS.glob("*-linux-gnu/asm"))}
    of_libc = [name for name, directory in there.items() if (directory / "gnu").is_dir()]
    own = sysconfig.get_config_var("MULTIARCH")
    return next(iter(of_libc), own if own in there else next(iter(there), ""))


def stripped(path: Path) -> Path:
    """Return a copy of an object without DWARF, as objects are shipped."""
    target = path.with_name(f"stripped-{path.name}")
    return _made(target, lambda partial: ["llvm-strip", "-g", "-o", partial, str(path)])


def linked(name: str, *parts: Path) -> Path:
    """Return one object linked of several by ``bpftool gen object``."""
    target = _BUILD / f"{name}-{'-'.join(part.name.split('.')[0] for part in parts)}.bpf.o"
    return _made(target, lambda partial: ["bpftool", "gen", "object", partial, *map(str, parts)])


def _made(target: Path, command: Callable[[str], list[str]]) -> Path:
    if not target.exists():
        _BUILD.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where Debian 12 has bpftool
        subprocess.run(
            command(str(partial)), check=True, timeout=300, env={**os.environ, "PATH": path}
        )
        partial.rename(target)
    return target


def fuzzer(machine: str) -> Path:
    """Return the module's fuzzer as a library for a machine as ``uname -m`` names it."""
    sources = b"".join(path.read_bytes() for path in FUZZER)
    return _BUILD / f"fuzzer-{machine}-{hashlib.sha256(sources).hexdigest()[:12]}.so"


def _compile_fuzzer(spec: str) -> None:
    from bpfunit.kernels import cross_libraries, resolve

    kernel = resolve(spec)
    target = fuzzer(kernel.architecture.name)
    if not target.exists():
        for library in cross_libraries(kernel, {"fuzzer": FUZZER}).values():
            partial = shutil.copy(library, target.with_suffix(".partial"))
            Path(partial).rename(target)


def linked_halves() -> Path:
    """Return the object that is linked of two."""
    return linked("whole", compiled("half"), compiled("half", "SECOND"))


#: The compilers of this machine: the one that is called clang, and those with a version.
CLANGS = [name for name in ("clang", *(f"clang-{n}" for n in range(14, 31))) if shutil.which(name)]
NEWEST = max(CLANGS, key=lambda name: int(name.partition("-")[2] or 0))


def _compile_all() -> None:
    for path in sorted(_SOURCES.glob("*.bpf.c")):
        sys.stdout.write(f"{compiled(path.name.removesuffix('.bpf.c'))}\n")
    for machine in _REGISTERS:
        of_registers("tracing", machine)
    for one in CLANGS:
        compiled("variables", clang=one)
        stripped(compiled("maptypes", clang=one))
    if int(NEWEST.partition("-")[2] or 0) >= 18:  # that knows the fourth version
        compiled("young", clang=NEWEST, flags=["-mcpu=v4"])
    stripped(compiled("sized"))
    if TARGET == "bpf":  # Debian's bpftool links for its own byte order alone
        linked_halves()
    compiled("pins", "OTHER")
    compiled("comforts", "TAILLESS")
    compiled("api", flags=WITHOUT_BTF)
    foreign()
    for path in sorted((_ROOT / "examples" / "native").glob("*.bpf.c")):
        example(path.name.removesuffix(".bpf.c"))
    compiled("oldstyle", "OLD_MAPS")
    compiled("oldstyle", "OLD_SECTION")


if __name__ == "__main__":
    _compile_all()
    for other in sys.argv[1:]:
        if "/" in other:
            _compile_fuzzer(other)
        else:
            TARGET = other
            _compile_all()
