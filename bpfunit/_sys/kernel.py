"""Which kernel runs."""

from __future__ import annotations

import os
import re

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
