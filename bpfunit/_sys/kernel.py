"""Which kernel runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bpfunit.errors import BpfunitError


def version() -> tuple[int, int, int]:
    """Return (major, minor, patch) of the running kernel.

    Raises:
        BpfunitError: its release does not start with a version.
    """
    release = os.uname().release
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if found is None:
        raise BpfunitError(f"read kernel version: {release!r} does not start with one")
    return int(found[1]), int(found[2]), int(found[3] or 0)


def has_jit() -> bool:
    """Tell whether the running kernel compiles programs: it has a BPF JIT, and that is on."""
    switch = Path("/proc/sys/net/core/bpf_jit_enable")  # there is none without a JIT
    return switch.exists() and switch.read_text().strip() != "0"
