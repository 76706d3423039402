"""The in-kernel clock and what its unit means."""

from __future__ import annotations

import os
from enum import Enum


class Mode(str, Enum):
    """What one nanosecond of a benchmark's result stands for."""

    EXACT = "exact"
    """One guest instruction, which QEMU counts under ``-icount shift=0``; repeatable."""

    TIME = "time"
    """A nanosecond of a guest on KVM: time of the processor."""

    EMULATED_TIME = "time, emulated"
    """A nanosecond of the host's clock under software emulation: tells little about a processor."""

    @property
    def unit(self) -> str:
        """Return what a figure of this mode counts."""
        return "instructions" if self is Mode.EXACT else "ns"


_MODES = {"icount": Mode.EXACT, "kvm": Mode.TIME, "tcg": Mode.EMULATED_TIME}


def mode_of_guest(accelerator: str | None = None) -> Mode:
    """Return the mode that an accelerator gives.

    Args:
        accelerator: ``"kvm"``, ``"tcg"`` or ``"icount"``; by default that of this guest.

    Raises:
        LookupError: the accelerator has no meaning here, as outside a guest.
    """
    name = accelerator or os.environ.get("BPFUNIT_ACCEL", "")
    try:
        return _MODES[name]
    except KeyError:
        raise LookupError(
            f"find the mode of the benchmark: accelerator {name!r} is none of {', '.join(_MODES)}; "
            "benchmarks run in a guest, give --kernel"
        ) from None


class KernelClock:
    """A clock that advances only by the durations that the kernel reports.

    It is callable and returns seconds, which is what pytest-benchmark expects of a timer.
    """

    def __init__(self) -> None:
        self._ns = 0

    def advance(self, ns: int) -> None:
        """Move the clock forward.

        Args:
            ns: what the program took, in nanoseconds (in exact mode: instructions).

        Raises:
            ValueError: the duration is negative.
        """
        if ns < 0:
            raise ValueError(f"advance the clock: a duration of {ns} ns is not possible")
        self._ns += ns

    def __call__(self) -> float:
        """Return the time in seconds since the clock was made."""
        return self._ns * 1e-9
