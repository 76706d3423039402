"""From a suite's index to an unpacked kernel that vng boots and modules are built against."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from bpfunit._arch import Architecture, native
from bpfunit._paths import cache_dir
from bpfunit.kernels._apt import Package, SuiteIndex, newest_first, require_tools
from bpfunit.kernels._cache import (
    FORMAT,
    Record,
    building,
    disk_usage,
    kernel_dir,
    load_record,
    locked,
)
from bpfunit.kernels._progress import Task, megabytes
from bpfunit.kernels.catalogue import Catalogue, Entry
from bpfunit.kernels.errors import FetchError

RECHECK_AGE_S = 60
"""An index older than this is fetched again before it is believed that a release is gone."""

# Debian's names: 5.10.0-46, 6.1.0-0.deb11.48, 6.12.90+deb12.1; not 6.1.0-47-rt or 6.1.0-47-cloud.
_IMAGE = r"linux-image-(\d+\.\d+\.\d+[^-]*(?:-\d[\w.+~]*)?-{flavour})"
# Since 6.19 an image package is empty and depends on linux-base-, linux-binary- and linux-modules-.
_OF_A_KERNEL = re.compile(r"linux-(base|binary|modules|headers|kbuild)-\d")
# Holds modules.order and modules.builtin. The archive drops it while it keeps the signed image.
_OPTIONAL = re.compile(r"linux-base-\d")
# Compiled tools of the build, which run here whatever the kernel runs on.
_BUILD_TOOLS = "linux-kbuild-"


class IncompleteError(FetchError):
    """An image whose other packages are no longer in the suite."""


@dataclass(frozen=True)
class Plan:
    """What to download for one release.

    Attributes:
        release: as ``uname -r`` prints it.
        index: the suite that has it.
        packages: image first, then what it and the headers depend on.
    """

    release: str
    index: SuiteIndex
    packages: tuple[Package, ...]

    @property
    def download(self) -> int:
        """Bytes to download."""
        return sum(package.size for package in self.packages)


def indexes(catalogue: Catalogue, entry: Entry) -> list[SuiteIndex]:
    """Return the indexes of an entry's suites, in the order to search."""
    state = cache_dir() / "apt"
    return [
        SuiteIndex(catalogue, suite, state, architecture=entry.architecture)
        for suite in entry.suites
    ]


def _not_unpacked(architecture: Architecture) -> list[str]:
    """Return patterns of what is left out of packages.

    Headers come with all architectures; building needs one. The patterns are those of tar, which
    has no «all but»: what begins otherwise, and what begins alike.
    """
    name = architecture.sources
    common = "./usr/src/*-common/arch"
    return ["./usr/share", f"{common}/[!{name[0]}]*", f"{common}/{name[0]}[!{name[1]}]*"]


def find_release(catalogue: Catalogue, entry: Entry, release: str) -> Plan | None:
    """Look an exact release up in the entry's suites; None when none has it.

    An index that lacks it is fetched again before it is believed.
    """
    for index in indexes(catalogue, entry):
        fetched = index.refresh()
        plan = _plan(index, entry, release)
        if plan is None and not fetched and index.refresh(RECHECK_AGE_S):
            plan = _plan(index, entry, release)
        if plan:
            return plan
    return None


def find_newest(catalogue: Catalogue, entry: Entry) -> Plan | None:
    """Return the newest release of the entry's series, with headers where the entry has them."""
    image = re.compile(_IMAGE.format(flavour=re.escape(entry.flavour)))
    for index in indexes(catalogue, entry):
        index.refresh()
        names = index.names(f"linux-image-{entry.series}.")
        candidates = index.packages([name for name in names if image.fullmatch(name)])
        for package in newest_first(candidates):
            try:
                plan = _plan(index, entry, package.name.removeprefix("linux-image-"))
            except IncompleteError:
                continue
            if plan:
                return plan
    return None


def _plan(index: SuiteIndex, entry: Entry, release: str) -> Plan | None:
    roots = [f"linux-image-{release}"]
    if entry.headers:
        roots.append(f"linux-headers-{release}")
    found: dict[str, Package] = {}
    for root in roots:
        versions = index.packages([root])
        if not versions:
            return None
        _follow(index, newest_first(versions)[0], found)
    return Plan(release, index, tuple(found.values()))


def _follow(index: SuiteIndex, package: Package, found: dict[str, Package]) -> None:
    """Add a package and those of the same kernel that it depends on."""
    if package.name in found:
        return
    found[package.name] = package
    for clause in package.depends.split(","):
        name = clause.split()[0] if clause.strip() else ""
        if not _OF_A_KERNEL.match(name):
            continue
        exact = re.search(r"\(= ([^)]+)\)", clause)
        of_host = name.startswith(_BUILD_TOOLS) and index.is_foreign
        versions = newest_first(index.packages([f"{name}:{native().debian}" if of_host else name]))
        if exact:
            versions = [version for version in versions if version.version == exact[1]]
        if versions:
            _follow(index, versions[0], found)
        elif not _OPTIONAL.match(name):
            raise IncompleteError(
                f"read {index.suite.name}: {package.name} depends on {clause.strip()}, which the "
                "suite does not have (any more); `bpfunit kernels update` looks for another release"
            )


