"""Which accelerator QEMU can use here, found by trying and not by looking at /dev/kvm alone."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bpfunit._arch import native
from bpfunit.guest.errors import GuestError

# include/uapi/linux/kvm.h
_KVM_GET_API_VERSION, _KVM_CREATE_VM, _KVM_CREATE_VCPU = 0xAE00, 0xAE01, 0xAE41
_KVM_API_VERSION = 12

_SAFE_QEMU = 10  # first major version whose software emulation runs 6.12 and newer correctly
_FRAGILE_FROM = (6, 12)


@dataclass(frozen=True)
class Kvm:
    """Whether KVM can run a guest, and why not.

    Attributes:
        usable: guests may use it.
        reason: why not, for people; "" when it is usable.
    """

    usable: bool
    reason: str = ""


def probe_kvm(device: Path = Path("/dev/kvm"), cpuinfo: Path = Path("/proc/cpuinfo")) -> Kvm:
    """Find out whether KVM can run a guest, without starting QEMU.

    The device can exist and open where the processor offers no virtualisation; QEMU then hangs in
    the firmware instead of failing. So the processor's flags are asked first.

    Args:
        device: the KVM device.
        cpuinfo: the processor's description.
    """
    if not device.exists():
        return Kvm(False, f"there is no {device}")
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    wanted = native().virtualisation
    if wanted and (flags is None or not wanted & set(flags[1].split())):
        lacks = " nor ".join(sorted(wanted, reverse=True))
        return Kvm(False, f"{device} is there, but the processor has neither {lacks}")
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return Kvm(False, f"{device} cannot be opened: {(error.strerror or '').lower()}")
    try:
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION, 0)
        if version != _KVM_API_VERSION:
            return Kvm(False, f"{device} speaks API version {version}, not {_KVM_API_VERSION}")
        machine = fcntl.ioctl(fd, _KVM_CREATE_VM, 0)
        try:
            os.close(fcntl.ioctl(machine, _KVM_CREATE_VCPU, 0))
        finally:
            os.close(machine)
    except OSError as error:
        return Kvm(False, f"{device} makes no machine: {(error.strerror or '').lower()}")
    finally:
        os.close(fd)
    return Kvm(True)


def foreign_kvm() -> Kvm:
    """Return why KVM runs no kernel of another architecture."""
    return Kvm(False, f"it runs kernels for {native().debian} alone here")


@functools.lru_cache(maxsize=8)
def qemu(emulator: Path | None = None) -> tuple[str, tuple[int, int]]:
    """Return QEMU's path and version.

    Args:
        emulator: the one to use; by default the one that this machine has for its own guests.

    Raises:
        GuestError: there is none, or it does not start.
    """
    arch = native()
    path = str(emulator) if emulator else shutil.which(arch.qemu)
    if path is None:
        raise GuestError(
            f"find QEMU: no {arch.qemu} in PATH; install {arch.qemu_package} "
            "(Debian 12: from bookworm-backports, version 10)"
        )
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    found = re.search(r"version (\d+)\.(\d+)", done.stdout)
    if found is None:
        raise GuestError(f"ask {path} for its version: {done.stderr.strip() or done.stdout!r}")
    return path, (int(found[1]), int(found[2]))


def choose(asked: str, release: str, kvm: Kvm | None = None, emulator: Path | None = None) -> str:
    """Return the accelerator to use: ``"kvm"``, ``"tcg"`` or ``"icount"``.

    Args:
        asked: what the user wants, one of those or ``"auto"``.
        release: the kernel that will boot.
        kvm: what is known about KVM; probed by default.
        emulator: the QEMU of another architecture, for which there is no KVM; None for a kernel of
            this machine's.

    Raises:
        GuestError: KVM was asked for and does not work, or QEMU is too old to emulate the kernel.
    """
    if asked in {"auto", "kvm"}:
        kvm = kvm or (foreign_kvm() if emulator else probe_kvm())
        if kvm.usable:
            return "kvm"
        if asked == "kvm":
            raise GuestError(
                f"use KVM: {kvm.reason}; use --guest-accel tcg, which is slower and needs no KVM"
            )
    path, version = qemu(emulator)
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers and (int(numbers[1]), int(numbers[2])) >= _FRAGILE_FROM and version[0] < _SAFE_QEMU:
        why = f" (KVM: {kvm.reason})" if kvm else ""
        raise GuestError(
            f"emulate {release}: {path} is version {version[0]}.{version[1]}, whose software "
            f"emulation corrupts kernels from 6.12 on{why}; install QEMU {_SAFE_QEMU} or newer "
            f"(Debian 12: apt-get install -t bookworm-backports {native().qemu_package})"
        )
    return "icount" if asked == "icount" else "tcg"
