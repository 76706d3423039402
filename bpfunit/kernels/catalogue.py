"""The kernel catalogue: `vm/kernels.toml` as frozen dataclasses, checked while it is read."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bpfunit._arch import ARCHITECTURES, Architecture, named, native
from bpfunit._paths import vm_dir
from bpfunit.kernels.errors import CatalogueError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SERIES = re.compile(r"\d+\.\d+")
_RELEASE = re.compile(r"\d+\.\d+\.\d+[A-Za-z0-9.+~-]*")
_FOREIGN = re.compile(r"(?P<kernel>\d+\.\d+[^/]*|all)/(?P<architecture>\w+)")


@dataclass(frozen=True)
class Suite:
    """One suite of a Debian archive.

    Attributes:
        name: the suite as it stands below ``dists/``, for example ``"trixie-backports"``.
        archive: the directory below the mirror, ``"debian"`` or ``"debian-security"``.
        component: almost always ``"main"``.
    """

    name: str
    archive: str
    component: str = "main"


@dataclass(frozen=True)
class BuildRoot:
    """The small root in which modules are built where the host's tools are too old.

    Attributes:
        name: its key in the catalogue.
        suites: the suites it is made from.
        compiler: package and command name of the compiler, for example ``"gcc-14"``.
        packages: what the kernels' build tools need beside the compiler.
    """

    name: str
    suites: tuple[Suite, ...]
    compiler: str
    packages: tuple[str, ...]


def split_spec(spec: str) -> tuple[str, Architecture]:
    """Return what stands before an architecture's name and that architecture.

    Args:
        spec: ``"6.12/arm64"``; without such a name the architecture is this machine's.
    """
    found = _FOREIGN.fullmatch(spec)
    architecture = named(found["architecture"]) if found else None
    return (found["kernel"], architecture) if found and architecture else (spec, native())


@dataclass(frozen=True)
class Entry:
    """One kernel of the catalogue.

    Attributes:
        series: ``"6.12"``.
        architecture: of its processor.
        flavour: ending of its packages' names, ``"amd64"``.
        release: the exact release that is pinned, as ``uname -r`` prints it.
        version: the Debian version of its packages.
        suites: where to look, first match wins.
        headers: whether the archive has the headers to build a module with.
        root: the build root for hosts that do not suffice; None without headers.
        refused: why this kernel cannot be run at all; "" for all that can.
    """

    series: str
    architecture: Architecture
    flavour: str
    release: str
    version: str
    suites: tuple[Suite, ...]
    headers: bool
    root: BuildRoot | None
    refused: str = ""

    @property
    def name(self) -> str:
        """What users type: ``"6.12"``, with the architecture where it is not this machine's."""
        return full_name(self.series, self.architecture)

    def answers_to(self, spec: str) -> bool:
        """Tell whether a user who typed `spec` means this kernel.

        Accepted are the series, the release with or without the flavour, and the upstream version,
        each followed by ``/`` and the architecture where that is not this machine's; a release with
        its flavour needs none.
        """
        upstream = self.version.partition("-")[0]
        names = {self.series, self.release, self.release.removesuffix(f"-{self.flavour}"), upstream}
        kernel, architecture = split_spec(spec)
        return spec == self.release or (kernel in names and architecture == self.architecture)


def full_name(kernel: str, architecture: Architecture) -> str:
    """Return a kernel's name as users type it: ``"6.12"``, ``"6.12/arm64"``."""
    return kernel if architecture == native() else f"{kernel}/{architecture.debian}"


@dataclass(frozen=True)
class Catalogue:
    """The whole of ``kernels.toml``.

    Attributes:
        path: the file it was read from.
        mirror: URI of the mirror used when the host's apt has none.
        keyring: the keyring that the archive's signatures are checked with.
        drop: directories below ``lib/modules/RELEASE/kernel`` that are not unpacked.
        entries: the kernels, in the file's order.
        emulators: suites that have QEMU, for architectures whose is not installed here.
        userlands: suites that have a Python for guests of other architectures, by its version.
        foreign_packages: what is unpacked of them.
    """

    path: Path
    mirror: str
    keyring: Path
    drop: tuple[str, ...]
    entries: tuple[Entry, ...]
    emulators: tuple[Suite, ...]
    userlands: Mapping[str, tuple[Suite, ...]]
    foreign_packages: tuple[str, ...]

    @property
    def usable(self) -> list[Entry]:
        """The kernels that ``"all"`` stands for: this machine's that are not refused."""
        return self.usable_on(native())

    def usable_on(self, architecture: Architecture) -> list[Entry]:
        """Return the kernels of an architecture that are not refused: ``"all/arm64"``."""
        ours = (entry for entry in self.entries if entry.architecture == architecture)
        return [entry for entry in ours if not entry.refused]

    def find(self, spec: str) -> Entry | None:
        """Return the entry that `spec` names, or None."""
        return next((entry for entry in self.entries if entry.answers_to(spec)), None)


def catalogue_path() -> Path:
    """Return the catalogue's file, ``$BPFUNIT_KERNELS`` or the one that comes with bpfunit."""
    explicit = os.environ.get("BPFUNIT_KERNELS")
    return Path(explicit) if explicit else vm_dir() / "kernels.toml"


def load_catalogue(path: Path | None = None) -> Catalogue:
    """Read and check the catalogue.

    Args:
        path: the file; `catalogue_path` by default.

    Raises:
        CatalogueError: with the file, the entry, what was expected and what was found.
    """
    path = path or catalogue_path()
    try:
        stamp = path.stat().st_mtime_ns
    except OSError as error:
        raise CatalogueError(f"read kernel catalogue: {path}: {error.strerror}") from error
    return _load(path, stamp)


