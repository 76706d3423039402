"""The loops that Python is too slow for, in C, compiled on first use and cached.

The host compiles it before a guest starts, so that the guest finds it in the cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from enum import IntEnum
from functools import lru_cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from bpfunit._paths import cache_dir

SOURCES = [Path(__file__).with_name(name) for name in ("bulk.c", "explore.c", "rewind.c")]
EXTENSION_SOURCES = [Path(__file__).with_name(name) for name in ("calls.c", "python_abi.h")]
#: All that guests of another architecture have to be given, by what the names start with.
LIBRARIES = {"loops": SOURCES, "calls": EXTENSION_SOURCES}
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
        ("socket_offset", _i32),
        ("answer_head", _u32),
        ("answer_shown", _u32),
        ("reserved", _u32),
    ]


class Stored(ctypes.Structure):
    """``struct stored`` of ``calls.c``."""

    _fields_ = [("map_fd", _i32), ("value_size", _u32)]


class WatchedRing(ctypes.Structure):
    """``struct ring`` of ``calls.c``."""

    _fields_ = [
        ("consumer", _ptr),
        ("producer", _ptr),
        ("data", _ptr),
        ("mask", _u64),
        ("until", _u64),
    ]


class Probes(ctypes.Structure):
    """``struct probes`` of ``calls.c``."""

    _fields_ = [
        ("memory", _ptr),
        ("earlier", _ptr),
        ("size", _u32),
        ("width", _u32),
        ("was_hit", _u32),
        ("number", _u32),
    ]


class Probed(ctypes.Structure):
    """``struct probed`` of ``calls.c``."""

    _fields_ = [("count", _u64), ("programs", _ptr)]


class Run(ctypes.Structure):
    """``struct run`` of ``calls.c``."""

    _fields_ = [
        ("prog_fd", _i32),
        ("flags", _u32),
        ("fd_offset", _i32),
        ("made_of_offset", _i32),
        ("has_ctx_out", _u32),
        ("asks_for_engine", _u32),
        ("storages", _u32),
        ("rings", _u32),
        ("recorders", _u32),
        ("storage", _ptr),
        ("ring", _ptr),
        ("recorder", _ptr),
        ("record_size", _u32),
        ("recorder_capacity", _u32),
        ("probed", _ptr),
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
    return handed if handed.is_file() else cache_dir() / "native" / _named("loops", SOURCES)


def extension_path() -> Path:
    """Return where the Python extension is, or would be: beside the loops."""
    return library_path().with_name(_named("calls", EXTENSION_SOURCES))


def _named(name: str, sources: list[Path]) -> str:
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    return f"{name}-{platform.machine()}-{digest}.so"


def build() -> Path | None:
    """Compile what is not compiled yet; return the loops, None without a C compiler."""
    build_extension()
    return _build(library_path(), SOURCES)


def build_extension() -> Path | None:
    """Compile the Python extension; None without a C compiler, or for a Python that it is not for.

    It is for CPython with a global interpreter lock, whose objects have the layout of the stable
    ABI.
    """
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None
    return _build(extension_path(), EXTENSION_SOURCES[:1])


def _build(target: Path, sources: list[Path]) -> Path | None:
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
    command += map(str, sources)
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
        Path(name).replace(target)
    except (OSError, subprocess.SubprocessError):
        with contextlib.suppress(OSError):
            Path(name).unlink()
        return None
    return target


@lru_cache(maxsize=1)
def extension() -> Any:
    """Return the module of ``calls.c``, None where it cannot be had."""
    path = build_extension()
    if path is None:
        return None
    loader = ExtensionFileLoader("bpfunit_calls", str(path))
    try:
        module = module_from_spec(spec_from_loader(loader.name, loader))  # type: ignore[arg-type]
        loader.exec_module(module)
    except ImportError:
        return None  # made for another Python: the same is done here, slower
    return module


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


class _Buffer(ctypes.Structure):
    """``Py_buffer`` of CPython."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


def address_of(memory: mmap.mmap | memoryview) -> int:
    """Return where a mapping lies, also one that cannot be written, which ctypes refuses."""
    view = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(memory), ctypes.byref(view), 0)
    address = view.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return int(address or 0)
