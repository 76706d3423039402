"""What a guest boots: the unpacked kernel and the initramfs, made once per kernel and cached.

An unpacked kernel saves the guest the decompression, a quarter of the boot's processor time under
software emulation. QEMU starts it through the PVH note that distributions' kernels carry.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from virtme.cpiowriter import CpioWriter
from virtme.mkinitramfs import find_busybox

from bpfunit._arch import ARCHITECTURES
from bpfunit._paths import cache_dir
from bpfunit.guest.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HERE = Path(__file__).resolve().parent
_FORMAT = 3  # of the cached files; count up when they change in a way the key does not show

# What the guest needs before it sees the host's files. Built-in ones are passed over, and so is the
# bus that not every architecture has.
_BUS = "virtio_pci"
_MODULES = (_BUS, "virtio_console", "9pnet_virtio", "9p", "overlay")

_XEN_ELFNOTE_PHYS32_ENTRY = 18  # include/xen/interface/elfnote.h; the PVH entry point


def boot_files(
    image: Path, release: str, modules_root: Path | None, root: Path | None = None
) -> tuple[Path, Path]:
    """Return the kernel file and the initramfs to boot, making them when they are not cached.

    Args:
        image: the kernel's image.
        release: as ``uname -r`` prints it.
        modules_root: the directory that has ``lib/modules/RELEASE``, or None when all is built in.
        root: the user space of guests of another architecture; None for this machine's.

    Raises:
        GuestError: busybox is missing, or a module that the guest needs to boot is.
    """
    stat = image.stat()
    busybox = _busybox(root)
    key = [_FORMAT, image, stat.st_size, stat.st_mtime_ns, modules_root, busybox]
    key += [path.read_bytes() for path in (_HERE / "init.sh", _HERE / "stage2.sh")]
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    directory = cache_dir() / "boot" / f"{release}-{name}"
    kernel, initramfs = directory / "vmlinux", directory / "initramfs.cpio"
    if not initramfs.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / "lock"):
            if not initramfs.exists():
                unpacked = unpack(image)
                if unpacked is not None:
                    write_whole(kernel, unpacked)
                write_whole(initramfs, _initramfs(release, modules_root, Path(busybox)))
    return (kernel if kernel.exists() else image), initramfs


def unpack(image: Path) -> bytes | None:
    """Return the ELF file inside a kernel's image, or None when QEMU could not start it.

    That is the case for compressions that nothing here can undo, and for kernels without
    ``CONFIG_PVH``; those boot as they are, more slowly.
    """
    data = image.read_bytes()
    payloads = (one.image_payload(data) for one in ARCHITECTURES.values())
    payload = next((found for found in payloads if found is not None), None)
    if payload is None:
        return None
    for magic, decompress in _DECOMPRESSORS:
        if payload.startswith(magic):
            elf = decompress(payload)
            return elf if elf is not None and _has_pvh_entry(elf) else None
    return None


def _zstd(payload: bytes) -> bytes | None:
    if shutil.which("zstd") is None:
        return None
    # The last four bytes are the unpacked size, which the build appends; not part of the frame.
    done = subprocess.run(
        ["zstd", "-dcq"], input=payload[:-4], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return done.stdout if done.returncode == 0 else None


def _gzip(payload: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(payload)


def _xz(payload: bytes) -> bytes:
    return lzma.LZMADecompressor().decompress(payload)


_DECOMPRESSORS: tuple[tuple[bytes, Callable[[bytes], bytes | None]], ...] = (
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"\xfd7zXZ\0", _xz),
    (b"\x1f\x8b", _gzip),
)


def _has_pvh_entry(elf: bytes) -> bool:
    if elf[:5] != b"\x7fELF\x02":
        return False
    (table,) = struct.unpack_from("<Q", elf, 32)
    entry_size, entries = struct.unpack_from("<HH", elf, 54)
    for at in range(table, table + entry_size * entries, entry_size):
        segment_type, _flags, offset, _virtual, _physical, size = struct.unpack_from(
            "<IIQQQQ", elf, at
        )
        if segment_type == 4:  # PT_NOTE
            return _XEN_ELFNOTE_PHYS32_ENTRY in _note_types(elf[offset : offset + size])
    return False


def _note_types(notes: bytes) -> Iterator[int]:
    at = 0
    while at + 12 <= len(notes):
        name, description, note_type = struct.unpack_from("<III", notes, at)
        yield note_type
        at += 12 + (name + 3) // 4 * 4 + (description + 3) // 4 * 4


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that others see whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


def _busybox(root: Path | None) -> str:
    if root is not None:
        return str(root / "usr/bin/busybox")
    found = find_busybox("/", is_native=True)
    if found is None:
        raise GuestError("make the initramfs: no busybox; install busybox-static")
    return str(found)


def _initramfs(release: str, modules_root: Path | None, busybox: Path) -> bytes:
    with tempfile.TemporaryFile() as file:
        cpio = CpioWriter(file)
        for name in ("bin", "dev", "proc", "run", "arch", "host", "changes", "root", "modules"):
            cpio.mkdir(name.encode(), 0o755)
        cpio.mkchardev(b"dev/console", (5, 1), mode=0o600)
        cpio.mkchardev(b"dev/null", (1, 3), mode=0o666)
        names: list[str] = []
        for path in _modules_in_order(release, modules_root):
            name = path.name.split(".ko")[0] + ".ko"
            names.append(name)
            _add(cpio, f"modules/{name}", _module_content(path))
        _add(cpio, "modules/order", "".join(f"{name}\n" for name in names).encode())
        _add(cpio, "bin/busybox", busybox.read_bytes(), mode=0o755)
        _add(cpio, "stage2.sh", (_HERE / "stage2.sh").read_bytes())
        _add(cpio, "init", (_HERE / "init.sh").read_bytes(), mode=0o755)
        cpio.write_trailer()
        file.seek(0)
        return file.read()


def _add(cpio: CpioWriter, name: str, content: bytes, mode: int = 0o644) -> None:
    with tempfile.TemporaryFile() as body:
        body.write(content)
        body.seek(0)
        cpio.write_file(name=name.encode(), body=body, mode=mode)


def _modules_in_order(release: str, modules_root: Path | None) -> list[Path]:
    """Return the files of the needed modules, each after those it depends on."""
    if modules_root is None:
        return []
    base = modules_root / "lib" / "modules" / release
    listing = base / "modules.dep"
    if not listing.exists():
        raise GuestError(
            f"make the initramfs of {release}: no {listing}; run depmod -b {modules_root} {release}"
        )
    dependencies: dict[str, tuple[str, list[str]]] = {}
    for line in listing.read_text().splitlines():
        file, _, rest = line.partition(":")
        dependencies[_module_name(file)] = (file, rest.split())
    # Newer Debian packages have the list in its binary form alone; then a module that is no file is
    # taken to be built in.
    built_in = base / "modules.builtin"
    known = built_in.exists()
    names = {_module_name(line) for line in built_in.read_text().splitlines()} if known else set()
    order: list[Path] = []
    for wanted in _MODULES:
        if wanted in dependencies:
            file, needs = dependencies[wanted]
            # modules.dep lists the nearest dependency first, insmod wants the farthest first
            for one in [*reversed(needs), file]:
                if base / one not in order:
                    order.append(base / one)
        elif known and wanted not in names and wanted != _BUS:
            raise GuestError(
                f"make the initramfs of {release}: module {wanted} is neither in {base} nor built "
                "in; use a kernel that has it (Debian: flavour amd64, not cloud-amd64)"
            )
    return order


def _module_name(path: str) -> str:
    return Path(path).name.split(".ko")[0].replace("-", "_")


def _module_content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".gz":
        return _gzip(content)
    if path.suffix == ".zst":
        command = ["zstd", "-dcq", os.fspath(path)]
        try:
            return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise GuestError(f"unpack {path}: {error}; install zstd") from error
    return content
