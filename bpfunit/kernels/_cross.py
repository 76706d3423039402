"""Shared libraries for guests of another architecture, compiled here and kept in the cache."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bpfunit._paths import cache_dir
from bpfunit.kernels._cache import locked
from bpfunit.kernels._kmod import run_build
from bpfunit.kernels._progress import Reporter
from bpfunit.kernels._toolchain import choose
from bpfunit.kernels.errors import KernelsError
from bpfunit.kernels.kernel import Kernel


def cross_library(kernel: Kernel, sources: Sequence[Path]) -> Path | None:
    """Return a library of C sources for the guests of a kernel of another architecture.

    It is compiled by the compiler of the kernel's build root, and takes what it calls of the C
    library from the process that loads it.

    Args:
        kernel: the kernel.
        sources: C files that need the C library's and the kernel's headers alone.

    Returns:
        The library, None where the compiler cannot be had or run.
    """
    if kernel.headers is None:
        return None
    triplet = kernel.architecture.triplet
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    target = cache_dir() / "native" / f"loops-{kernel.architecture.name}-{digest}.so"
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
        command += ["-o", str(work / "library.so"), *map(str, copies)]
        log = target.with_suffix(".log")
        if run_build(toolchain.command(command, [work]), log, f"library for {triplet}") != 0:
            return None
        shutil.move(work / "library.so", target)
    return target
