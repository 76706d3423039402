"""Benchmarks of BPF programs: a clock that only the kernel's own measurement moves.

pytest-benchmark asks a timer before and after the code under test. The timer here stands still
except when a run reports how long the program took, so that every tool around pytest-benchmark
(comparison, histograms, storage) works on the cost of the program and not on that of Python and the
system call.
"""

from __future__ import annotations

from bpfunit.bench.clock import KernelClock, Mode, mode_of_guest

__all__ = ["KernelClock", "Mode", "mode_of_guest"]
