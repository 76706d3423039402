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
from dataclasses import dataclass, replace
from pathlib import Path

from bpfunit._arch import Architecture, native
from bpfunit.kernels._cache import building, locked
from bpfunit.kernels._progress import Task
from bpfunit.kernels._roots import bootstrap, root_dir
from bpfunit.kernels.catalogue import BuildRoot
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
        variables: further ones for make.
    """

    name: str
    compiler: str
    root: Path | None
    variables: tuple[str, ...] = ()

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
    if kernel.architecture != native():
        return _cross(kernel, task)
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


def _cross(kernel: Kernel, task: Task) -> Toolchain:
    """Return a root with a compiler for the kernel's architecture, which no host need have."""
    architecture = kernel.architecture
    if kernel.build_root is None:
        raise ModuleBuildError(
            f"build module for {kernel.release}: only kernels of the catalogue are built for "
            f"{architecture.debian} here; run the tests with the engine live (--bpf-engine live)"
        )
    spec = cross_root(kernel.build_root, architecture)
    try:
        root = build_root(spec, task)
    except KernelsError as error:
        raise ModuleBuildError(
            f"build module for {kernel.release}: the build root cannot be made: {error}"
        ) from error
    prefix = f"{architecture.triplet}-"
    variables = (f"ARCH={architecture.sources}", f"CROSS_COMPILE={prefix}")
    compiler = f"{prefix}{kernel.build_root.compiler}"
    return Toolchain(f"build root {root.name}", compiler, root, variables)


def cross_root(spec: BuildRoot, architecture: Architecture) -> BuildRoot:
    """Return the build root whose compiler makes code for another architecture."""
    return replace(
        spec,
        name=f"{spec.name}-{architecture.debian}",
        compiler=f"{spec.compiler}-{architecture.triplet.replace('_', '-')}",
        packages=(*spec.packages, f"libc6-dev-{architecture.debian}-cross"),
    )


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
    target = root_dir(f"{spec.name}-{stamp}")
    with locked(target):
        if target.is_dir():
            return target
        task.step(f"making the build root {spec.name}")
        with building(target) as directory:
            packages = [spec.compiler, *spec.packages]
            bootstrap(f"make build root {spec.name}", spec.suites, packages, native(), directory)
            # Unpacking runs no maintainer scripts, so the alternatives are not set.
            (directory / "usr/bin/awk").symlink_to("mawk")
            for mount_point in ("dev", "proc"):
                (directory / mount_point).mkdir(exist_ok=True)
    return target
