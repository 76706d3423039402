"""Throwaway kernels under QEMU that run Python workers; nothing here knows BPF."""

from __future__ import annotations

import os

__all__ = ["in_guest"]


def in_guest() -> bool:
    """Tell whether this process runs inside a guest that bpfunit booted."""
    return os.environ.get("BPFUNIT_GUEST") == "1"
