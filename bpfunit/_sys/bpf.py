"""The ``bpf(2)`` system call and the few commands for which libbpf adds nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from bpfunit._arch import SYS_BPF
from bpfunit._sys import uapi
from bpfunit._sys.uapi import Cmd
from bpfunit.errors import SyscallError

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t]
_syscall.restype = ctypes.c_long

_mount = _libc.mount
_mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
]
_mount.restype = ctypes.c_int

_HINTS = {
    errno.EPERM: "load and run as root, in a guest: pytest --kernel 6.12",
    errno.ENOMEM: "the memory limit (RLIMIT_MEMLOCK) or the guest's memory may be too low",
}


def hint(error: int) -> str:
    """Return what the reader of an error can do about it, "" when that is not known."""
    if error == errno.EPERM and os.geteuid() == 0:
        return ""  # it is not for lack of root
    return _HINTS.get(error, "")


def call(cmd: int, attr: ctypes.Structure) -> int:
    """Make one ``bpf(2)`` call and return its result, or the negative errno."""
    result: int = _syscall(SYS_BPF, cmd, ctypes.addressof(attr), ctypes.sizeof(attr))
    return result if result >= 0 else -ctypes.get_errno()


def call_checked(operation: str, cmd: int, attr: ctypes.Structure, advice: str = "") -> int:
    """Make one ``bpf(2)`` call; raise SyscallError with ``operation`` in front when it fails."""
    result = call(cmd, attr)
    if result < 0:
        raise SyscallError(operation, -result, advice or hint(-result))
    return result


@lru_cache(maxsize=1)
def raise_memlock_limit() -> None:
    """Lift RLIMIT_MEMLOCK, which bounds BPF memory before 5.11; libbpf does it for itself only."""
    infinity = resource.RLIM_INFINITY
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (infinity, infinity))
    except (ValueError, OSError):
        return  # not root: the load itself then fails with EPERM, whose message says what to do


def map_create(
    name: str,
    map_type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int = 0,
) -> int:
    """Create a map and return its descriptor, which the caller closes."""
    raise_memlock_limit()
    attr = uapi.MapCreateAttr(
        map_type=map_type,
        key_size=key_size,
        value_size=value_size,
        max_entries=max_entries,
        map_flags=flags,
        map_name=name.encode()[: uapi.OBJ_NAME_LEN - 1],
    )
    return call_checked(f"create map {name}", Cmd.MAP_CREATE, attr)


def prog_load(
    name: str,
    prog_type: int,
    attach_type: int,
    insns: bytes,
    log_size: int = 1 << 16,
) -> tuple[int, str]:
    """Load raw instructions under the GPL; return the descriptor or negative errno, and the log."""
    raise_memlock_limit()
    code = ctypes.create_string_buffer(insns, len(insns))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = uapi.ProgLoadAttr(
        prog_type=prog_type,
        insn_cnt=len(insns) // 8,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(licence),
        expected_attach_type=attach_type,
        prog_name=name.encode()[: uapi.OBJ_NAME_LEN - 1],
    )
    result = call(Cmd.PROG_LOAD, attr)
    if result >= 0:
        return result, ""
    log = ctypes.create_string_buffer(log_size)
    attr.log_level, attr.log_size, attr.log_buf = 1, log_size, ctypes.addressof(log)
    retried = call(Cmd.PROG_LOAD, attr)
    return retried, log.value.decode(errors="replace")


_Info = TypeVar("_Info", uapi.ProgInfo, uapi.MapInfo)


def object_info(operation: str, fd: int, info: _Info) -> _Info:
    """Fill ``info`` (ProgInfo or MapInfo) for the object behind ``fd``."""
    attr = uapi.InfoAttr(bpf_fd=fd, info_len=ctypes.sizeof(info), info=ctypes.addressof(info))
    call_checked(operation, Cmd.OBJ_GET_INFO_BY_FD, attr)
    return info


def fd_by_id(operation: str, cmd: Cmd, object_id: int) -> int:
    """Open the program, map or BTF with this id; the caller closes the descriptor."""
    return call_checked(operation, cmd, uapi.ByIdAttr(id=object_id))


def require_bpf_fd(operation: str, fd: int, object_type: str) -> None:
    """Refuse a descriptor that is not an open BPF object of ``object_type`` ("prog" or "map")."""
    try:
        target = str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError as error:
        raise SyscallError(operation, error.errno or errno.EBADF, f"fd {fd} is not open") from None
    expected = "program" if object_type == "prog" else object_type
    if target != f"anon_inode:bpf-{object_type}":
        raise SyscallError(
            operation,
            errno.EINVAL,
            f"fd {fd} is {target}, expected a BPF {expected}",
        )


def mount(filesystem: str, target: str) -> None:
    """Mount a kernel file system such as tracefs at ``target``."""
    fstype = filesystem.encode()
    if _mount(fstype, os.fsencode(target), fstype, 0, None) < 0:
        raise SyscallError(f"mount {filesystem} at {target}", ctypes.get_errno())
