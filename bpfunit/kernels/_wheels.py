"""Compiled parts of installed packages, for guests of another architecture than this machine's.

A guest has the packages of the environment that pytest runs in. What of them is machine code for
this machine does not run there, and a package that cannot do without is not imported. For those
named here pip fetches the same version's wheel of the other architecture, of which the compiled
parts are kept; the rest of a package is here already.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from bpfunit._arch import Architecture
from bpfunit.kernels._cache import building, disk_usage, locked
from bpfunit.kernels._progress import Task, megabytes
from bpfunit.kernels._roots import root_dir

# What tests use inside a guest and cannot be without machine code.
_PACKAGES = ("hypothesis",)

# Wheels name the oldest C library that they run with: 2.17 is the first of arm64, 2.36 is that of
# the oldest Debian a guest has.
_C_LIBRARIES = range(17, 37)


def compiled_parts(architecture: Architecture, task: Task) -> dict[Path, str]:
    """Return files with an architecture's machine code, each with its place in a guest.

    What cannot be had is told and left out: not every run imports the package.
    """
    found: dict[Path, str] = {}
    for name in _PACKAGES:
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        if not _is_compiled(installed):
            continue
        parts = _fetched(installed, architecture, task)
        if parts is None:
            continue
        base = Path(str(installed.locate_file("")))
        found.update((one, str(base / one.relative_to(parts))) for one in parts.rglob("*.so"))
    return found


def _is_compiled(installed: Distribution) -> bool:
    return any(str(one).endswith(tuple(EXTENSION_SUFFIXES)) for one in installed.files or ())


def _fetched(installed: Distribution, architecture: Architecture, task: Task) -> Path | None:
    """Return the directory with a package's compiled parts; None where pip cannot get them."""
    name, tag = f"{installed.name}-{installed.version}", sys.implementation.cache_tag
    target = root_dir(f"wheel-{name}-{architecture.debian}-{tag}")
    with locked(target), tempfile.TemporaryDirectory() as place:
        if not target.is_dir():
            task.step(f"fetching the compiled parts of {name} for {architecture.debian}")
            why = _download(installed, architecture, Path(place))
            if why:
                task.done(
                    f"{installed.name} cannot be imported in {architecture.debian} guests: pip "
                    f"finds no wheel of {installed.version}: {why}"
                )
                return None
            with building(target) as directory:
                for wheel in Path(place).glob("*.whl"):
                    _unpack(wheel, directory)
            task.done(f"{name} for {architecture.debian} is there, {megabytes(disk_usage(target))}")
    return target


def _download(installed: Distribution, architecture: Architecture, place: Path) -> str:
    """Download a wheel, by the index that pip is configured for. Return why not, "" for done."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--retries=1", "--dest", str(place)]
    for minor in _C_LIBRARIES:
        command += ["--platform", f"manylinux_2_{minor}_{architecture.name}"]
    command += ["--platform", f"manylinux2014_{architecture.name}"]
    command += [f"{installed.name}=={installed.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    return lines[-1] if done.returncode else ""


def _unpack(wheel: Path, directory: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".so"):
                archive.extract(name, directory)
