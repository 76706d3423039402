"""What this kernel can do, asked of the kernel itself rather than guessed from its version.

Behind the marker ``needs(…)``: a kernel older than a feature skips a test, a newer one that lacks
it fails it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from bpfunit._sys import bpf, kernel, libbpf
from bpfunit._sys.uapi import MapType, ProgType
from bpfunit.errors import BpfunitError, NotFoundError, SyscallError
from bpfunit.progtypes.base import type_of
from bpfunit.rewrite import insn
from bpfunit.values import btfbytes
from bpfunit.values.btf import NAMED_KINDS, SPELLED

MODULE = "bpfunit_testrun"

_REFUSALS = ("unknown func", "invalid func", "cannot use helper")


def kernel_release() -> str:
    """Return the exact release, as ``uname -r`` prints it."""
    return os.uname().release


def kernel_version() -> tuple[int, int, int]:
    """Return (major, minor, patch) of the running kernel."""
    return kernel.version()


def module_loaded() -> bool:
    """Tell whether bpfunit's module is loaded, with the test runs that Linux has not."""
    return Path("/sys/module", MODULE).is_dir()


def module_version() -> str | None:
    """Return the source version of the loaded module, None when it is not loaded."""
    path = Path("/sys/module", MODULE, "srcversion")
    return path.read_text().strip() if path.exists() else None


def has_jit() -> bool:
    """Tell whether the kernel compiles programs for its processor; else it interprets them."""
    return kernel.has_jit()


@lru_cache(maxsize=1)
def _vmlinux() -> int:
    """Return libbpf's handle of the kernel's own BTF, kept for the process; 0 without BTF."""
    try:
        handle: int = libbpf.lib().btf__load_vmlinux_btf()
    except BpfunitError:
        return 0
    return handle


def _find(name: str, kind: int) -> int:
    """Return the id of a type of the kernel, 0 when it has none of this name and kind."""
    handle = _vmlinux()
    found = libbpf.lib().btf__find_by_name_kind(handle, name.encode(), kind) if handle else 0
    return max(0, int(found))


@lru_cache(maxsize=1)
def _helper_numbers() -> dict[str, int]:
    """Return the kernel's helpers by name, from ``enum bpf_func_id`` in its BTF."""
    lib, handle = libbpf.lib(), _vmlinux()
    address = lib.btf__type_by_id(handle, _find("bpf_func_id", btfbytes.ENUM)) if handle else None
    if not address:
        return {}
    # struct btf_type {name_off; info; size}, then the members
    vlen = ctypes.c_uint32.from_address(address + 4).value & 0xFFFF
    members = btfbytes.enum_members(ctypes.string_at(address + 12, 8 * vlen), 0, vlen)
    names = ((lib.btf__name_by_offset(handle, offset).decode(), value) for offset, value in members)
    return {f"bpf_{name.removeprefix('BPF_FUNC_')}": value for name, value in names}


def _number(names: type[ProgType] | type[MapType], name: str) -> int:
    numbers = {member.name.lower(): int(member) for member in names}
    if name.lower() not in numbers:
        raise NotFoundError(f"look up {names.__name__}", name, sorted(numbers))
    return numbers[name.lower()]


@lru_cache(maxsize=256)
def has_helper(helper: str, prog_type: str = "cgroup_sock_addr", attach_type: int = -1) -> bool:
    """Tell whether programs of a type may call a helper ("bpf_get_retval").

    The number comes from the kernel's BTF, the answer from its verifier. libbpf's own probe (1.1)
    does not know the words in which kernels since 6.8 refuse a helper, and takes them for a yes.

    Args:
        helper: its name.
        prog_type: the type of the program.
        attach_type: ``enum bpf_attach_type``, by default a usual one of the program type.

    Raises:
        SyscallError: EPERM, the probe needs root.
    """
    number = _helper_numbers().get(helper if helper.startswith("bpf_") else f"bpf_{helper}")
    if number is None:
        return False
    type_number = _number(ProgType, prog_type)
    if attach_type < 0:
        attach_type = type_of(type_number).usual_attach_type
    code = insn.encode([insn.call(number), insn.exit_()])
    fd, log = bpf.prog_load("bpfunit_probe", type_number, attach_type, code)
    if fd >= 0:
        os.close(fd)
        return True
    if -fd == errno.EPERM:
        raise SyscallError(f"probe helper {helper}", -fd, bpf.hint(errno.EPERM))
    # arguments are missing, so a helper that may be called is refused for that
    return bool(log) and not any(refusal in log for refusal in _REFUSALS)


def has_kfunc(name: str) -> bool:
    """Tell whether the kernel (not its modules) has this function in its BTF."""
    return bool(_find(name, btfbytes.FUNC))


def has_map_type(name: str) -> bool:
    """Tell whether maps of a type ("ringbuf", "sk_storage") can be made."""
    return bool(libbpf.lib().libbpf_probe_bpf_map_type(_number(MapType, name), None))


def has_prog_type(name: str) -> bool:
    """Tell whether programs of a type ("cgroup_sock_addr") can be loaded."""
    return bool(libbpf.lib().libbpf_probe_bpf_prog_type(_number(ProgType, name), None))


def has_type(name: str) -> bool:
    """Tell whether the kernel's BTF has a type of this C name ("struct sock", "u32")."""
    prefix, _, rest = name.partition(" ")
    if prefix in SPELLED:
        return bool(_find(rest, SPELLED[prefix]))
    return any(_find(name, kind) for kind in NAMED_KINDS)


def missing(
    *,
    helper: str | None = None,
    kfunc: str | None = None,
    map_type: str | None = None,
    prog_type: str | None = None,
    type: str | None = None,
    module: bool = False,
) -> str | None:
    """Return what of the asked features this kernel lacks, as a reason; None for nothing."""
    for_type = prog_type or "cgroup_sock_addr"
    checks: list[tuple[object, Callable[[], bool], str]] = [
        (helper, lambda: has_helper(helper or "", for_type), f"helper {helper} for {for_type}"),
        (kfunc, lambda: has_kfunc(kfunc or ""), f"kernel function {kfunc}"),
        (map_type, lambda: has_map_type(map_type or ""), f"map type {map_type}"),
        (prog_type, lambda: has_prog_type(prog_type or ""), f"program type {prog_type}"),
        (type, lambda: has_type(type or ""), f"kernel type {type}"),
        (module, module_loaded, f"module {MODULE}"),
    ]
    lacking = [what for asked, check, what in checks if asked and not check()]
    return f"{kernel_release()} has no {', no '.join(lacking)}" if lacking else None
