"""What differs between processor architectures, in one table, and nowhere else.

An architecture that guests can have has an entry in :data:`ARCHITECTURES`. What user space needs of
the one that it runs on, where no guest is started, are system-call numbers and a byte order.
"""

from __future__ import annotations

import platform
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

#: Whether BPF instructions, BTF and records of the kernel here are little-endian.
LITTLE_ENDIAN = sys.byteorder == "little"

# (bpf, finit_module) by machine: arch/x86/entry/syscalls/syscall_64.tbl, s390's syscall.tbl, and
# include/uapi/asm-generic/unistd.h for the others. No C library has functions for the two.
_SYSCALLS = {"x86_64": (321, 313), "s390x": (351, 344)}
SYS_BPF, SYS_FINIT_MODULE = _SYSCALLS.get(platform.machine(), (280, 273))


@dataclass(frozen=True)
class Architecture:
    """One architecture of guests.

    Attributes:
        name: as ``uname -m`` prints it.
        debian: as Debian's packages name it.
        sources: its directory below arch/ of the kernel's sources.
        qemu: the emulator's command.
        qemu_package: Debian's package of it.
        machine: its ``-machine``.
        emulated_cpu: its ``-cpu`` without KVM.
        virtualisation: flags of /proc/cpuinfo of which a processor for KVM has one.
        kernel_words: for the kernel's command line: console and hardware.
        tells_clock: whether the guest's clock follows a counter whose rate it can be told.
        oops: a pattern of what the kernel prints when it dies by a fault of its own.
        boot_image: where a kernel's build tree has the image.
        image_name: what such an image is called.
        image_release: tells the release that the image says it is from its first 64 KiB; None where
            they are not of such an image.
        image_payload: finds the compressed kernel in a whole image; None where it has none.
    """

    name: str
    debian: str
    sources: str
    qemu: str
    qemu_package: str
    machine: str
    emulated_cpu: str
    virtualisation: frozenset[str]
    kernel_words: str
    tells_clock: bool
    oops: str
    boot_image: str
    image_name: str
    image_release: Callable[[bytes], str | None]
    image_payload: Callable[[bytes], bytes | None]


# Offsets in a bzImage: Documentation/arch/x86/boot.rst of the kernel.
_SETUP_SECTS, _MAGIC, _VERSION, _PAYLOAD = 0x1F1, 0x202, 0x20E, 0x248


def _is_bzimage(data: bytes) -> bool:
    return data[_MAGIC : _MAGIC + 4] == b"HdrS"


def _bzimage_release(head: bytes) -> str | None:
    if not _is_bzimage(head):
        return None
    start = 0x200 + int(struct.unpack_from("<H", head, _VERSION)[0])
    return head[start : start + 256].split(b"\0")[0].split(b" ")[0].decode(errors="replace")


def _bzimage_payload(data: bytes) -> bytes | None:
    if not _is_bzimage(data):
        return None
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    start = (data[_SETUP_SECTS] + 1) * 512 + offset
    return data[start : start + length]


ARCHITECTURES = {
    "x86_64": Architecture(
        name="x86_64",
        debian="amd64",
        sources="x86",
        qemu="qemu-system-x86_64",
        qemu_package="qemu-system-x86",
        machine="q35,sata=off,smbus=off,i8042=off,vmport=off,usb=off,graphics=off",
        emulated_cpu="max,la57=off",
        virtualisation=frozenset({"vmx", "svm"}),
        kernel_words="console=ttyS0 no_timer_check tsc=reliable 8250.nr_uarts=1",
        tells_clock=True,
        oops="general protection fault",
        boot_image="arch/x86/boot/bzImage",
        image_name="bzImage",
        image_release=_bzimage_release,
        image_payload=_bzimage_payload,
    ),
}


def of_guests() -> Architecture:
    """Return the architecture of guests, which is that of the machines they can run on so far."""
    return ARCHITECTURES["x86_64"]
