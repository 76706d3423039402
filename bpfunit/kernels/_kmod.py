"""The test-run module, built for a kernel out of tree and kept by kernel and source."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bpfunit._paths import cache_dir, vm_dir
from bpfunit.kernels._cache import building, locked
from bpfunit.kernels._parallel import side_by_side
from bpfunit.kernels._progress import Reporter, Task
from bpfunit.kernels._toolchain import Toolchain, choose
from bpfunit.kernels.errors import ModuleBuildError
from bpfunit.kernels.kernel import Kernel

RECIPE = "2"
"""Changed when the way of building changes, so that no module of the old way is used."""

BUILD_TIMEOUT_S = 600

_SUFFIXES = (".c", ".h", ".S")
_DECIDING = re.compile(r"\berror:|\bundefined!|^ERROR:|\*\*\*|No such file|Permission denied")
_SHOWN_LINES = 12


def module_for(
    kernel: Kernel, *, source: Path | None = None, reporter: Reporter | None = None
) -> Path:
    """Return the module built for a kernel; builds it where it is not cached.

    ``V=1`` in the environment shows the build as it runs.

    Args:
        kernel: one with headers.
        source: directory of the module's source; the test-run module by default.
        reporter: where progress goes; bars or lines on standard error by default.

    Raises:
        ModuleBuildError: no headers, no tools, or the compiler's errors; `log` has the rest.
    """
    if kernel.headers is None:
        raise ModuleBuildError(
            f"build module for {kernel.release}: {kernel.source} has the image without headers; "
            "run the tests with the engine live there (--bpf-engine live)"
        )
    source = source or vm_dir() / "testrun"
    target = cache_dir() / "modules" / f"{kernel.release}-{_key(kernel, source)}"
    module = target / f"{_module_name(source)}.ko"
    if module.is_file():
        return module
    with reporter or Reporter() as display, locked(target):
        if not module.is_file():
            task = display.task(kernel.release)
            _build(kernel, source, target, module.name, task)
            task.done("module is there")
    return module


def modules_for(kernels: Sequence[Kernel]) -> list[Path]:
    """Return the modules for several kernels with headers, built side by side.

    Raises:
        ModuleBuildError: for the first that fails; the others are built to the end.
    """
    with Reporter() as reporter:
        return side_by_side(
            lambda kernel: module_for(kernel, reporter=reporter), kernels, os.cpu_count() or 1
        )


def source_files(source: Path) -> list[Path]:
    """Return what a build of the module needs, relative to its source, at any depth.

    What a build by hand leaves there is none of it: kbuild writes C files named ``*.mod.c``.
    """
    files = [Path("Kbuild")] if (source / "Kbuild").exists() else []
    for file in source.rglob("*"):
        generated = file.name.startswith(".") or file.name.endswith(".mod.c")
        if file.suffix in _SUFFIXES and not generated and file.is_file():
            files.append(file.relative_to(source))
    return sorted(files)


def copy_sources(source: Path, work: Path) -> None:
    """Copy what a build of the module needs, directories kept."""
    for file in source_files(source):
        (work / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / file, work / file)


def _module_name(source: Path) -> str:
    kbuild = source / "Kbuild"
    try:
        found = re.search(r"^obj-m\s*[:+]?=\s*(\S+)\.o", kbuild.read_text(), re.MULTILINE)
    except OSError as error:
        raise ModuleBuildError(f"build module: {kbuild}: {error.strerror}") from error
    if not found:
        raise ModuleBuildError(f"build module: {kbuild}: expected a line `obj-m := NAME.o`")
    return found[1]


def _key(kernel: Kernel, source: Path) -> str:
    """Return a hash of all that decides the outcome: sources, recipe, the kernel's symbols."""
    assert kernel.headers is not None
    digest = hashlib.sha256(f"{RECIPE}\0{kernel.release}\0".encode())
    for file in source_files(source):
        digest.update(f"{file}\0".encode() + (source / file).read_bytes() + b"\0")
    # A tree that was built again has other symbols and a younger file; its release may be the same.
    for name in ("Module.symvers", "include/generated/autoconf.h"):
        try:
            status = (kernel.headers / name).stat()
        except OSError:
            continue
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:12]


def _build(kernel: Kernel, source: Path, target: Path, name: str, task: Task) -> None:
    assert kernel.headers is not None
    toolchain = choose(kernel, task)
    task.step("building the module")
    log = target.with_name(f"{target.name}.log")
    with building(target) as directory:
        work = directory / "work"
        work.mkdir()
        copy_sources(source, work)
        command = toolchain.command(make_command(kernel, toolchain, work), trees_of(kernel, work))
        code = run_build(command, log, f"{kernel.release}, {toolchain.name}")
        # The copy that was compiled is about to go; the reader wants the file it was copied from.
        text = log.read_text(encoding="utf-8").replace(f"{work}/", f"{source}/")
        log.write_text(text, encoding="utf-8")
        lines = text.splitlines()
        if code != 0 or not (work / name).is_file():
            deciding = [line for line in lines[1:] if _DECIDING.search(line)] or lines[-5:]
            shown = "\n".join(f"  {line}" for line in deciding[:_SHOWN_LINES])
            raise ModuleBuildError(f"build module for {kernel.release}: make fails:\n{shown}", log)
        (work / name).rename(directory / name)
        shutil.rmtree(work)


def trees_of(kernel: Kernel, work: Path) -> list[Path]:
    """Return what make has to see; for a catalogue kernel the directory with all its headers."""
    assert kernel.headers is not None
    return [kernel.headers if kernel.modules_root is None else kernel.modules_root, work]


def make_command(kernel: Kernel, toolchain: Toolchain, work: Path) -> list[str]:
    """Return the make command that builds the module from a copy of its source in ``work``."""
    command = ["make", "-C", str(kernel.headers), f"M={work}"]
    # No BTF of the module's own: nobody reads it, and writing it takes pahole. Since 7.2 kbuild
    # warns when pahole is another than the kernel's, although it is not run.
    command += ["CONFIG_DEBUG_INFO_BTF_MODULES=", "PAHOLE_VERSION=$(CONFIG_PAHOLE_VERSION)"]
    if toolchain.compiler:
        command.append(f"CC={toolchain.compiler}")
    return [*command, *toolchain.variables, "modules"]


def run_build(command: list[str], log: Path, title: str) -> int:
    """Run a build with its output in the log, and on the terminal where ``V=1`` asks for it."""
    verbose = os.environ.get("V", "") not in {"", "0"}
    # Variables such as ARCH, M or MAKEFLAGS of an outer make would change what this one does.
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": os.environ.get("HOME", "/"),
        **({"V": "1"} if verbose else {}),
    }
    with log.open("w", encoding="utf-8", errors="replace") as file:
        file.write(f"# {title}: {' '.join(command[-7:])}\n")
        file.flush()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if verbose else file,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            if process.stdout is not None:
                for line in process.stdout:
                    file.write(line)
                    sys.stderr.write(line)
            return process.wait(timeout=BUILD_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            file.write(f"ERROR: not done after {BUILD_TIMEOUT_S} s\n")
            return -1
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
