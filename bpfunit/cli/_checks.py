"""What a machine needs to run bpfunit, one check a function; nothing here changes anything.

A check looks at the machine as it is (``PATH``, files, ``/proc``) and returns a :class:`Finding`.
Versions below which something does not work are stated here with the reason.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from virtme.mkinitramfs import find_busybox

from bpfunit._arch import native
from bpfunit._paths import (
    WRITABLE_CACHE,
    cache_dir,
    chosen_libbpf,
    nearest_directory,
    vm_dir,
)
from bpfunit._sys import libbpf
from bpfunit.cli._common import human_size

Status = Literal["ok", "note", "missing"]

OLDEST_PYTHON = (3, 10)
# One unpacked kernel with headers takes about 0.6 GiB, its packages as much while they unpack.
WANTED_DISK = 3 << 30
# The archive that a guest starts from has 4 MiB, a panic's console log some 10 KiB.
WANTED_TEMPORARY = 16 << 20
# A guest gets 1 GiB by default, pytest and QEMU on the host need the rest.
WANTED_MEMORY = 2 << 30
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# What to type for a Debian package name under other package managers, where the name differs.
_INSTALLERS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("apt-get", "apt-get install", {}),
    (
        "dnf",
        "dnf install",
        {
            "qemu-system-x86": "qemu-system-x86-core",
            "libbpf1": "libbpf",
            "libbpf-dev": "libbpf-devel",
        },
    ),
    (
        "pacman",
        "pacman -S",
        {"libbpf1": "libbpf", "libbpf-dev": "libbpf", "bpftool": "bpf", "libelf-dev": "libelf"},
    ),
    (
        "zypper",
        "zypper install",
        {"libbpf-dev": "libbpf-devel", "libelf-dev": "libelf-devel"},
    ),
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        name: what was looked at.
        status: ``ok``; ``note`` for something that limits but does not stop; ``missing`` stops.
        found: what is there, in a few words.
        purpose: what it is needed for.
        remedy: what to type or do, or "" when nothing needs doing.
    """

    name: str
    status: Status
    found: str
    purpose: str
    remedy: str = ""


def install_command(package: str) -> str:
    """Return the command that installs a package, given its Debian name, on this machine."""
    for manager, command, names in _INSTALLERS:
        if shutil.which(manager):
            prefix = "" if os.geteuid() == 0 else "sudo "
            return f"{prefix}{command} {names.get(package, package)}"
    return f"install the package that Debian calls {package}"


def first_line(*command: str) -> str:
    """Return the first line that a command prints, or "" when it is absent or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def qemu_version() -> tuple[int, int] | None:
    """Return QEMU's (major, minor) version, or None when there is no QEMU on the path."""
    match = re.search(
        r"version (\d+)\.(\d+)",
        first_line(native().qemu, "--version"),
    )
    return (int(match[1]), int(match[2])) if match else None


def check_machine() -> Finding:
    """Look at the system and processor: guests are Linux on the one that the table has."""
    found = f"{platform.system()} {platform.machine()}"
    name = native().name.replace("_", "-")
    purpose = f"guests run {name} kernels"
    if platform.system() != "Linux":
        return Finding("machine", "missing", found, purpose, "use a Linux machine, container or VM")
    if platform.machine() != native().name:
        return Finding("machine", "missing", found, purpose, f"use an {name} machine")
    return Finding("machine", "ok", found, purpose)


def check_python() -> Finding:
    """Look at the interpreter; guests run the same one."""
    found = platform.python_version()
    purpose = "runs the tests, on the host and in the guest"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", "missing", found, purpose, "use Python 3.10 or newer")
    return Finding("python", "ok", found, purpose)


def check_qemu() -> Finding:
    """Look for QEMU; its age matters only under software emulation, see the accelerator."""
    purpose = "runs the throwaway kernels"
    version = qemu_version()
    if version is None:
        return Finding(
            "qemu", "missing", "not on the path", purpose, install_command(native().qemu_package)
        )
    return Finding("qemu", "ok", f"{version[0]}.{version[1]}", purpose)


def check_busybox() -> Finding:
    """Look for a static busybox, the first process of a guest."""
    purpose = "the first process of a guest; must be statically linked"
    busybox = find_busybox("/", is_native=True)
    if not busybox:
        return Finding(
            "busybox", "missing", "no static busybox", purpose, install_command("busybox-static")
        )
    return Finding("busybox", "ok", str(busybox), purpose)


def check_libbpf() -> Finding:
    """Look for libbpf's shared library, which the loader binds: which version, which file, why."""
    purpose = "loads BPF objects (in the guest, which sees this machine's libraries)"
    try:
        version = (libbpf.lib().libbpf_version_string() or b"").decode()
    except libbpf.LibbpfMissingError as error:
        remedy = "unset BPFUNIT_LIBBPF" if chosen_libbpf() else install_command("libbpf1")
        return Finding("libbpf", "missing", str(error), purpose, remedy)
    why = ""
    if chosen_libbpf():
        explicit = "BPFUNIT_LIBBPF" in os.environ
        why = f", chosen by {'BPFUNIT_LIBBPF' if explicit else 'LD_LIBRARY_PATH'}, in guests too"
    return Finding("libbpf", "ok", f"{version} ({libbpf.path()}{why})", purpose)


