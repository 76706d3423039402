"""Rewriting BPF programs between libbpf's relocations and the verifier."""

from __future__ import annotations

from bpfunit.rewrite import ambient
from bpfunit.rewrite.callback import install, instrumented
from bpfunit.rewrite.code import Image, Instrumentation, ProgramCode, Trial, Unreached
from bpfunit.rewrite.flow import Flow, RewriteError
from bpfunit.rewrite.insn import Insn, decode, encode
from bpfunit.rewrite.liveness import Liveness
from bpfunit.rewrite.patcher import Patched, Patcher

__all__ = [
    "Flow",
    "Image",
    "Insn",
    "Instrumentation",
    "Liveness",
    "Patched",
    "Patcher",
    "ProgramCode",
    "RewriteError",
    "Trial",
    "Unreached",
    "ambient",
    "decode",
    "encode",
    "install",
    "instrumented",
]
