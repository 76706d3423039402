"""Looking after the cache and the pins: what `bpfunit kernels` on the command line does."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from bpfunit._paths import cache_dir
from bpfunit.kernels import _fetch
from bpfunit.kernels._cache import (
    Record,
    cached_records,
    disk_usage,
    kernel_dir,
    load_record,
    load_substitute,
    locked,
)
from bpfunit.kernels._progress import Reporter
from bpfunit.kernels._roots import root_dir
from bpfunit.kernels.catalogue import Entry, load_catalogue
from bpfunit.kernels.errors import CatalogueError, UnknownKernelError


@dataclass(frozen=True)
class Status:
    """One kernel as ``bpfunit kernels list`` shows it.

    Attributes:
        entry: its catalogue entry; None for a cached release that is not pinned.
        record: what is cached, None when nothing is.
        substitute: whether `record` is a newer release in place of a pin that vanished.
    """

    entry: Entry | None
    record: Record | None
    substitute: bool = False


@dataclass(frozen=True)
class PinChange:
    """One pin that the archive has moved past.

    Attributes:
        series: the kernel's series, ``"6.12/arm64"`` for another architecture's.
        old_release: what the catalogue says.
        new_release: the newest there is; "" when the archive has none of the series any more.
        old_version: the Debian version that the catalogue says.
        new_version: the newest Debian version.
    """

    series: str
    old_release: str
    new_release: str
    old_version: str
    new_version: str


def inventory() -> list[Status]:
    """Return all kernels of the catalogue, then what else is cached; needs no network."""
    entries = load_catalogue().entries
    listing = []
    for entry in entries:
        record = load_record(entry.release)
        substitute = None if record else load_substitute(entry.release)
        listing.append(Status(entry, record or substitute, substitute is not None))
    shown = {status.record.release for status in listing if status.record}
    listing += [Status(None, record) for record in cached_records() if record.release not in shown]
    return listing


def roots() -> list[tuple[str, int]]:
    """Return the roots in the cache that kernels are built or run with, each with its bytes.

    Build roots, those with a compiler for another architecture among them, and what guests of other
    architectures run with: emulators and user spaces.
    """
    there = sorted(root_dir("").glob("[!.]*"))
    return [(path.name, disk_usage(path)) for path in there if path.is_dir()]


def remove(spec: str) -> int:
    """Remove a kernel, its modules, boot files and snapshots from the cache.

    Args:
        spec: a series, which stands for all its cached releases, as ``"6.12"`` or ``"6.12/arm64"``;
            an exact release; or ``"all"``.

    Returns:
        The bytes that were freed.

    Raises:
        UnknownKernelError: when nothing of that name is cached.
    """
    records = cached_records()
    chosen = [r for r in records if spec in {"all", r.name, r.release}]
    if not chosen and spec != "all":
        cached = [record.release for record in records]
        raise UnknownKernelError("remove kernel from the cache", spec, cached)
    freed = 0
    for record in chosen:
        directory = kernel_dir(record.release)
        with locked(directory):
            freed += disk_usage(directory)
            shutil.rmtree(directory)
        # What was made for it: modules, and the files and snapshots that guests start from.
        areas = [cache_dir() / area for area in ("modules", "boot", "snapshots")]
        made = [path for area in areas for path in area.glob("*")]
        for path in made:
            if not path.name.startswith(f"{record.release}-"):
                continue
            if path.is_dir():
                freed += disk_usage(path)
                shutil.rmtree(path)
            else:
                path.unlink()
    return freed


def update_pins(path: Path | None = None, *, write: bool = True) -> list[PinChange]:
    """Compare the pins with the archive and rewrite those that it has moved past.

    Comments, order and everything else of the file stay as they are.

    Args:
        path: the catalogue's file, the one in use by default.
        write: False only looks.

    Returns:
        What changed or would change; a series that is gone is listed and left alone.

    Raises:
        FetchError: the archive cannot be reached.
        CatalogueError: the file cannot be written.
    """
    catalogue = load_catalogue(path)
    changes = []
    with Reporter() as reporter:
        task = reporter.task("pins")
        for i, entry in enumerate(catalogue.entries):
            if entry.refused:
                continue
            task.step("looking for newer releases", i / len(catalogue.entries))
            newest = _fetch.find_newest(catalogue, entry)
            release = newest.release if newest else ""
            version = newest.packages[0].version if newest else ""
            if (release, version) != (entry.release, entry.version):
                change = PinChange(entry.name, entry.release, release, entry.version, version)
                changes.append(change)
        task.done(f"{len(changes)} of {len(catalogue.entries)} moved")
    moved = [change for change in changes if change.new_release]
    if write and moved:
        try:
            text = catalogue.path.read_text(encoding="utf-8")
            for change in moved:
                text = _rewrite(text, change)
            catalogue.path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise CatalogueError(
                f"write kernel catalogue: {catalogue.path}: {error.strerror}; "
                "copy it and name the copy in $BPFUNIT_KERNELS"
            ) from error
        load_catalogue(catalogue.path)
    return changes


def _rewrite(text: str, change: PinChange) -> str:
    """Replace release and version within the one ``[[kernel]]`` table that has the old release."""
    tables = re.split(r"(?m)(?=^\[\[kernel\]\])", text)
    for i, table in enumerate(tables):
        if f'"{change.old_release}"' in table:
            for key, new in (("release", change.new_release), ("version", change.new_version)):
                table = re.sub(rf'(?m)^({key}\s*=\s*)"[^"]*"', rf'\1"{new}"', table, count=1)
            tables[i] = table
    return "".join(tables)
