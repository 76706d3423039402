"""Where libbpf lets us see and change a program just before the kernel does.

libbpf calls a section handler's ``prog_prepare_load_fn`` for each program it is about to load
(``libbpf_register_prog_handler``, libbpf 0.8). One set of handlers is registered per process:
unregistering and registering again corrupts the heap in libbpf 1.1.2, and registering more later
would move the table that open objects point into. A handler of ours replaces the built-in one for
its section, so only those sections are taken whose built-in handler does nothing but set the
program's type and attach type. Programs of other sections load as they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from bpfunit._sys import libbpf
from bpfunit.rewrite.code import (
    HearsOfFailures,
    Image,
    Instrumentation,
    ProgramCode,
    Unreached,
)
from bpfunit.rewrite.info import FUNC_SIZE, LINE_SIZE
from bpfunit.rewrite.insn import SLOT_SIZE, decode
from bpfunit.rewrite.trial import point_at_info, try_load

_XDP_FRAGS = ("xdp.frags", "xdp.frags/devmap", "xdp.frags/cpumap")
_BPF_F_XDP_HAS_FRAGS = 1 << 5  # uapi linux/bpf.h
_REFUSED = -22  # what the callback returns to make libbpf give up: EINVAL


@dataclass
class _Load:
    """One ``bpf_object__load`` under way.

    libbpf reads ``line_info`` and ``func_info`` after the callback has returned, so the buffers
    stay here until the load is over.
    """

    obj: int
    passes: Sequence[Instrumentation]
    seen: set[str] = field(default_factory=set)
    error: BaseException | None = None
    buffers: list[ctypes.Array[ctypes.c_char]] = field(default_factory=list)


_loads: list[_Load] = []


def _set_info(load: _Load, opts: libbpf.ProgLoadOpts, image: Image) -> None:
    """Point the load options at the func_info and line_info of a rewritten program."""
    load.buffers += point_at_info(opts, image)


def _records(address: int | None, count: int, size: int, known: int) -> bytes:
    """Return records cut to their ``known`` size; a newer compiler may append fields."""
    data = ctypes.string_at(address or 0, count * size)
    if size == known or not count:
        return data
    return b"".join(data[start : start + known] for start in range(0, len(data), size))


def _read(load: _Load, prog: int, opts: libbpf.ProgLoadOpts) -> ProgramCode:
    """Make a `ProgramCode` of libbpf's program and load options."""
    lib = libbpf.lib()
    size = lib.bpf_program__insn_cnt(prog) * SLOT_SIZE
    code = ProgramCode(
        name=lib.bpf_program__name(prog).decode(),
        section=lib.bpf_program__section_name(prog).decode(),
        prog_type=lib.bpf_program__type(prog),
        # not opts.expected_attach_type: libbpf 1.3 to 1.4 fill that in after this callback
        attach_type=lib.bpf_program__expected_attach_type(prog),
        image=Image(
            ctypes.string_at(lib.bpf_program__insns(prog), size),
            _records(opts.func_info, opts.func_info_cnt, opts.func_info_rec_size, FUNC_SIZE),
            _records(opts.line_info, opts.line_info_cnt, opts.line_info_rec_size, LINE_SIZE),
        ),
    )
    if btf := lib.bpf_object__btf(load.obj):

        def string_at(offset: int) -> str:
            text: bytes | None = lib.btf__name_by_offset(btf, offset)
            return (text or b"").decode(errors="replace")

        def name_of_type(type_id: int) -> str:
            found = lib.btf__type_by_id(btf, type_id)
            # name_off is the first member of struct btf_type.
            return string_at(ctypes.c_uint32.from_address(found).value) if found else ""

        code.string_at, code.name_of_type = string_at, name_of_type
    code.try_load = lambda image: try_load(code, opts, image)
    return code


def _rewrite(load: _Load, prog: int, opts: libbpf.ProgLoadOpts) -> None:
    code = _read(load, prog, opts)
    load.seen.add(code.name)
    for step in load.passes:
        step.rewrite(code)
    if code.changed:
        insns = code.image.insns
        libbpf.lib().bpf_program__set_insns(prog, insns, len(insns) // SLOT_SIZE)
        _set_info(load, opts, code.image)


def _prepare_load(prog: int, opts: Any, _cookie: int) -> int:
    """Serve libbpf's callback: ctypes would swallow an exception here, so it is kept for later."""
    if libbpf.lib().bpf_program__section_name(prog).decode() in _XDP_FRAGS:
        opts.contents.prog_flags |= _BPF_F_XDP_HAS_FRAGS
    if not _loads:
        return 0
    load = _loads[-1]
    try:
        _rewrite(load, prog, opts.contents)
    except BaseException as error:
        load.error = error
        return _REFUSED
    return 0


_callback = libbpf.PREPARE_LOAD_FN(_prepare_load)


@lru_cache(maxsize=1)
def install(sections: tuple[str, ...]) -> None:
    """Register the handlers, once per process and before the object to rewrite is opened.

    A program of these sections is from then on attached by its type, not by
    ``bpf_program__attach``, which the built-in handler alone can serve.

    Args:
        sections: those whose built-in handler sets types and no more.
    """
    lib = libbpf.lib()
    for section in sections:
        prog_type, attach_type = ctypes.c_int(), ctypes.c_int()
        types = (ctypes.byref(prog_type), ctypes.byref(attach_type))
        if lib.libbpf_prog_type_by_name(section.rstrip("+").encode(), *types) < 0:
            continue  # this libbpf does not know the section
        opts = libbpf.ProgHandlerOpts(prog_prepare_load_fn=_callback)
        opts.sz = ctypes.sizeof(opts)
        lib.libbpf_register_prog_handler(
            section.encode(), prog_type.value, attach_type.value, ctypes.byref(opts)
        )


@contextmanager
def instrumented(obj: int, passes: Sequence[Instrumentation]) -> Iterator[None]:
    """Run ``passes`` over every program that ``bpf_object__load`` loads within the block.

    Args:
        obj: the opened ``struct bpf_object *``; `install` came before it was opened.
        passes: in order; each sees what those before it left.

    Raises:
        Exception: whatever a pass raised, in place of libbpf's error that came of it.
    """
    load = _Load(obj, passes)
    _loads.append(load)
    try:
        try:
            yield
        finally:
            _loads.remove(load)
        unreached = _unreached(load)
        for step in passes:
            step.loaded(unreached)
    except Exception as failure:
        for step in passes:
            if isinstance(step, HearsOfFailures):
                step.not_loaded()
        if load.error is not None:
            raise load.error from failure
        raise


def _unreached(load: _Load) -> dict[str, Unreached]:
    """Return the programs that libbpf loaded without asking."""
    lib, found = libbpf.lib(), {}
    for prog in libbpf.each("bpf_object__next_program", load.obj):
        name = lib.bpf_program__name(prog).decode()
        if name not in load.seen and lib.bpf_program__autoload(prog):
            section = lib.bpf_program__section_name(prog).decode()
            size = lib.bpf_program__insn_cnt(prog) * SLOT_SIZE
            insns = decode(ctypes.string_at(lib.bpf_program__insns(prog), size))
            helpers = frozenset(insn.imm for insn in insns if insn.is_helper_call)
            found[name] = Unreached(section, helpers)
    return found
