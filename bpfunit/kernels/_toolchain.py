"""What builds a module: the host itself where its tools suffice, else a small root made on demand.

A kernel's headers come with compiled build tools (fixdep, modpost, objtool). They are run to find
out whether the host's C library carries them; no version is compared for that.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfunit._paths import cache_dir
from bpfunit.kernels._apt import (
    DEFAULT_ARCHITECTURE,
    configured_transport,
    keyring,
    mirrors,
    require_tools,
)
from bpfunit.kernels._cache import building, locked
from bpfunit.kernels._progress import Task
from bpfunit.kernels.catalogue import BuildRoot, load_catalogue
from bpfunit.kernels.errors import KernelsError, ModuleBuildError
from bpfunit.kernels.kernel import Kernel

_BUILD_TOOLS = ("scripts/basic/fixdep", "scripts/mod/modpost", "tools/objtool/objtool")
_LOADER_FAILS = re.compile(r"error while loading shared libraries: [^:]+|version `\S+' not found")
_GCC_VERSION = re.compile(r"^CONFIG_GCC_VERSION=(\d+)$", re.MULTILINE)

# Runs in namespaces of its own, so that nothing it mounts outlives it. The trees appear at their
# own paths, so that one command line serves the host and the root. objtool of 7.2 and later reads
# /proc; where a container forbids a new one, the outer one serves.
_ENTER = """\
set -e
root=$1; shift
while [ "$1" != -- ]; do
  mkdir -p "$root$1"
  mount --bind "$1" "$root$1"
  shift
done
shift
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Toolchain:
    """A way to run make.

    Attributes:
        name: for the build log.
        compiler: value of kbuild's ``CC``; "" leaves it to the tree.
        root: the build root, None for the host.
    """

    name: str
    compiler: str
    root: Path | None

    def command(self, arguments: Sequence[str], trees: Sequence[Path]) -> list[str]:
        """Return the command line that runs `arguments`, with `trees` visible at their paths."""
        if self.root is None:
            return list(arguments)
        namespaces = ["--mount", "--pid", "--fork", "--kill-child"]
        if os.geteuid() != 0:
            namespaces += ["--user", "--map-root-user"]
        enter = ["sh", "-c", _ENTER, "enter", str(self.root), *map(str, trees), "--"]
        return ["unshare", *namespaces, *enter, *arguments]


def choose(kernel: Kernel, task: Task) -> Toolchain:
    """Return what builds modules for a kernel; makes the build root where it is needed.

    Raises:
        ModuleBuildError: neither the host nor a root can do it; with the reasons.
    """
    assert kernel.headers is not None
    compiler, problem = _host_compiler(kernel)
    problem = problem or _host_problem(kernel.headers)
    if not problem:
        return Toolchain("the host", compiler, None)
    if kernel.build_root is None:
        raise ModuleBuildError(f"build module for {kernel.release}: {problem}")
    try:
        root = build_root(kernel.build_root, task)
    except KernelsError as error:
        raise ModuleBuildError(
            f"build module for {kernel.release}: the host does not suffice ({problem}), "
            f"and the build root cannot be made: {error}"
        ) from error
    return Toolchain(f"build root {root.name} ({problem})", kernel.build_root.compiler, root)


def _host_problem(headers: Path) -> str:
    """Say why the host cannot run a kernel's build tools; "" when it can."""
    if not shutil.which("make"):
        return "make is not installed"
    for name in _BUILD_TOOLS:
        tool = headers / name
        if not tool.exists():
            if "objtool" in name:
                continue  # not every configuration builds it
            return f"{headers} has no {name}; run make modules_prepare there"
        with tempfile.TemporaryDirectory() as empty:
            try:
                probe = subprocess.run(
                    [tool],
                    cwd=empty,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=20,
                )
            except OSError as error:
                return f"{name} does not run: {error.strerror}"
            except subprocess.TimeoutExpired:
                return f"{name} does not end"
        if found := _LOADER_FAILS.search(probe.stderr):
            return f"{name} does not run: {found[0]}"
    return ""


def _host_compiler(kernel: Kernel) -> tuple[str, str]:
    """Return the compiler to use on the host, and why there is none."""
    assert kernel.headers is not None
    if kernel.build_root is None:
        return "", ""  # built here: its own Makefiles know
    config = (kernel.headers / ".config").read_text(encoding="utf-8")
    found = _GCC_VERSION.search(config)
    needed = int(found[1]) // 10000 if found else 0
    for name in (f"gcc-{needed}", "gcc"):
        major = _gcc_major(name)
        if major >= needed:
            return name, ""
    have = _gcc_major("gcc")
    return "", f"the kernel was built with gcc {needed}, the host has {have or 'no gcc'}"


def _gcc_major(name: str) -> int:
    try:
        version = subprocess.run([name, "-dumpversion"], capture_output=True, text=True)
    except OSError:
        return 0
    digits = version.stdout.split(".")[0].strip()
    return int(digits) if digits.isdigit() else 0


def build_root(spec: BuildRoot, task: Task) -> Path:
    """Return the directory of a build root, unpacked first where it is not cached."""
    stamp = hashlib.sha256(repr(spec).encode()).hexdigest()[:8]
    target = cache_dir() / "roots" / f"{spec.name}-{stamp}"
    with locked(target):
        if target.is_dir():
            return target
        require_tools("make build root", mmdebstrap="mmdebstrap", tar="tar", unshare="util-linux")
        task.step(f"making the build root {spec.name}")
        with building(target) as directory:
            _bootstrap(spec, directory)
            # Unpacking runs no maintainer scripts, so the alternatives are not set.
            (directory / "usr/bin/awk").symlink_to("mawk")
            for mount_point in ("dev", "proc"):
                (directory / mount_point).mkdir(exist_ok=True)
    return target


def _bootstrap(spec: BuildRoot, directory: Path) -> None:
    catalogue = load_catalogue()
    key = keyring(catalogue)
    include = ",".join([spec.compiler, *spec.packages])
    complaints = []
    for mirror in mirrors(catalogue, spec.suites[0].archive):
        base = mirror.removesuffix(spec.suites[0].archive)
        sources = [
            f"deb [signed-by={key}] {base}{suite.archive} {suite.name} {suite.component}"
            for suite in spec.suites
        ]
        # chrootless and extract: no root privilege, no mounts, no maintainer scripts.
        command = ["mmdebstrap", "--quiet", "--mode=chrootless", "--variant=extract"]
        command += [
            "--format=tar",
            f"--include={include}",
            f"--architectures={DEFAULT_ARCHITECTURE}",
        ]
        command += [f"--aptopt={line.rstrip(';')}" for line in configured_transport().splitlines()]
        command += [spec.suites[0].name, "-", *sources]
        with tempfile.TemporaryFile() as words:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words) as maker:
                unpacker = subprocess.run(
                    ["tar", "-x", "--no-same-owner", "-C", str(directory)]
                    + [f"--exclude=./{path}" for path in ("dev/*", "usr/share/locale", "var/*")],
                    stdin=maker.stdout,
                    capture_output=True,
                    text=True,
                )
            if maker.returncode == 0 and unpacker.returncode == 0:
                return
            words.seek(0)
            lines = words.read().decode(errors="replace").splitlines()
            errors = [line for line in lines if line.startswith(("E:", "Err:"))]
            complaints.append(f"{mirror}: {'; '.join(errors) or unpacker.stderr.strip()}")
    raise KernelsError(f"make build root {spec.name}: {'; '.join(complaints)}")