@lru_cache(maxsize=8)
def _load(path: Path, _stamp: int) -> Catalogue:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogueError(f"read kernel catalogue: {path}: not valid TOML: {error}") from error
    archive = _Table(document, path, "").table("archive")
    top = _Table(document, path, "")
    suites = {
        name: Suite(name, table.string("archive"), table.string("component", "main"))
        for name, table in top.tables("suites").items()
    }
    roots = {
        name: BuildRoot(
            name, table.suites(suites), table.string("compiler"), table.strings("packages")
        )
        for name, table in top.tables("roots").items()
    }
    flavour = archive.string("flavour")
    entries = tuple(_entry(table, suites, roots, flavour) for table in top.array("kernel"))
    for i, entry in enumerate(entries):
        if entry.name in {other.name for other in entries[:i]}:
            raise top.error("kernel", f"series {entry.name!r} is there twice", "one entry each")
    foreign = _Table(document.get("foreign", {}), path, "foreign")
    packages = foreign.strings("packages") if foreign.data else ()
    userlands = foreign.tables("python") if foreign.data else {}
    catalogue = Catalogue(
        path,
        archive.string("mirror").rstrip("/"),
        Path(archive.string("keyring")),
        archive.strings("drop"),
        entries,
        foreign.suites(suites) if foreign.data else (),
        {version: table.suites(suites) for version, table in userlands.items()},
        packages,
    )
    top.refuse_leftovers("archive", "suites", "roots", "foreign", "kernel")
    foreign.refuse_leftovers("suites", "python", "packages")
    archive.refuse_leftovers("mirror", "keyring", "flavour", "drop")
    return catalogue


def _entry(
    table: _Table, suites: Mapping[str, Suite], roots: Mapping[str, BuildRoot], flavour: str
) -> Entry:
    series = table.string("series", pattern=_SERIES)
    table.where = f"kernel {series}"
    called = table.string("architecture", "amd64")
    architecture = named(called)
    if architecture is None:
        known = sorted(one.debian for one in ARCHITECTURES.values())
        raise table.error("architecture", repr(called), f"one of {known}")
    if "architecture" in table.data:
        table.where += f"/{called}"
        flavour = architecture.debian
    release = table.string("release", pattern=_RELEASE)
    if not release.startswith(f"{series}."):
        raise table.error("release", repr(release), f"a release of the series {series}")
    headers = table.boolean("headers")
    root = None
    if headers:
        name = table.string("root")
        if name not in roots:
            raise table.error("root", repr(name), f"one of {sorted(roots)}")
        root = roots[name]
    table.refuse_leftovers(
        *("series", "architecture", "release", "version", "suites", "headers", "root", "refused")
    )
    refused = table.string("refused", "")
    version = table.string("version")
    where = table.suites(suites)
    return Entry(series, architecture, flavour, release, version, where, headers, root, refused)


class _Table:
    """A TOML table whose values are asked for by name and type."""

    def __init__(self, data: Mapping[str, Any], path: Path, where: str) -> None:
        self.data = data
        self.path = path
        self.where = where

    def error(self, key: str, found: str, expected: str) -> CatalogueError:
        key_path = f"{self.where}: {key}" if self.where else key
        return CatalogueError(
            f"read kernel catalogue: {self.path}: {key_path}: expected {expected}, found {found}"
        )

    def _get(self, key: str, value_type: type, expected: str) -> Any:
        value = self.data.get(key)
        if not isinstance(value, value_type):
            raise self.error(key, "nothing" if value is None else repr(value), expected)
        return value

    def string(
        self, key: str, default: str | None = None, pattern: re.Pattern[str] | None = None
    ) -> str:
        if default is not None and key not in self.data:
            return default
        value: str = self._get(key, str, "a string")
        if not value or (pattern and not pattern.fullmatch(value)):
            shape = f"a string like {pattern.pattern}" if pattern else "a string that is not empty"
            raise self.error(key, repr(value), shape)
        return value

    def boolean(self, key: str) -> bool:
        value: bool = self._get(key, bool, "true or false")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        values = self._get(key, list, "a list of strings")
        if not all(isinstance(value, str) and value for value in values):
            raise self.error(key, repr(values), "a list of strings")
        return tuple(values)

    def suites(self, known: Mapping[str, Suite]) -> tuple[Suite, ...]:
        names = self.strings("suites")
        if not names or any(name not in known for name in names):
            raise self.error("suites", repr(list(names)), f"some of {sorted(known)}")
        return tuple(known[name] for name in names)

    def table(self, key: str) -> _Table:
        return _Table(self._get(key, dict, "a table"), self.path, key)

    def tables(self, key: str) -> dict[str, _Table]:
        parent = self.table(key)
        return {
            name: _Table(parent._get(name, dict, "a table"), self.path, f"{key}.{name}")
            for name in parent.data
        }

    def array(self, key: str) -> list[_Table]:
        items = self._get(key, list, "an array of tables, [[kernel]]")
        return [_Table(item, self.path, f"{key} number {i + 1}") for i, item in enumerate(items)]

    def refuse_leftovers(self, *known: str) -> None:
        """Refuse keys that nothing reads: most often a slip of the pen."""
        for key in self.data:
            if key not in known:
                raise self.error(key, "an unknown key", f"one of {sorted(known)}")
