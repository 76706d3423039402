"""Branch coverage of BPF programs, taken at the level of instructions on the object as built."""

from __future__ import annotations

from bpfunit.coverage.model import Model
from bpfunit.coverage.path import Path, Step
from bpfunit.coverage.probes import Mode
from bpfunit.coverage.recorder import CoverageRecorder

__all__ = ["CoverageRecorder", "Mode", "Model", "Path", "Step"]
