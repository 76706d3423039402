"""libbpf 1.x: one table of signatures, one error convention, and its log as text.

libbpf 1.0 settled the convention (libbpf 1.0 migration guide): functions that return a pointer give
NULL and set errno; functions that return an int give a negative errno. ``_Ptr`` and ``_Int`` below
turn both into SyscallError; ``_Raw`` marks the accessors that cannot fail or whose failure the
caller decides on.
"""

from __future__ import annotations

import ctypes
import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from bpfunit._paths import chosen_libbpf
from bpfunit.errors import BpfunitError, SyscallError

_SONAME = "libbpf.so.1"
_MINIMUM = (1, 0)
_INSTALL = "install it (Debian, Ubuntu: apt install libbpf1; Fedora: dnf install libbpf)"

_int, _u32, _size, _ptr, _str, _bool = (
    ctypes.c_int,
    ctypes.c_uint32,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_bool,
)

PRINT_FN = ctypes.CFUNCTYPE(_int, _int, _ptr, _ptr)
RING_SAMPLE_FN = ctypes.CFUNCTYPE(_int, _ptr, _ptr, _size)
PERF_SAMPLE_FN = ctypes.CFUNCTYPE(None, _ptr, _int, _ptr, _u32)


class ProgLoadOpts(ctypes.Structure):
    """``struct bpf_prog_load_opts`` as of libbpf 1.0; later versions append to it."""

    _fields_ = [
        ("sz", _size),
        ("attempts", _int),
        ("expected_attach_type", _u32),
        ("prog_btf_fd", _u32),
        ("prog_flags", _u32),
        ("prog_ifindex", _u32),
        ("kern_version", _u32),
        ("attach_btf_id", _u32),
        ("attach_prog_fd", _u32),
        ("attach_btf_obj_fd", _u32),
        ("fd_array", _ptr),
        ("func_info", _ptr),
        ("func_info_cnt", _u32),
        ("func_info_rec_size", _u32),
        ("line_info", _ptr),
        ("line_info_cnt", _u32),
        ("line_info_rec_size", _u32),
        ("log_level", _u32),
        ("log_size", _u32),
        ("log_buf", _ptr),
    ]


PREPARE_LOAD_FN = ctypes.CFUNCTYPE(_int, _ptr, ctypes.POINTER(ProgLoadOpts), ctypes.c_long)


class ProgHandlerOpts(ctypes.Structure):
    """``struct libbpf_prog_handler_opts`` as of libbpf 0.8."""

    _fields_ = [
        ("sz", _size),
        ("cookie", ctypes.c_long),
        ("prog_setup_fn", _ptr),
        ("prog_prepare_load_fn", PREPARE_LOAD_FN),
        ("prog_attach_fn", _ptr),
    ]


class LibbpfMissingError(BpfunitError):
    """libbpf.so.1 is not installed, or is older than 1.0; or the chosen file is none."""


class OpenOpts(ctypes.Structure):
    """``struct bpf_object_open_opts`` as of libbpf 1.0."""

    _fields_ = [
        ("sz", _size),
        ("object_name", _str),
        ("relaxed_maps", _bool),
        ("pin_root_path", _str),
        ("_removed", _u32),
        ("kconfig", _str),
        ("btf_custom_path", _str),
        ("kernel_log_buf", _ptr),
        ("kernel_log_size", _size),
        ("kernel_log_level", _u32),
    ]


def _failed_pointer(result: int | None, func: Any, _args: tuple[Any, ...]) -> int:
    if not result:
        # errno 0 with NULL would pass for success elsewhere: it is a failure all the same
        raise SyscallError(func.__name__, ctypes.get_errno() or errno.EINVAL)
    return result


def _failed_int(result: int, func: Any, _args: tuple[Any, ...]) -> int:
    if result < 0:
        raise SyscallError(func.__name__, -result)
    return result


_Check = Callable[[Any, Any, "tuple[Any, ...]"], Any]
_Ptr: _Check = _failed_pointer
_Int: _Check = _failed_int
_Raw: _Check | None = None

