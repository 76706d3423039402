"""What differs between processor architectures, in one table, and nowhere else.

An architecture that guests can have has an entry in :data:`ARCHITECTURES`. What user space needs of
the one that it runs on, where no guest is started, are system-call numbers and a byte order.
"""

from __future__ import annotations

import mmap
import platform
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

#: Whether BPF instructions, BTF and records of the kernel here are little-endian.
LITTLE_ENDIAN = sys.byteorder == "little"

Data = bytes | mmap.mmap  # of a file

# (bpf, finit_module) by machine: arch/x86/entry/syscalls/syscall_64.tbl, s390's syscall.tbl, and
# include/uapi/asm-generic/unistd.h for the others. No C library has functions for the two.
_SYSCALLS = {"x86_64": (321, 313), "s390x": (351, 344)}
SYS_BPF, SYS_FINIT_MODULE = _SYSCALLS.get(platform.machine(), (280, 273))


@dataclass(frozen=True)
class Registers:
    """``struct pt_regs``, as far as programs may read it: 64-bit fields.

    Attributes:
        fields: the names in order, each with its length where it is an array, else 0.
        arguments: which of them hold a function's arguments: a name, or an array and an index.
        returned: which holds what it returned.
    """

    fields: tuple[tuple[str, int], ...]
    arguments: tuple[tuple[str, int], ...]
    returned: tuple[str, int]


def _plain(names: str) -> tuple[tuple[str, int], ...]:
    return tuple((name, 0) for name in names.split())


# arch/x86/include/asm/ptrace.h, user_pt_regs of arch/arm64/include/uapi/asm/ptrace.h and of
# arch/s390/include/uapi/asm/ptrace.h; arguments as PT_REGS_PARM1() and its kin of libbpf have them
_X86_REGISTERS = Registers(
    _plain("r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss"),
    _plain("di si dx cx r8 r9"),
    ("ax", 0),
)
_ARM64_REGISTERS = Registers(
    (("regs", 31), ("sp", 0), ("pc", 0), ("pstate", 0)),
    tuple(("regs", n) for n in range(8)),
    ("regs", 0),
)
_S390_REGISTERS = Registers(
    (("args", 0), ("psw", 2), ("gprs", 16)), tuple(("gprs", n) for n in range(2, 7)), ("gprs", 2)
)


@dataclass(frozen=True)
class Architecture:
    """One architecture of guests.

    Attributes:
        name: as ``uname -m`` prints it.
        debian: as Debian's packages name it, and users: ``6.12/arm64``.
        sources: its directory below arch/ of the kernel's sources.
        triplet: of its C library and cross compilers.
        little_endian: whether it is.
        qemu: the emulator's command.
        qemu_package: Debian's package of it.
        machine: its ``-machine``.
        emulated_cpu: its ``-cpu`` without KVM.
        bus: what the names of QEMU's virtio devices end in.
        console: QEMU's arguments for the kernel's log; the character device is ``console``.
        virtualisation: flags of /proc/cpuinfo of which a processor for KVM has one; none where it
            does not say.
        kernel_words: for the kernel's command line: console and hardware.
        tells_clock: whether the guest's clock follows a counter whose rate it can be told.
        oops: a pattern of what the kernel prints when it dies by a fault of its own.
        boot_image: where a kernel's build tree has the image.
        image_name: what such an image is called.
        image_release: tells the release that an image says it is; None where it is no such image.
        image_payload: finds the compressed kernel in a whole image; None where it has none.
        registers: those that a kprobe sees.
        alone: flags for compiled code that has no library of the compiler's.
    """

    name: str
    debian: str
    sources: str
    triplet: str
    little_endian: bool
    qemu: str
    qemu_package: str
    machine: str
    emulated_cpu: str
    bus: str
    console: tuple[str, ...]
    virtualisation: frozenset[str]
    kernel_words: str
    tells_clock: bool
    oops: str
    boot_image: str
    image_name: str
    image_release: Callable[[Data], str | None]
    image_payload: Callable[[bytes], bytes | None]
    registers: Registers
    alone: tuple[str, ...] = ()


# Offsets in a bzImage: Documentation/arch/x86/boot.rst of the kernel.
_SETUP_SECTS, _MAGIC, _VERSION, _PAYLOAD = 0x1F1, 0x202, 0x20E, 0x248

# Documentation/arch/arm64/booting.rst
_ARM64_MAGIC = 56

# arch/s390/boot/head.S and asm/setup.h: a mark, and the version's address, which is its offset.
_S390_MAGIC, _S390_VERSION = 0x10008, 0x10428

