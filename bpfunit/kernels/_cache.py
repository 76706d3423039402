"""Where unpacked kernels lie in the cache, and what is written down about each.

``kernels/RELEASE/`` holds ``boot/vmlinuz-RELEASE`` and ``lib/modules/RELEASE``, as vng finds them,
``usr/`` with the headers and ``kernel.json``. It appears by one rename: it is whole or not there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp

from filelock import FileLock

from bpfunit._arch import ARCHITECTURES
from bpfunit._paths import cache_dir
from bpfunit.kernels.catalogue import full_name

FORMAT = 1
"""Number of the layout; a cached kernel of another layout is fetched anew."""


@dataclass(frozen=True)
class Record:
    """What ``kernel.json`` says about one cached kernel.

    Attributes:
        format: the layout, see `FORMAT`.
        series: for example ``"6.12"``.
        release: as ``uname -r`` prints it.
        version: the Debian version.
        suite: where it was found.
        headers: whether headers are there.
        packages: ``name=version`` of all that was unpacked.
        download: bytes that were downloaded.
        size: bytes on disk.
        seconds: how long fetching and unpacking took.
        fetched: when, ISO 8601 in UTC.
        architecture: as ``uname -m`` prints it; x86-64 in records of before there were others.
    """

    format: int
    series: str
    release: str
    version: str
    suite: str
    headers: bool
    packages: tuple[str, ...]
    download: int
    size: int
    seconds: float
    fetched: str
    architecture: str = "x86_64"

    @property
    def name(self) -> str:
        """What users type: ``"6.12"``, ``"6.12/arm64"``."""
        return full_name(self.series, ARCHITECTURES[self.architecture])

    def save(self, directory: Path) -> None:
        """Write the record into an unpacked kernel's directory."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        (directory / "kernel.json").write_text(text, encoding="utf-8")


def kernels_dir() -> Path:
    """Return the directory of the unpacked kernels."""
    return cache_dir() / "kernels"


def kernel_dir(release: str) -> Path:
    """Return the directory of one kernel, there or not."""
    return kernels_dir() / release


def load_record(release: str) -> Record | None:
    """Return what is known of a cached kernel; None when it is not cached in this layout."""
    try:
        data = json.loads((kernel_dir(release) / "kernel.json").read_text(encoding="utf-8"))
        record = Record(**{**data, "packages": tuple(data["packages"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if record.format == FORMAT else None


def cached_records() -> list[Record]:
    """Return the records of all cached kernels, by name."""
    try:
        names = sorted(path.name for path in kernels_dir().iterdir() if path.name[0] != ".")
    except OSError:
        return []
    return [record for name in names if (record := load_record(name))]


def save_substitute(pin: str, release: str) -> None:
    """Remember which release runs in place of a pinned one that is gone from the archive."""
    kernels_dir().mkdir(parents=True, exist_ok=True)
    (kernels_dir() / f".{pin}.moved").write_text(release + "\n", encoding="utf-8")


def load_substitute(pin: str) -> Record | None:
    """Return the cached kernel that runs in place of a vanished pin; None when there is none."""
    try:
        release = (kernels_dir() / f".{pin}.moved").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return load_record(release)


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """Give a temporary directory that becomes `target` when the block ends well.

    Whatever ends the block badly removes it; what a killed process left of an earlier try is
    removed first. The caller holds the lock of `target`.
    """
    prefix = f".{target.name}.tmp-"
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    directory = Path(mkdtemp(prefix=prefix, dir=target.parent))
    directory.chmod(0o755)
    try:
        yield directory
        if target.exists():
            shutil.rmtree(target)
        directory.rename(target)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock that goes with a directory or file of the cache, across processes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target.parent / f".{target.name}.lock")):
        yield


def disk_usage(directory: Path) -> int:
    """Return the bytes that a directory tree takes on disk; others may be at work in it."""
    total = 0
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            with suppress(FileNotFoundError):
                total += Path(parent, name).lstat().st_blocks * 512
    return total