def fetch(catalogue: Catalogue, entry: Entry, plan: Plan, task: Task) -> Record:
    """Download, verify and unpack a kernel into the cache; does nothing when it is there.

    Raises:
        FetchError: download or unpacking failed; nothing is left behind.
    """
    target = kernel_dir(plan.release)
    require_tools(
        f"unpack {plan.release}", dpkg_deb="dpkg", tar="tar", depmod="kmod", xz="xz-utils"
    )
    with locked(target):
        if record := load_record(plan.release):
            return record
        started = time.monotonic()
        try:
            with building(target) as directory:
                _check_space(plan, directory)
                _download(plan, directory / "debs", task)
                _unpack(catalogue, entry, plan, directory, target, task)
                record = Record(
                    FORMAT,
                    entry.series,
                    plan.release,
                    plan.packages[0].version,
                    plan.index.suite.name,
                    entry.headers,
                    tuple(f"{p.name}={p.version}" for p in plan.packages),
                    plan.download,
                    disk_usage(directory),
                    round(time.monotonic() - started, 1),
                    datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    entry.architecture.name,
                )
                record.save(directory)
        except OSError as error:
            hint = "; free some space or set $BPFUNIT_CACHE" if error.errno == errno.ENOSPC else ""
            raise FetchError(f"unpack {plan.release} into {target}: {error}{hint}") from error
    task.done(f"{plan.release} is there, {megabytes(record.size)}")
    return record


def _check_space(plan: Plan, directory: Path) -> None:
    # The packages and what becomes of them lie side by side for a moment.
    needed = plan.download + sum(package.installed for package in plan.packages)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise FetchError(
            f"fetch {plan.release}: needs up to {megabytes(needed)} in {directory.parent}, "
            f"{megabytes(free)} are free; free some space or set $BPFUNIT_CACHE"
        )


def _download(plan: Plan, directory: Path, task: Task) -> None:
    directory.mkdir()
    label = f"downloading {plan.release}, {megabytes(plan.download)}"
    task.step(label, 0.0)
    plan.index.download(plan.packages, directory, lambda fraction: task.step(label, fraction))


def _unpack(
    catalogue: Catalogue, entry: Entry, plan: Plan, directory: Path, target: Path, task: Task
) -> None:
    label = f"unpacking {plan.release}"
    packages = sorted((directory / "debs").glob("*.deb"))
    if len(packages) != len(plan.packages):
        raise FetchError(
            f"download {plan.release}: expected {len(plan.packages)} packages, "
            f"found {len(packages)}"
        )
    modules = f"lib/modules/{plan.release}"
    drop = [f"./{usr}{modules}/kernel/{d}" for usr in ("", "usr/") for d in catalogue.drop]
    for i, package in enumerate(packages):
        task.step(label, i / len(packages))
        extract(package, directory, (*_not_unpacked(entry.architecture), *drop))
        package.unlink()
    shutil.rmtree(directory / "debs")
    _join_usr(directory, plan.release)
    image = directory / "boot" / f"vmlinuz-{plan.release}"
    if not image.is_file():
        raise FetchError(
            f"unpack {plan.release}: expected boot/vmlinuz-{plan.release} in "
            f"{', '.join(package.name for package in plan.packages)}, found none"
        )
    _link_headers(directory, target, plan.release)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        # depmod warns without them; empty ones cost the order of aliases and `modprobe BUILTIN`.
        (directory / modules / name).touch()
    task.step(label, 0.95)
    _index_modules(directory, plan.release)


def extract(package: Path, directory: Path, excluded: Sequence[str]) -> None:
    """Unpack a package's files below a directory.

    Args:
        package: a ``.deb``.
        directory: where to.
        excluded: patterns of members to leave out, as ``tar --exclude`` takes them.

    Raises:
        FetchError: when dpkg-deb or tar fails.
    """
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as reader:
        tar = subprocess.run(
            ["tar", "-x", "--no-same-owner", "-C", str(directory)]
            + [f"--exclude={pattern}" for pattern in excluded],
            stdin=reader.stdout,
            capture_output=True,
            text=True,
        )
        words = reader.stderr.read().decode(errors="replace") if reader.stderr else ""
    if reader.returncode or tar.returncode:
        raise FetchError(f"unpack {package.name}: {(words + tar.stderr).strip()}")


def _join_usr(directory: Path, release: str) -> None:
    """Bring ``usr/lib/modules`` of the split packages to where vng and depmod look."""
    split = directory / "usr/lib/modules" / release
    if split.is_dir():
        (directory / "lib/modules").mkdir(parents=True, exist_ok=True)
        split.rename(directory / "lib/modules" / release)
        split.parent.rmdir()
    image = directory / "lib/modules" / release / "vmlinuz"
    if image.is_file():
        (directory / "boot").mkdir(exist_ok=True)
        image.rename(directory / "boot" / f"vmlinuz-{release}")


def _link_headers(directory: Path, target: Path, release: str) -> None:
    """Make the header trees work where they are, not only below ``/usr/src``.

    bcc finds headers through ``lib/modules/RELEASE/{build,source}``. A guest sees that directory at
    ``/lib/modules/RELEASE`` and the cache at its own path, so the links are absolute.
    """
    flavoured = directory / "usr/src" / f"linux-headers-{release}"
    for name in ("build", "source"):
        link = directory / "lib/modules" / release / name
        tree = flavoured.name if name == "build" else flavoured.name.rpartition("-")[0] + "-common"
        link.unlink(missing_ok=True)
        if (directory / "usr/src" / tree).is_dir():
            link.symlink_to(target / "usr/src" / tree)
    makefile = flavoured / "Makefile"
    if makefile.is_file():
        # KBUILD_OUTPUT is a recursive variable there: the place has to be taken down at once.
        here = "bpfunit_here := $(realpath $(dir $(lastword $(MAKEFILE_LIST))))\n"
        text = makefile.read_text(encoding="utf-8").replace("/usr/src/", "$(bpfunit_here)/../")
        makefile.write_text(here + text, encoding="utf-8")


def _index_modules(directory: Path, release: str) -> None:
    command = ["depmod", "-b", str(directory), release]
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    if result.returncode != 0 or "ERROR" in result.stderr:
        raise FetchError(f"index modules of {release}: {result.stderr.strip()}")