# name: (result, arguments, check)
_SIGNATURES: dict[str, tuple[Any, list[Any], _Check | None]] = {
    "libbpf_major_version": (_u32, [], _Raw),
    "libbpf_minor_version": (_u32, [], _Raw),
    "libbpf_version_string": (_str, [], _Raw),
    "libbpf_set_print": (_ptr, [PRINT_FN], _Raw),
    "libbpf_num_possible_cpus": (_int, [], _Int),
    "libbpf_probe_bpf_prog_type": (_int, [_int, _ptr], _Int),
    "libbpf_probe_bpf_map_type": (_int, [_int, _ptr], _Int),
    "bpf_object__open_file": (_ptr, [_str, ctypes.POINTER(OpenOpts)], _Ptr),
    "bpf_object__load": (_int, [_ptr], _Int),
    "bpf_object__close": (None, [_ptr], _Raw),
    "bpf_object__btf": (_ptr, [_ptr], _Raw),
    "bpf_object__next_program": (_ptr, [_ptr, _ptr], _Raw),
    "bpf_object__next_map": (_ptr, [_ptr, _ptr], _Raw),
    "bpf_program__name": (_str, [_ptr], _Raw),
    "bpf_program__section_name": (_str, [_ptr], _Raw),
    "bpf_program__type": (_int, [_ptr], _Raw),
    "bpf_program__expected_attach_type": (_int, [_ptr], _Raw),
    "bpf_program__fd": (_int, [_ptr], _Raw),
    "bpf_program__autoload": (_bool, [_ptr], _Raw),
    "bpf_program__set_autoload": (_int, [_ptr, _bool], _Int),
    "bpf_program__insns": (_ptr, [_ptr], _Raw),
    "bpf_program__insn_cnt": (_size, [_ptr], _Raw),
    "bpf_program__set_insns": (_int, [_ptr, _ptr, _size], _Int),
    "bpf_map__name": (_str, [_ptr], _Raw),
    "bpf_map__type": (_int, [_ptr], _Raw),
    "bpf_map__fd": (_int, [_ptr], _Raw),
    "bpf_map__key_size": (_u32, [_ptr], _Raw),
    "bpf_map__value_size": (_u32, [_ptr], _Raw),
    "bpf_map__reuse_fd": (_int, [_ptr, _int], _Int),
    "bpf_map__set_max_entries": (_int, [_ptr, _u32], _Int),
    "bpf_map__map_flags": (_u32, [_ptr], _Raw),
    "bpf_map__btf_key_type_id": (_u32, [_ptr], _Raw),
    "bpf_map__btf_value_type_id": (_u32, [_ptr], _Raw),
    "bpf_map__is_internal": (_bool, [_ptr], _Raw),
    "bpf_map__initial_value": (_ptr, [_ptr, ctypes.POINTER(_size)], _Raw),
    "bpf_prog_load": (
        _int,
        [_int, _str, _str, _ptr, _size, ctypes.POINTER(ProgLoadOpts)],
        _Raw,
    ),
    "libbpf_prog_type_by_name": (
        _int,
        [_str, ctypes.POINTER(_int), ctypes.POINTER(_int)],
        _Raw,
    ),
    "libbpf_register_prog_handler": (
        _int,
        [_str, _int, _int, ctypes.POINTER(ProgHandlerOpts)],
        _Int,
    ),
    "bpf_map__set_pin_path": (_int, [_ptr, _str], _Int),
    "bpf_map__pin_path": (_str, [_ptr], _Raw),
    "perf_buffer__new": (
        _ptr,
        [_int, _size, PERF_SAMPLE_FN, _ptr, _ptr, _ptr],
        _Ptr,
    ),
    "perf_buffer__consume": (_int, [_ptr], _Int),
    "perf_buffer__free": (None, [_ptr], _Raw),
    "ring_buffer__new": (_ptr, [_int, RING_SAMPLE_FN, _ptr, _ptr], _Ptr),
    "ring_buffer__add": (_int, [_ptr, _int, RING_SAMPLE_FN, _ptr], _Int),
    "ring_buffer__consume": (_int, [_ptr], _Int),
    "ring_buffer__free": (None, [_ptr], _Raw),
    "btf__parse": (_ptr, [_str, _ptr], _Ptr),
    "btf__find_by_name_kind": (_int, [_ptr, _str, _u32], _Raw),
    "btf__load_vmlinux_btf": (_ptr, [], _Ptr),
    "btf__raw_data": (_ptr, [_ptr, ctypes.POINTER(_u32)], _Ptr),
    "btf__name_by_offset": (_str, [_ptr, _u32], _Raw),
    "btf__type_by_id": (_ptr, [_ptr, _u32], _Raw),
    "btf__free": (None, [_ptr], _Raw),
}


