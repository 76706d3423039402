"""Shared libraries for guests of another architecture, compiled here and kept in the cache."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bpfunit._paths import cache_dir
from bpfunit.kernels._cache import locked
from bpfunit.kernels._kmod import run_build
from bpfunit.kernels._progress import Reporter
from bpfunit.kernels._toolchain import choose
from bpfunit.kernels.errors import KernelsError
from bpfunit.kernels.kernel import Kernel


def cross_libraries(kernel: Kernel, libraries: Mapping[str, Sequence[Path]]) -> dict[str, Path]:
    """Return libraries of C sources for the guests of a kernel of another architecture.

    They are compiled by the compiler of the kernel's build root, and take what they call of the C
    library and of Python from the process that loads them.

    Args:
        kernel: the kernel.
        libraries: C files, and headers of theirs, of each by what its name starts with; the rest of
            the name are the architecture and the sources' hash. They need the headers of the C
            library and of the kernel alone.

    Returns:
        The libraries by the same names; none for this machine's own kernels, and where the compiler
        cannot be had or run.
    """
    if kernel.foreign is None or kernel.headers is None:
        return {}
    built = {name: _built(kernel, name, sources) for name, sources in libraries.items()}
    return {name: path for name, path in built.items() if path}


def _built(kernel: Kernel, name: str, sources: Sequence[Path]) -> Path | None:
    triplet = kernel.architecture.triplet
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    target = cache_dir() / "native" / f"{name}-{kernel.architecture.name}-{digest}.so"
    if target.is_file():
        return target
    with Reporter() as reporter, locked(target), tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        try:
            toolchain = choose(kernel, reporter.task(kernel.release))
        except KernelsError:
            return None
        copies = [Path(shutil.copy(source, work)) for source in sources]
        command = [toolchain.compiler, "-O2", "-shared", "-fPIC", "-nostdlib", "-Wall", "-Werror"]
        command += [
            *kernel.architecture.alone,
            "-o",
            str(work / "library.so"),
            *(str(one) for one in copies if one.suffix == ".c"),
        ]
        log = target.with_suffix(".log")
        if run_build(toolchain.command(command, [work]), log, f"library for {triplet}") != 0:
            return None
        shutil.move(work / "library.so", target)
    return target