_BANNER = re.compile(rb"Linux version (\d+\.\d+[^\s\0]*)")


def _is_bzimage(data: Data) -> bool:
    return data[_MAGIC : _MAGIC + 4] == b"HdrS"


def _bzimage_release(data: Data) -> str | None:
    if not _is_bzimage(data):
        return None
    start = 0x200 + int(struct.unpack_from("<H", data, _VERSION)[0])
    return data[start : start + 256].split(b"\0")[0].split(b" ")[0].decode(errors="replace")


def _bzimage_payload(data: bytes) -> bytes | None:
    if not _is_bzimage(data):
        return None
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    start = (data[_SETUP_SECTS] + 1) * 512 + offset
    return data[start : start + length]


def _arm64_release(data: Data) -> str | None:
    if data[_ARM64_MAGIC : _ARM64_MAGIC + 4] != b"ARMd":
        return None
    found = _BANNER.search(data)
    return found[1].decode(errors="replace") if found else None


def _s390_release(data: Data) -> str | None:
    if data[_S390_MAGIC : _S390_MAGIC + 6] != b"S390EP":
        return None
    start = int(struct.unpack_from(">Q", data, _S390_VERSION)[0])
    return data[start : start + 256].split(b"\0")[0].split(b" ")[0].decode(errors="replace")


def _uncompressed(_data: bytes) -> None:
    """Say that an image is what QEMU starts as it is."""


ARCHITECTURES = {
    "x86_64": Architecture(
        name="x86_64",
        debian="amd64",
        sources="x86",
        triplet="x86_64-linux-gnu",
        little_endian=True,
        qemu="qemu-system-x86_64",
        qemu_package="qemu-system-x86",
        machine="q35,sata=off,smbus=off,i8042=off,vmport=off,usb=off,graphics=off",
        emulated_cpu="max,la57=off",
        bus="pci",
        console=("-serial", "chardev:console"),
        virtualisation=frozenset({"vmx", "svm"}),
        kernel_words="console=ttyS0 no_timer_check tsc=reliable 8250.nr_uarts=1",
        tells_clock=True,
        oops="general protection fault",
        boot_image="arch/x86/boot/bzImage",
        image_name="bzImage",
        image_release=_bzimage_release,
        image_payload=_bzimage_payload,
        registers=_X86_REGISTERS,
    ),
    "aarch64": Architecture(
        name="aarch64",
        debian="arm64",
        sources="arm64",
        triplet="aarch64-linux-gnu",
        little_endian=True,
        qemu="qemu-system-aarch64",
        qemu_package="qemu-system-arm",
        machine="virt,gic-version=3",
        # what is emulated at a price and no test needs: pointer authentication by the book, vectors
        emulated_cpu="max,pauth-impdef=on,sve=off,sme=off,lpa2=off",
        bus="pci",
        console=("-serial", "chardev:console"),
        virtualisation=frozenset(),
        kernel_words="console=ttyAMA0",
        tells_clock=False,
        oops="Unable to handle kernel|Internal error: ",
        boot_image="arch/arm64/boot/Image",
        image_name="Image",
        image_release=_arm64_release,
        image_payload=_uncompressed,
        registers=_ARM64_REGISTERS,
        alone=("-mno-outline-atomics",),
    ),
    "s390x": Architecture(
        name="s390x",
        debian="s390x",
        sources="s390",
        triplet="s390x-linux-gnu",
        little_endian=False,
        qemu="qemu-system-s390x",
        qemu_package="qemu-system-s390x",
        machine="s390-ccw-virtio",
        emulated_cpu="max",
        bus="ccw",
        console=("-device", "sclpconsole,chardev=console"),
        virtualisation=frozenset(),
        kernel_words="console=ttysclp0",
        tells_clock=False,
        oops="Unable to handle kernel|specification exception: |protection exception: ",
        boot_image="arch/s390/boot/bzImage",
        image_name="bzImage",
        image_release=_s390_release,
        image_payload=_uncompressed,
        registers=_S390_REGISTERS,
    ),
}


def native() -> Architecture:
    """Return the architecture of this machine, whose guests need nothing that is not here.

    On one that the table does not have it is x86-64, as the default of what is asked for.
    """
    return ARCHITECTURES.get(platform.machine(), ARCHITECTURES["x86_64"])


def named(name: str) -> Architecture | None:
    """Return the architecture that Debian or ``uname -m`` calls so; None for no entry."""
    found = (one for one in ARCHITECTURES.values() if name in {one.name, one.debian})
    return next(found, None)
