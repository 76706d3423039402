"""The rate of this processor's time stamp counter, which the counter of an emulated guest follows.

A guest that calibrates its counter while other processes share the processor can come out wrong by
a factor, and its clock then runs too fast or too slow for as long as it lives. So it is told.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import time

# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_WINDOW = 0.02  # seconds between two readings
_APART = (
    20_000  # ns at most between a reading and the clock's beside it, a thousandth of the window
)
_TRIES = 200


@functools.lru_cache(maxsize=1)
def tsc_khz() -> int | None:
    """Return the counter's rate in kHz, None where it cannot be measured."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a hardened kernel wants no page that can be written and run
        return None
    page.write(_READ)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
    first = _reading(read)
    time.sleep(_WINDOW)
    second = _reading(read)
    if first is None or second is None:
        return None
    return round((second[0] - first[0]) * 1_000_000 / (second[1] - first[1]))


def _reading(read: ctypes._FuncPointer) -> tuple[int, int] | None:
    """Return the counter and the time in ns at which it was read."""
    for _ in range(_TRIES):
        before = time.monotonic_ns()
        counter = read()
        after = time.monotonic_ns()
        if after - before < _APART:
            return counter, (before + after) // 2
    return None
