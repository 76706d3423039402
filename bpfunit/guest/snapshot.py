"""Guests that start from a snapshot: booted once, with a warm Python, and restored ever after.

Under software emulation a guest takes seconds to boot and more of them to import pytest. So the
first guest of a configuration is booted for the snapshot alone: its Python runs from the initramfs,
imports what every worker imports, and waits (``warm.py``). QEMU then saves the machine's state and
leaves its memory in a file. Later guests map that file copy-on-write, go on where it waits, and
only then mount the host's files: a mounted 9p cannot be saved, and would show the past's files.

A snapshot stands in for a boot only as long as nothing differs that the boot would have seen: QEMU,
the kernel, the command line, the processor's model, the interpreter's environment, and every file
that Python read (by size and time of change).
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shlex
import shutil
import site
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from virtme.cpiowriter import CpioWriter, FileMetaData

from bpfunit._paths import cache_dir
from bpfunit.guest import foreign
from bpfunit.guest.accel import qemu
from bpfunit.guest.errors import GuestError
from bpfunit.guest.image import write_whole

if TYPE_CHECKING:
    from bpfunit.kernels.kernel import Foreign

_FORMAT = 4  # of what a slot holds; count up when it changes in a way the key does not show
_TREE = "warm"  # below this directory of the initramfs lies what the warm Python reads
# Snapshots are removed when another is made: those not used for so long, and the oldest above so
# many, but none that was used within the hour.
_KEPT_DAYS, _KEPT, _HOUR = 14, 16, 3600
_WARM = str(Path(__file__).resolve().with_name("warm.py"))

_PT_LOAD = 1  # include/uapi/linux/elf.h

# Variables that an interpreter reads before any of our code runs; beside HOME, for a user's own
# packages.
_EARLY = ("PYTHON", "LANG", "LC_")


@dataclass(frozen=True)
class Snapshot:
    """Where a guest's snapshot is, or will be.

    Attributes:
        slot: its directory: ``ram``, ``state``, ``console``, ``meta.json``; before that
            ``initramfs``.
        ready: whether it can be restored; otherwise the first supervisor makes it.
        failed: why a try within the last hour to make or use it failed; "" if none did.
        path: ``sys.path`` of a fresh interpreter.
    """

    slot: Path
    ready: bool
    failed: str
    path: list[str]


def wanted() -> bool:
    """Tell whether snapshots are to be used: always, unless ``BPFUNIT_SNAPSHOT=0`` is set."""
    return os.environ.get("BPFUNIT_SNAPSHOT") != "0"


def find(
    configuration: dict[str, Any],
    environment: dict[str, str],
    initramfs: Path,
    other: Foreign | None = None,
) -> Snapshot:
    """Return a configuration's snapshot, with its initramfs made if it is not up to date.

    Args:
        configuration: what tells such guests from others: kernel, memory and so on; plain data.
        environment: the worker's variables.
        initramfs: what such a guest boots without a snapshot.
        other: what a guest of another architecture runs with.

    Raises:
        GuestError: the interpreter's imports fail outside of pytest.
    """
    early = {name: value for name, value in environment.items() if name.startswith(_EARLY)}
    early |= {"PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath, "HOME": "/"}
    if site.ENABLE_USER_SITE:
        early["HOME"] = environment.get("HOME", "/")
    name = {**configuration, "python": sys.executable, "prefix": sys.prefix, "environment": early}
    digest = hashlib.sha256(json.dumps(name, sort_keys=True).encode()).hexdigest()[:16]
    slot = cache_dir() / "snapshots" / f"{configuration['release']}-{digest}"
    slot.mkdir(parents=True, exist_ok=True)
    mark = _mark(other.emulator if other else None)
    with FileLock(slot / "list.lock"):
        meta = _meta(slot)
        if meta.get("mark") != mark or not _unchanged(meta["files"]):
            with (slot / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # no supervisor is just reading or making it
                for old in ("state", "ram", "failed", "meta.json"):
                    (slot / old).unlink(missing_ok=True)
            (slot / "initramfs").unlink(missing_ok=True)
            meta = {"mark": mark, **_list_files(early, other)}
            write_whole(slot / "meta.json", json.dumps(meta).encode())
            _remove_unused(slot)
        # Whoever makes the snapshot removes the initramfs after it, and it alone needs one.
        if not (slot / "state").exists() and not (slot / "initramfs").exists():
            _write_initramfs(slot / "initramfs", initramfs, meta, early)
    os.utime(slot)
    return Snapshot(slot, (slot / "state").exists(), _failed(slot), meta["path"])


def _mark(emulator: Path | None) -> str:
    """Return a digest of what snapshots depend on beside configuration and Python's files."""
    path, version = qemu(emulator)
    binary = Path(path).stat()
    parts = [_FORMAT, path, version, binary.st_size, binary.st_mtime_ns, _processor()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _processor() -> str:
    """Return the processor's model, at whose rate the clock of a saved guest counts."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("model name")), "")


def _meta(slot: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads((slot / "meta.json").read_text())
    except (OSError, ValueError):
        return {}
    return meta


def _failed(slot: Path) -> str:
    """Return why the last try failed, "" if none did or it is long ago, as a full disk may be."""
    try:
        if time.time() - (slot / "failed").stat().st_mtime < _HOUR:
            return (slot / "failed").read_text()
    except FileNotFoundError:
        pass
    return ""


def _stamp(path: str) -> list[int]:
    stat = os.stat(path)  # noqa: PTH116  a thousand of them, at every start
    return [stat.st_mtime_ns, stat.st_size]


def _unchanged(files: dict[str, list[int]]) -> bool:
    # Bytecode is written anew for reasons of its own; what it was made from is among the files.
    sources = (item for item in files.items() if "/__pycache__/" not in item[0])
    try:
        return all(_stamp(path) == stamp for path, stamp in sources)
    except OSError:
        return False


def _list_files(early: dict[str, str], other: Foreign | None) -> dict[str, Any]:
    """Return the files that a warm interpreter reads, with size and time of change.

    Those of another architecture come with the places that they have in the guest.
    """
    names, path = _imported(tuple(early.items()))
    places = foreign.warm_files(names, other.root, dict(other.parts)) if other else {}
    files = {name: _stamp(name) for name in places or names}
    return {"files": files, "places": places, "path": path}


@functools.lru_cache(maxsize=8)  # the kernels of one run differ in none of it
def _imported(early: tuple[tuple[str, str], ...]) -> tuple[list[str], list[str]]:
    """Return the files that an interpreter reads with some variables, and its ``sys.path``."""
    done = subprocess.run(
        [sys.executable, "-u", _WARM, "list"],
        cwd="/",
        env=dict(early),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise GuestError(f"list what a worker imports: {done.stderr.strip()[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["files"], found["path"]


def _write_initramfs(path: Path, base: Path, meta: dict[str, Any], early: dict[str, str]) -> None:
    """Write the guest's initramfs with the warm Python and its files behind it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(base.read_bytes())
        tree = _Tree(CpioWriter(file))
        for name in meta["files"]:
            place = meta.get("places", {}).get(name, name)
            if place == name:
                tree.add(Path(name))
            else:
                tree.copy(Path(name), Path(place))
        tree.add(Path(sys.executable))  # the links to it, where a copy is there already
        tree.directory(Path("/proc"))
        tree.directory(Path("/dev"))
        command = ["/bin/busybox", "env", "-i", *(f"{name}={early[name]}" for name in early)]
        command += ["/bin/busybox", "chroot", f"/{_TREE}", sys.executable, "-u", _WARM]
        tree.file("warm.sh", f"exec {shlex.join(command)}\n".encode(), 0o755, 0)
        tree.close()
    Path(file.name).replace(path)


class _Tree:
    """Files of the host, for a root of their own: with all links that lead to them.

    Args:
        cpio: the archive to write to.
    """

    def __init__(self, cpio: CpioWriter) -> None:
        self._cpio = cpio
        self._done: set[Path] = set()
        self._libraries: dict[Path, dict[Path, list[Path]]] = {}
        self.directory(Path("/"))
        for link in Path("/").iterdir():  # /lib64 and so on: the loader's own paths
            if link.is_symlink():
                self._walk(link)

    def add(self, path: Path) -> None:
        """Add a file, the directories and links on the way, and a library's other names."""
        self._walk(path)
        if ".so." in path.name:
            for link in self._links(path.parent).get(path, []):
                self._walk(link)

    def copy(self, source: Path, place: Path) -> None:
        """Add a file with the place of another one of the host, whose directories and links count.

        Args:
            source: what is read.
            place: where it lies in the tree.
        """
        for directory in reversed(place.parents):
            if directory.exists():
                self._walk(directory)
            else:
                self.directory(directory)
        if place not in self._done:
            self._done.add(place)
            stat = source.stat()
            mode, mtime = stat.st_mode & 0o777, int(stat.st_mtime)
            self._file(_name(place), source.read_bytes(), mode, mtime)

    def _links(self, directory: Path) -> dict[Path, list[Path]]:
        """Return the links to libraries in a directory, by what they lead to."""
        if directory not in self._libraries:
            found = self._libraries[directory] = {}
            for path in directory.glob("*.so*"):
                if path.is_symlink():
                    found.setdefault(path.resolve(), []).append(path)
        return self._libraries[directory]

    def directory(self, path: Path) -> None:
        """Add one directory, whose parent is there."""
        if path not in self._done:
            self._done.add(path)
            self._cpio.mkdir(_name(path), 0o755)

    def _walk(self, path: Path) -> None:
        for part in [*reversed(path.parents), path]:
            if part in self._done:
                if part.is_symlink():
                    self._walk(part.parent / part.readlink() / path.relative_to(part))
                    return
                continue
            if part.is_symlink():
                self._done.add(part)
                self._cpio.symlink(os.fsencode(part.readlink()), _name(part))
                target = Path(os.path.normpath(part.parent / part.readlink()))
                self._walk(target / path.relative_to(part))
                return
            if part.is_dir():
                self.directory(part)
            elif part.is_file():
                self._done.add(part)
                stat = part.stat()
                self._file(_name(part), part.read_bytes(), stat.st_mode & 0o777, int(stat.st_mtime))

    def file(self, name: str, content: bytes, mode: int, mtime: int) -> None:
        """Add a file of ours, outside of the tree."""
        self._file(name.encode(), content, mode, mtime)

    def _file(self, name: bytes, content: bytes, mode: int, mtime: int) -> None:
        # Python compares the time with the one in its bytecode.
        meta = FileMetaData(mtime=mtime)
        self._cpio.write_object(name, loaded(content), CpioWriter.TYPE_REG | mode, meta)

    def close(self) -> None:
        """End the archive."""
        self._cpio.write_trailer()


def loaded(content: bytes) -> bytes:
    """Return what a process maps of a file: of a library, all but what debuggers read of it.

    Args:
        content: of any file; those that are no little-endian 64-bit ELF stay whole.
    """
    if content[:6] != b"\x7fELF\x02\x01":
        return content
    (table,) = struct.unpack_from("<Q", content, 32)
    entry_size, entries = struct.unpack_from("<HH", content, 54)
    ends = [table + entry_size * entries]
    for at in range(table, ends[0], entry_size):
        segment_type, _flags, offset, _virtual, _physical, size = struct.unpack_from(
            "<IIQQQQ", content, at
        )
        if segment_type == _PT_LOAD:
            ends.append(offset + size)
    return content[: max(ends)]


def _name(path: Path) -> bytes:
    return os.fsencode(Path(_TREE) / path.relative_to("/"))


def _remove_unused(kept: Path) -> None:
    """Remove snapshots that nobody needs; each takes a few hundred megabytes."""
    now = time.time()
    ages = sorted((now - slot.stat().st_mtime, slot) for slot in kept.parent.iterdir())
    for number, (age, slot) in enumerate(ages):
        old = age > _KEPT_DAYS * 86400 or number >= _KEPT
        if old and age > _HOUR and slot != kept:
            shutil.rmtree(slot, ignore_errors=True)


def command_lines(argv: list[str], slot: Path, memory: int, append: str) -> dict[str, list[str]]:
    """Return QEMU's arguments to make a snapshot (``make``) and to start from it (``restore``).

    Args:
        argv: the arguments to boot without one.
        slot: the snapshot's directory.
        memory: MiB.
        append: the kernel's command line, which must not name a run.
    """
    restored = list(argv)
    restored[restored.index("-machine") + 1] += ",memory-backend=ram"
    made = list(restored)
    made[made.index("-initrd") + 1] = str(slot / "initramfs")
    made[made.index("-append") + 1] = f"bpfunit.snapshot {append}"
    # What is booted lies in the memory of the guest, and takes as much of QEMU's once more.
    for option in ("-initrd", "-append", "-kernel"):
        at = restored.index(option)
        del restored[at : at + 2]
    ram = f"memory-backend-file,id=ram,size={memory}M,mem-path="
    return {
        # Shared memory stays behind in the file; QEMU then saves the devices' state alone.
        "make": [*made, "-object", f"{ram}{slot}/ram.all,share=on"],
        "restore": [*restored, "-object", f"{ram}{slot}/ram,share=off", "-incoming", "defer"],
    }
