"""func_info and line_info: what the kernel is told of an instruction's function and source line.

The records are those of ``struct bpf_func_info`` and ``struct bpf_line_info`` (uapi linux/bpf.h),
with instruction offsets in slots.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

_FUNC = struct.Struct("=II")
_LINE = struct.Struct("=IIII")
FUNC_SIZE, LINE_SIZE = _FUNC.size, _LINE.size


class FuncInfo(NamedTuple):
    """A function starts at slot ``insn_off``; ``type_id`` is its BTF FUNC."""

    insn_off: int
    type_id: int


class LineInfo(NamedTuple):
    """From slot ``insn_off`` on, code is of one source line.

    ``file_off`` and ``line_off`` are offsets into BTF's strings (path, text of the line);
    ``line_col`` holds the line number from bit 10 on and the column below.
    """

    insn_off: int
    file_off: int
    line_off: int
    line_col: int

    @property
    def line(self) -> int:
        """The line number, from 1; 0 where the compiler has none."""
        return self.line_col >> 10

    @property
    def column(self) -> int:
        """The column, from 1; 0 where the compiler has none."""
        return self.line_col & 0x3FF


def decode_func_info(data: bytes) -> list[FuncInfo]:
    """Read func_info records, `FUNC_SIZE` bytes each."""
    return [FuncInfo(*record) for record in _FUNC.iter_unpack(data)]


def decode_line_info(data: bytes) -> list[LineInfo]:
    """Read line_info records, `LINE_SIZE` bytes each."""
    return [LineInfo(*record) for record in _LINE.iter_unpack(data)]


def encode_func_info(records: Iterable[FuncInfo]) -> bytes:
    """Join func_info records, `FUNC_SIZE` bytes each."""
    return b"".join(_FUNC.pack(*record) for record in records)


def encode_line_info(records: Iterable[LineInfo]) -> bytes:
    """Join line_info records, `LINE_SIZE` bytes each."""
    return b"".join(_LINE.pack(*record) for record in records)
