"""The module's source under sparse, with the flags that the kernel's own build gives it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from bpfunit._paths import vm_dir
from bpfunit.kernels._kmod import copy_sources, make_command, run_build, trees_of
from bpfunit.kernels._progress import Reporter
from bpfunit.kernels._toolchain import choose
from bpfunit.kernels.errors import ModuleBuildError
from bpfunit.kernels.kernel import Kernel


def sparse(kernel: Kernel) -> list[str]:
    """Return what sparse says about the module's own files; an empty list is a clean module.

    Args:
        kernel: one whose headers the host's own tools can build for; build roots have no sparse.

    Raises:
        ModuleBuildError: no headers, no sparse on the host, or a build that fails.
    """
    if kernel.headers is None or shutil.which("sparse") is None:
        missing = "headers" if kernel.headers is None else "sparse on this machine"
        raise ModuleBuildError(f"check module for {kernel.release}: there are no {missing}")
    source = vm_dir() / "testrun"
    with Reporter() as reporter, tempfile.TemporaryDirectory(prefix="bpfunit-") as directory:
        toolchain = choose(kernel, reporter.task(kernel.release))
        if toolchain.root is not None:
            raise ModuleBuildError(
                f"check module for {kernel.release}: it builds in a root, which has no sparse; "
                "name a kernel that this host builds for"
            )
        work = Path(directory)
        copy_sources(source, work)
        log = work / "sparse.log"
        command = [*make_command(kernel, toolchain, work), "C=2"]
        command = toolchain.command(command, trees_of(kernel, work))
        code = run_build(command, log, f"{kernel.release}, sparse")
        lines = log.read_text(encoding="utf-8").splitlines()
        if code != 0:
            raise ModuleBuildError(f"check module for {kernel.release}: make fails", log)
        if not any("CHECK" in line for line in lines):
            raise ModuleBuildError(f"check module for {kernel.release}: sparse did not run")
        # Debian's headers themselves are not clean; a warning in them names their own path.
        own = f"{work}/"
        return [line.replace(own, f"{source}/") for line in lines if line.startswith(own)]
