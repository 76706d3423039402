"""Loading a rewritten program for the verifier's answer alone; the real load notices nothing of it.

The kernel ties a program array to the first program that uses it: to its type and JIT, in newer
kernels (6.12.57, 6.17) to its attach type as well, until the array is gone
(``bpf_prog_map_compatible`` in kernel/bpf/core.c). Device and CPU maps are tied likewise. A trial
therefore never touches those of the object: it runs against stand-ins of the same shape, which go
with it. Otherwise it carries what the real load carries.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bpfunit._sys import bpf, libbpf, uapi
from bpfunit._sys.uapi import MapType
from bpfunit.errors import SyscallError
from bpfunit.rewrite.code import Image, ProgramCode, Trial
from bpfunit.rewrite.flow import RewriteError
from bpfunit.rewrite.info import FUNC_SIZE, LINE_SIZE
from bpfunit.rewrite.insn import PSEUDO_MAP_FD, SLOT_SIZE, Insn, decode, encode

# map_type_contains_progs in include/linux/bpf.h
_TIED = {MapType.PROG_ARRAY, MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP}
# What a map tells of itself and its creation does not take: a device map's flag is the kernel's own
# (dev_map_alloc_check in kernel/bpf/devmap.c), a node of memory would have to be named as well.
_BPF_F_NUMA_NODE, _BPF_F_RDONLY_PROG = 1 << 2, 1 << 7
_LOG_SIZE = 1 << 20
_REASON_LINES = 3

Buffer = ctypes.Array[ctypes.c_char]


def point_at_info(opts: libbpf.ProgLoadOpts, image: Image) -> list[Buffer]:
    """Point load options at a program's func_info and line_info; the buffers must outlive the load.

    Nothing is pointed at where libbpf gave none: the kernel does not know them.
    """
    buffers = [ctypes.create_string_buffer(data, len(data)) for data in image[1:]]
    functions, lines = buffers
    if opts.func_info_cnt:
        opts.func_info = ctypes.addressof(functions)
        opts.func_info_cnt = len(image.func_info) // FUNC_SIZE
        opts.func_info_rec_size = FUNC_SIZE
    if opts.line_info_cnt:
        opts.line_info = ctypes.addressof(lines)
        opts.line_info_cnt = len(image.line_info) // LINE_SIZE
        opts.line_info_rec_size = LINE_SIZE
    return buffers


def try_load(code: ProgramCode, opts: libbpf.ProgLoadOpts, image: Image) -> Trial:
    """Load a rewritten program beside the real one, ask the kernel what became of it, drop it.

    Args:
        code: the program as the real load has it.
        opts: the options of the real load, as far as libbpf has filled them in.
        image: the rewritten program.
    """
    with _stand_ins(image) as insns:
        attempt, _whole = _options(code, opts)
        _info = point_at_info(attempt, image)
        arguments = (code.prog_type, code.name.encode(), b"GPL", insns, len(insns) // SLOT_SIZE)
        load = libbpf.lib().bpf_prog_load
        fd = load(*arguments, ctypes.byref(attempt))
        if fd >= 0:
            try:
                return Trial(True, "", xlated(fd))
            finally:
                os.close(fd)
        log = ctypes.create_string_buffer(_LOG_SIZE)
        attempt.log_level, attempt.log_size, attempt.log_buf = 1, len(log), ctypes.addressof(log)
        again = load(*arguments, ctypes.byref(attempt))
        if again >= 0:
            os.close(again)
        words = _deciding_lines(log.value.decode(errors="replace"))
        return Trial(False, words or str(SyscallError("load", -fd)), ())


def _options(code: ProgramCode, opts: libbpf.ProgLoadOpts) -> tuple[libbpf.ProgLoadOpts, Buffer]:
    """Return the real load's options for a trial, whole: a newer libbpf has more than we know of.

    The attach type is libbpf's own (see `callback`); the log of the real load is not ours to fill.
    """
    whole = ctypes.create_string_buffer(ctypes.string_at(ctypes.addressof(opts), opts.sz), opts.sz)
    attempt = libbpf.ProgLoadOpts.from_buffer(whole)
    attempt.expected_attach_type = code.attach_type
    attempt.log_level, attempt.log_size, attempt.log_buf = 0, 0, None
    return attempt, whole


@contextmanager
def _stand_ins(image: Image) -> Iterator[bytes]:
    """Give the instructions with an empty map in place of each that programs would be tied to.

    Raises:
        RewriteError: the kernel refuses such a map.
    """
    insns = decode(image.insns)
    positions = [n for n, insn in enumerate(insns) if insn.is_wide and insn.src == PSEUDO_MAP_FD]
    with ExitStack() as opened:
        stand_ins: dict[int, int | None] = {}
        for fd in dict.fromkeys(insns[n].imm for n in positions):
            stand_ins[fd] = stand_in = _stand_in(fd)
            if stand_in is not None:
                opened.callback(os.close, stand_in)
        for n in positions:
            stand_in = stand_ins[insns[n].imm]
            if stand_in is not None:
                insns[n] = insns[n]._replace(imm=stand_in)
        yield encode(insns)


def _stand_in(fd: int) -> int | None:
    """Return a new map of the same shape, None where a trial may use the map itself."""
    info = bpf.object_info("inspect map for a trial load", fd, uapi.MapInfo())
    if info.type not in _TIED:
        return None
    name = info.name.decode(errors="replace")
    flags = info.map_flags & ~(_BPF_F_NUMA_NODE | _BPF_F_RDONLY_PROG)
    shape = (info.key_size, info.value_size, info.max_entries, flags)
    try:
        return bpf.map_create(name, info.type, *shape)
    except SyscallError as error:
        raise RewriteError(f"make a stand-in of map {name} for a trial load: {error}") from error


def xlated(fd: int) -> Sequence[Insn]:
    """Return a loaded program's instructions as the verifier left them."""
    operation = "read a program back"
    info = bpf.object_info(operation, fd, uapi.ProgInfo())
    buffer = ctypes.create_string_buffer(info.xlated_prog_len)
    request = uapi.ProgInfo(
        xlated_prog_len=info.xlated_prog_len, xlated_prog_insns=ctypes.addressof(buffer)
    )
    bpf.object_info(operation, fd, request)
    return decode(buffer.raw)


def _deciding_lines(log: str) -> str:
    """Return the last lines of a verifier log that are not statistics."""
    noise = ("processed ", "verification time", "stack depth")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(noise)]
    return "; ".join(kept[-_REASON_LINES:])
