"""The loops that Python is too slow for, in C, compiled on first use and cached.

The host compiles it before a guest starts, so that the guest finds it in the cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from bpfunit._paths import cache_dir

SOURCES = [Path(__file__).with_name(name) for name in ("bulk.c", "explore.c", "rewind.c")]
_COMPILERS = ("cc", "gcc", "clang")
PATH_VARIABLE = "BPFUNIT_NATIVE"
_TIMEOUT_S = 120  # a loaded machine under emulation; one file takes a second natively

ANSWER_SIZE = 4  # struct bpfunit_result of the module: all of data_out that the loop keeps

_ptr, _i32, _u32, _u64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, ctypes.c_uint64


class Storage(ctypes.Structure):
    """``struct storage`` of ``bulk.c``."""

    _fields_ = [("map_fd", _i32), ("value_size", _u32), ("values", _ptr), ("present", _ptr)]


class ExploredMap(ctypes.Structure):
    """``struct explored_map`` of ``explore.c``."""

    _fields_ = [
        ("fd", _i32),
        ("kind", _u32),
        ("key_size", _u32),
        ("value_size", _u32),
        ("initial", _ptr),
    ]


class Ring(ctypes.Structure):
    """``struct ring`` of ``explore.c``."""

    _fields_ = [("consumer", _ptr), ("producer", _ptr), ("data", _ptr), ("mask", _u64)]


class ExploredSite(ctypes.Structure):
    """``struct site`` of ``explore.c``."""

    _fields_ = [
        ("has_a", ctypes.c_uint8),
        ("has_b", ctypes.c_uint8),
        ("key_size", ctypes.c_uint16),
        ("map", _i32),
    ]


class Exploration(ctypes.Structure):
    """``struct exploration`` of ``explore.c``."""

    _fields_ = [
        ("prog_fd", _i32),
        ("spy_fd", _i32),
        ("answer_size", _u32),
        ("has_ctx_out", _u32),
        ("data_room", _u32),
        ("fd_offset", _i32),
        ("made_of_offset", _i32),
        ("maps", _u32),
        ("rings", _u32),
        ("sites", _u32),
        ("map", _ptr),
        ("ring", _ptr),
        ("site", _ptr),
        ("head", _ptr),
        ("record_mask", _u64),
        ("stub", _ptr),
        ("stub_default", _ptr),
        ("stub_size", _u64),
        ("in_", _ptr),
        ("in_size", _u64),
        ("out", _ptr),
        ("out_room", _u64),
        ("out_used", _u64),
        ("socket_fd", ctypes.c_int64),
    ]


class Job(ctypes.Structure):
    """``struct job`` of ``bulk.c``."""

    _fields_ = [
        ("prog_fd", _i32),
        ("repeat", _u32),
        ("count", _u64),
        ("ctx_size", _u32),
        ("answer_size", _u32),
        ("fd_offset", _i32),
        ("made_of_offset", _i32),
        ("ctx_in", _ptr),
        ("ctx_out", _ptr),
        ("retval", _ptr),
        ("duration", _ptr),
        ("verdict", _ptr),
        ("error", _ptr),
        ("sock_fd", _i32),
        ("storages", _u32),
        ("storage", _ptr),
        ("recorder", _ptr),
        ("record_size", _u32),
        ("recorder_capacity", _u32),
        ("calls", _ptr),
        ("calls_capacity", _u64),
        ("calls_used", _u64),
        ("call_count", _ptr),
    ]


class RewoundMap(ctypes.Structure):
    """``struct rewound_map`` of ``rewind.c``."""

    _fields_ = [
        ("fd", _i32),
        ("way", _u32),
        ("key_size", _u32),
        ("value_size", _u32),
        ("max_entries", _u32),
        ("known", _i32),
        ("keys", _ptr),
        ("initial", _ptr),
        ("memory", ctypes.c_int64),
        ("frozen", _i32),
        ("error", _i32),
    ]


class Way(IntEnum):
    """``enum way`` of ``rewind.c``."""

    BATCH = 0
    WALK = 1
    SLOTS = 2
    POP = 3
    ELEMENTS = 4
    SOCKETS = 5
    DRAINED = 6


def library_path() -> Path:
    """Return where the compiled loops are, or would be; the name has the sources' hash.

    A guest runs as root, whose cache may be another than that of the user who started it: the host
    hands the path over in ``$BPFUNIT_NATIVE``.
    """
    handed = Path(os.environ.get(PATH_VARIABLE, "/nonexistent"))
    if handed.is_file():
        return handed
    sources = b"".join(source.read_bytes() for source in SOURCES)
    digest = hashlib.sha256(sources).hexdigest()[:16]
    return cache_dir() / "native" / f"loops-{platform.machine()}-{digest}.so"


def build() -> Path | None:
    """Compile the loops unless that is done; return the library, None without a C compiler."""
    target = library_path()
    if target.exists():
        return target
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".so", dir=target.parent)
    except OSError:
        return None  # a cache that cannot be written: the loop in Python serves
    os.close(handle)
    command = [compiler, "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-o", name]
    command += map(str, SOURCES)
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
        Path(name).replace(target)
    except (OSError, subprocess.SubprocessError):
        with contextlib.suppress(OSError):
            Path(name).unlink()
        return None
    return target


@lru_cache(maxsize=1)
def _library() -> Any:
    path = build()
    return None if path is None else ctypes.CDLL(str(path))


def _function(name: str, *arguments: Any, result: Any = _u64) -> Any:
    library = _library()
    if library is None:
        return None
    function = getattr(library, name)
    function.argtypes, function.restype = arguments, result
    return function


@lru_cache(maxsize=1)
def run_many() -> Any:
    """Return the function of ``bulk.c``, None where it cannot be had."""
    return _function("bpfunit_run_many", ctypes.POINTER(Job), _u64)


@lru_cache(maxsize=1)
def explore() -> Any:
    """Return the function of ``explore.c``, None where it cannot be had."""
    return _function("bpfunit_explore", ctypes.POINTER(Exploration), _u64)


@lru_cache(maxsize=1)
def rewind() -> Any:
    """Return the function of ``rewind.c``, None where it cannot be had."""
    return _function("bpfunit_rewind", _ptr, _u32, result=_u32)


def map_state(fd: int) -> tuple[int, int]:
    """Return what the kernel says of a map: the bytes accounted to it, and whether it is frozen.

    Either is -1 where this kernel does not say it.

    Raises:
        OSError: there is no such descriptor.
    """
    library = _library()
    memory, frozen = ctypes.c_int64(), _i32()
    error = library.bpfunit_map_state(_i32(fd), ctypes.byref(memory), ctypes.byref(frozen))
    if error:
        raise OSError(error, os.strerror(error))
    return memory.value, frozen.value
