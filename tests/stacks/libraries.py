"""The libbpf of every Debian suite, beside each other in the cache; the system's stays as it is.

A suite's binary is used where this machine's C library carries it. One that needs a newer C library
is built here from the same suite's source package.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bpfunit._paths import cache_dir
from bpfunit.kernels._apt import Package, SuiteIndex, newest_first
from bpfunit.kernels._cache import building, locked
from bpfunit.kernels.catalogue import Suite, load_catalogue

# Oldest first. Where two suites have the same upstream version, the first is taken.
_SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports", "forky", "sid")
_PACKAGE = "libbpf1"


@dataclass(frozen=True)
class Library:
    """One libbpf.

    Attributes:
        version: the upstream version, ``"1.4.6"``.
        suite: where it comes from.
        path: the file.
        built: whether it was built here.
    """

    version: str
    suite: str
    path: Path
    built: bool

    def __str__(self) -> str:
        """Return version and origin."""
        return f"{self.version} {self.suite}" + (", built here" if self.built else "")


def libraries() -> list[Library]:
    """Return the libbpf of every suite, fetched where it is not cached, the oldest first.

    Raises:
        KernelsError: a suite or a package cannot be fetched.
        CalledProcessError: a library cannot be built.
    """
    catalogue = load_catalogue()
    found: dict[str, Library] = {}
    for name in _SUITES:
        suite = Suite(name, "debian", "main")
        index = SuiteIndex(catalogue, suite, cache_dir() / "stacks" / "apt", sources=True)
        index.refresh(max_age_s=86400)
        for package in newest_first(index.packages([_PACKAGE])):
            version = package.version.rpartition(":")[2].partition("-")[0]
            if version not in found:
                found[version] = _library(index, package, version)
    return list(found.values())


def _library(index: SuiteIndex, package: Package, version: str) -> Library:
    directory = cache_dir() / "stacks" / f"libbpf-{version}"
    with locked(directory):
        if not directory.is_dir():
            with building(directory) as made:
                index.download([package], made, lambda _fraction: None)
                (archive,) = made.glob("*.deb")
                subprocess.run(["dpkg-deb", "-x", archive, made], check=True)
                (packed,) = made.glob("usr/lib/*/libbpf.so.1")
                if not _loads(packed):
                    _build(index, package, made)
    (packed,) = directory.glob("usr/lib/*/libbpf.so.1")
    built = directory / "built" / "libbpf.so.1"
    path = built if built.exists() else packed
    return Library(version, index.suite.name, path.resolve(), built.exists())


def _loads(library: Path) -> bool:
    """Whether this machine's C library carries a shared library."""
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    command = [sys.executable, "-c", code, str(library)]
    return subprocess.run(command, capture_output=True).returncode == 0


def _build(index: SuiteIndex, package: Package, directory: Path) -> None:
    """Build libbpf from its source package into ``built``."""
    index.download_source(package, directory)
    (archive,) = directory.glob("*.orig.tar.*")
    source, target = directory / "source", directory / "built"
    source.mkdir()
    target.mkdir()
    unpack: list[str | Path] = ["tar", "-xf", archive, "--strip-components=1", "-C", source]
    subprocess.run(unpack, check=True)
    version = package.version.rpartition(":")[2].partition("-")[0]
    file = target / f"libbpf.so.{version}"
    subprocess.run(
        ["make", "-s", "-C", source / "src", "NO_PKG_CONFIG=1", f"OBJDIR={target}", file],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (target / "libbpf.so.1").symlink_to(file.name)
    if not _loads(file):
        raise RuntimeError(f"{file} was built here and does not load")
