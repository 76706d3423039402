"""What kernels of another architecture need here: an emulator, and a user space for their guests.

Both are packages of Debian's, fetched when such a kernel is first asked for, verified and unpacked
into the cache. Nothing of them is installed, and nothing is registered with this machine's kernel.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bpfunit._arch import Architecture, native
from bpfunit.kernels._cache import building, disk_usage, locked
from bpfunit.kernels._progress import Task, megabytes
from bpfunit.kernels._roots import bootstrap, root_dir
from bpfunit.kernels._wheels import compiled_parts
from bpfunit.kernels.catalogue import Suite, load_catalogue
from bpfunit.kernels.errors import KernelsError
from bpfunit.kernels.kernel import Foreign

_OLDEST_QEMU = 10  # the first whose emulation runs current kernels without damage
_WRAPPER = "emulator"  # in an emulator's root
# Runs a program of another root with the libraries and the loader of that root.
_RUN = """\
#!/bin/sh
root={root}
export QEMU_MODULE_DIR=$root/usr/lib/{triplet}/qemu
exec "$root/{loader}" --library-path "$root/usr/lib/{triplet}:$root/lib/{triplet}" \\
  "$root/usr/bin/{command}" -L "$root/usr/share/qemu" "$@"
"""
_OF_USR = ("bin", "sbin", "lib", "lib64")


def needs(architecture: Architecture, task: Task) -> Foreign | None:
    """Return what guests of an architecture run with, fetched first; None for this machine's own.

    Raises:
        KernelsError: it cannot be had, or the catalogue has nothing for this Python.
    """
    if architecture == native():
        return None
    return Foreign(
        emulator(architecture, task),
        userland(architecture, task),
        tuple(compiled_parts(architecture, task).items()),
    )


def installed_emulator(architecture: Architecture) -> Path | None:
    """Return the QEMU on the path, if it is there and young enough."""
    path = shutil.which(architecture.qemu)
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"version (\d+)\.", said)
    return Path(path) if found and int(found[1]) >= _OLDEST_QEMU else None


def known_emulator(architecture: Architecture) -> Path | None:
    """Return the QEMU for an architecture where nothing has to be fetched for it."""
    cached = emulator_dir(architecture) / _WRAPPER
    # os.access is False, not an error, for what lies in a cache closed to us
    return installed_emulator(architecture) or (cached if os.access(cached, os.X_OK) else None)


def emulator(architecture: Architecture, task: Task) -> Path:
    """Return the QEMU for an architecture: the installed one, else one in the cache."""
    if path := installed_emulator(architecture):
        return path
    suites = load_catalogue().emulators
    if not suites:
        raise KernelsError(
            f"get {architecture.qemu}: it is not on the path in version {_OLDEST_QEMU} or newer, "
            f"and the catalogue has no table [foreign]; install {architecture.qemu_package}"
        )
    target = emulator_dir(architecture)
    with locked(target):
        if not target.is_dir():
            task.step(f"fetching {architecture.qemu_package}, which is not installed here")
            with building(target) as directory:
                what = f"fetch {architecture.qemu_package}"
                bootstrap(what, suites, [architecture.qemu_package], native(), directory)
                _write_wrapper(directory, target, architecture)
            task.done(f"{architecture.qemu} is in the cache, {megabytes(disk_usage(target))}")
    return target / _WRAPPER


def _write_wrapper(directory: Path, target: Path, architecture: Architecture) -> None:
    loaders = sorted(directory.glob("usr/lib*/ld-linux-*.so.*"))
    if not loaders:
        raise KernelsError(f"fetch {architecture.qemu_package}: no loader among its packages")
    text = _RUN.format(
        root=target,
        triplet=native().triplet,
        loader=loaders[0].relative_to(directory),
        command=architecture.qemu,
    )
    (directory / _WRAPPER).write_text(text, encoding="utf-8")
    (directory / _WRAPPER).chmod(0o755)


def emulator_dir(architecture: Architecture) -> Path:
    """Return where the emulator of an architecture lies in the cache, there or not."""
    suites = load_catalogue().emulators
    return root_dir(f"emulator-{architecture.debian}-{_stamp(suites, [architecture.qemu_package])}")


def userland_dir(architecture: Architecture) -> Path:
    """Return where the user space for an architecture's guests lies in the cache, there or not.

    Raises:
        KernelsError: the catalogue knows no Debian with this machine's Python.
    """
    catalogue = load_catalogue()
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    suites = catalogue.userlands.get(version)
    if suites is None:
        known = " or ".join(catalogue.userlands) or "none"
        raise KernelsError(
            f"make a user space for {architecture.debian} guests: they need the Python that runs "
            f"here, {version}, and {catalogue.path} names a Debian for {known}; run the tests "
            "under such a Python"
        )
    stamp = _stamp(suites, catalogue.foreign_packages)
    return root_dir(f"guest-{architecture.debian}-python{version}-{stamp}")


def userland(architecture: Architecture, task: Task) -> Path:
    """Return the unpacked user space for an architecture's guests."""
    target = userland_dir(architecture)
    catalogue = load_catalogue()
    suites = catalogue.userlands[f"{sys.version_info[0]}.{sys.version_info[1]}"]
    with locked(target):
        if not target.is_dir():
            task.step(f"fetching Python and libraries for {architecture.debian} guests")
            with building(target) as directory:
                what = f"make a user space for {architecture.debian} guests"
                bootstrap(what, suites, catalogue.foreign_packages, architecture, directory)
                _keep_usr_alone(directory)
                _compile_library(directory)
            task.done(f"Python for {architecture.debian} is there, {megabytes(disk_usage(target))}")
    return target


def _keep_usr_alone(root: Path) -> None:
    """Bring all of a root below usr/, as it is on the machine whose files lie under it.

    A guest would see a directory /lib of this root in place of the link to usr/lib that it knows.
    """
    for name in _OF_USR:
        old = root / name
        if old.is_dir() and not old.is_symlink():
            _move_into(old, root / "usr" / name)
        if (root / "usr" / name).is_dir():
            old.unlink(missing_ok=True)
            old.symlink_to(f"usr/{name}")
    for other in root.iterdir():
        if other.name not in {"usr", *_OF_USR}:
            shutil.rmtree(other)


def _move_into(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for one in list(source.iterdir()):
        there = target / one.name
        if one.is_dir() and not one.is_symlink() and there.is_dir():
            _move_into(one, there)
        else:
            one.rename(there)
    source.rmdir()


def _compile_library(root: Path) -> None:
    """Write the bytecode of the Python in a root, whose own would take a guest seconds."""
    library = f"usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    command = [sys.executable, "-m", "compileall", "-q", "-s", str(root), "-p", "/"]
    done = subprocess.run([*command, str(root / library)], capture_output=True, text=True)
    if done.returncode != 0 or not (root / library / "os.py").is_file():
        raise KernelsError(f"compile {library} of {root}: {(done.stdout + done.stderr).strip()}")


def _stamp(suites: tuple[Suite, ...], packages: object) -> str:
    return hashlib.sha256(repr((suites, packages)).encode()).hexdigest()[:8]