@lru_cache(maxsize=1)
def lib() -> Any:
    """Load libbpf once per process, with every signature of the table set.

    Raises:
        LibbpfMissingError: there is no libbpf.so.1, or it lacks a function of the table; or
            ``$BPFUNIT_LIBBPF`` names none.
    """
    chosen = chosen_libbpf()
    name_of_it = f"libbpf {chosen}" if chosen else _SONAME
    remedy = "name another in BPFUNIT_LIBBPF, or none for the system's" if chosen else _INSTALL
    try:
        library = ctypes.CDLL(chosen or _SONAME, use_errno=True)
    except OSError as error:
        raise LibbpfMissingError(f"load {name_of_it}: {error}; {remedy}") from None
    for name, (restype, argtypes, check) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise LibbpfMissingError(
                f"load {name_of_it}: it has no {name}, version 1.0 or later is needed; {remedy}"
            ) from None
        function.restype, function.argtypes = restype, argtypes
        if check is not None:
            function.errcheck = check
    version = (library.libbpf_major_version(), library.libbpf_minor_version())
    if version < _MINIMUM:
        raise LibbpfMissingError(
            f"load {name_of_it}: found {version[0]}.{version[1]}, 1.0 or later is needed; {remedy}"
        )
    library.libbpf_set_print(_print_callback)
    return library


def path() -> Path:
    """Return the file of the libbpf that this process has loaded."""
    lib()
    maps = Path("/proc/self/maps").read_text()
    found = re.search(r"/\S*libbpf\S*\.so\S*", maps)
    return Path(found[0] if found else chosen_libbpf() or _SONAME)


_libc = ctypes.CDLL(None)
_libc.vsnprintf.argtypes = [_ptr, _size, _ptr, _ptr]
_libc.vsnprintf.restype = _int
_line = ctypes.create_string_buffer(1 << 16)
_captured: list[tuple[list[str], Callable[[str], None] | None]] = []
_INFO = 1  # enum libbpf_print_level: 0 warning, 1 information, 2 debug


def _print(level: int, template: int, arguments: int) -> int:
    if not _captured or (level > _INFO and _captured[-1][1] is None):
        return 0
    # The x86-64 and arm64 ABIs both hand a va_list over as an address, so it travels as a pointer.
    # Verifier logs do not come this way (the loader gives libbpf a buffer for them), so one line
    # fits.
    length: int = _libc.vsnprintf(_line, len(_line), template, arguments)
    text = _line.value.decode(errors="replace").rstrip()
    messages, listener = _captured[-1]
    if listener is not None:
        listener(text)
    if level <= _INFO:
        messages.append(text)
    return length


_print_callback = PRINT_FN(_print)


@contextmanager
def captured_log(listener: Callable[[str], None] | None = None) -> Iterator[list[str]]:
    """Collect what libbpf says within the block, one string per warning or information.

    Outside such a block libbpf is silent: its messages belong in the error they explain.

    Args:
        listener: hears every message as it is said, those for debugging included.
    """
    lib()
    messages: list[str] = []
    _captured.append((messages, listener))
    try:
        yield messages
    finally:
        _captured.pop()


def each(step: str, obj: int) -> Iterator[int]:
    """Walk ``bpf_object__next_program`` or ``bpf_object__next_map`` over an object."""
    advance = getattr(lib(), step)
    item = advance(obj, None)
    while item:
        yield item
        item = advance(obj, item)