def check_clang() -> Finding:
    """Look for clang, without which no BPF object is built here."""
    purpose = "compiles BPF programs (not needed to test an object built elsewhere)"
    found = first_line("clang", "--version")
    if not found:
        return Finding("clang", "note", "not on the path", purpose, install_command("clang"))
    return Finding("clang", "ok", found, purpose)


def check_bpf_headers() -> Finding:
    """Look for bpf_helpers.h where clang searches it."""
    purpose = "<bpf/bpf_helpers.h>, which BPF programs include"
    header = Path("/usr/include/bpf/bpf_helpers.h")
    if not header.exists():
        return Finding(
            "libbpf headers", "note", f"no {header}", purpose, install_command("libbpf-dev")
        )
    return Finding("libbpf headers", "ok", str(header), purpose)


def check_compiler() -> Finding:
    """Look for gcc and make, which build the kernel module."""
    purpose = "build the module that gives kernels the missing TEST_RUN"
    absent = [tool for tool in ("gcc", "make") if not shutil.which(tool)]
    if absent:
        remedy = install_command(" ".join(absent))
        return Finding("gcc, make", "note", f"no {', '.join(absent)}", purpose, remedy)
    return Finding("gcc, make", "ok", first_line("gcc", "--version"), purpose)


def check_build_root() -> Finding:
    """Look for mmdebstrap, needed where the host's C library is older than a kernel's tools."""
    purpose = "a small root for kernels whose build tools need a newer C library"
    if not shutil.which("mmdebstrap"):
        return Finding(
            "mmdebstrap", "note", "not on the path", purpose, install_command("mmdebstrap")
        )
    return Finding("mmdebstrap", "ok", first_line("mmdebstrap", "--version"), purpose)


def check_fetching() -> Finding:
    """Look for what fetching kernels takes: apt and the archive's keys."""
    purpose = "fetch kernels from Debian's archive and check their signatures"
    if not shutil.which("apt-get"):
        remedy = "give kernels by path (--kernel /path/to/bzImage), or use a Debian machine"
        return Finding("kernel packages", "note", "no apt-get", purpose, remedy)
    if not KEYRING.exists():
        remedy = install_command("debian-archive-keyring")
        return Finding("kernel packages", "note", f"no {KEYRING}", purpose, remedy)
    return Finding("kernel packages", "ok", f"apt-get, {KEYRING.name}", purpose)


def check_bpftool() -> Finding:
    """Look for bpftool, which only the eyes need."""
    purpose = "vmlinux.h, and a look at programs and maps by hand"
    path = shutil.which("bpftool", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not path:
        return Finding("bpftool", "note", "not on the path", purpose, install_command("bpftool"))
    return Finding("bpftool", "ok", path, purpose)


def check_disk() -> Finding:
    """Look at the room in the cache directory."""
    cache = cache_dir()
    purpose = f"kernels are kept in {cache}"
    there = nearest_directory(cache)
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Finding("cache", "missing", f"{there} is not writable", purpose, WRITABLE_CACHE)
    if free < WANTED_DISK:
        remedy = "point BPFUNIT_CACHE to a disk with room, or `bpfunit kernels remove` old ones"
        return Finding("cache", "note", f"{human_size(free)} free, 3 GiB wanted", purpose, remedy)
    return Finding("cache", "ok", f"{human_size(free)} free", purpose)


def check_temporary() -> Finding:
    """Look at the room for what a guest starts from and logs to, which goes with the run."""
    directory = tempfile.gettempdir()
    purpose = f"start files and console logs of guests, in {directory}"
    free = shutil.disk_usage(directory).free
    found = f"{human_size(free)} free"
    if free < WANTED_TEMPORARY:
        remedy = "point TMPDIR to a directory with room"
        wanted = human_size(WANTED_TEMPORARY)
        return Finding("temporary", "missing", f"{found}, {wanted} wanted", purpose, remedy)
    return Finding("temporary", "ok", found, purpose)


def check_memory() -> Finding:
    """Look at the memory that is available for guests."""
    purpose = "each guest takes 1 GiB unless told otherwise"
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    available = int(match[1]) << 10 if match else 0
    found = f"{human_size(available)} available"
    if available < WANTED_MEMORY:
        return Finding("memory", "note", found, purpose, "close something, or run one kernel only")
    return Finding("memory", "ok", found, purpose)


def check_package_data() -> Finding:
    """Look for the module's source and the kernel catalogue, which the wheel carries."""
    purpose = "the module's source and the kernel catalogue"
    absent = [name for name in ("testrun", "kernels.toml") if not (vm_dir() / name).exists()]
    if absent:
        remedy = "reinstall: pip install --force-reinstall bpfunit"
        found = f"{vm_dir()} lacks {', '.join(absent)}"
        return Finding("package data", "missing", found, purpose, remedy)
    return Finding("package data", "ok", str(vm_dir()), purpose)


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_machine,
    check_python,
    check_package_data,
    check_qemu,
    check_busybox,
    check_libbpf,
    check_clang,
    check_bpf_headers,
    check_compiler,
    check_build_root,
    check_fetching,
    check_bpftool,
    check_disk,
    check_temporary,
    check_memory,
)
