"""A trial load for the verifier's answer leaves what the real load finds as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import pytest

from bpfunit import BpfunitError, Object
from bpfunit._sys import bpf
from bpfunit._sys.uapi import ProgType
from bpfunit.coverage import CoverageRecorder
from bpfunit.rewrite import ProgramCode, encode, insn

from ..objects import compiled

pytestmark = [pytest.mark.guest, pytest.mark.bpf_plain]

Load = Callable[..., Object]
_NAMES = ("xdp", "tc", "skb_egress", "sockops", "sysctl", "dissector", "connect6")
PROGRAMS = [f"on_{name}" for name in _NAMES]


def load_outcome(load: Load, programs: list[str], *, instrumented: bool) -> int:
    """Load, and return errno or 0; each time as the first load of a process."""
    with ExitStack() as stack:
        recorder = CoverageRecorder()
        stack.callback(recorder.close)
        if instrumented:
            stack.enter_context(recorder.recording())
        try:
            load(compiled("tied"), programs=programs, trace_tail_calls=instrumented)
        except BpfunitError as error:
            return int(getattr(error, "errno", 0)) or -1
        assert recorder.refused == {}
        assert len(recorder.models()) == (len(programs) if instrumented else 0)
        return 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_first_load_with_tracing_and_coverage_fills_its_array_as_a_plain_one_does(
    name: str, bpf_load: Load
) -> None:
    programs = [name, f"{name}_target"]
    assert load_outcome(bpf_load, programs, instrumented=False) == 0
    assert load_outcome(bpf_load, programs, instrumented=True) == 0
    with CoverageRecorder().recording():
        obj = bpf_load(compiled("tied"), programs=programs, trace_tail_calls=True)
    obj.maps[f"{name}_jumps"][0] = obj.programs[f"{name}_target"]


@pytest.mark.parametrize("name", ["on_xdp", "on_tc", "on_connect6"])
def test_coverage_and_tracing_leave_the_tail_call_that_a_plain_load_makes(
    name: str, bpf_load: Load
) -> None:
    data = {} if name == "on_connect6" else {"data": bytes(64)}
    for instrumented in (False, True):
        with ExitStack() as stack:
            recorder = CoverageRecorder()
            stack.callback(recorder.close)
            if instrumented:
                stack.enter_context(recorder.recording())
            programs = [name, f"{name}_target"]
            obj = bpf_load(compiled("tied"), programs=programs, trace_tail_calls=instrumented)
            program = obj.programs[name]
            assert program.run(**data).retval == 1
            obj.maps[f"{name}_jumps"][0] = obj.programs[f"{name}_target"]
            assert program.run(**data).retval == 0


def test_what_the_kernel_refuses_of_a_plain_load_it_refuses_of_ours(bpf_load: Load) -> None:
    plain = load_outcome(bpf_load, ["shared4", "shared6"], instrumented=False)
    assert load_outcome(bpf_load, ["shared4", "shared6"], instrumented=True) == plain


class _EnoughError(BpfunitError):
    """Ends a load from within."""


class _Claim:
    """Tries the program, then has one of another type use the same map."""

    def __init__(self) -> None:
        self.accepted = False
        self.claimed = -1

    def rewrite(self, program: ProgramCode) -> None:
        self.accepted = program.try_load(program.image).accepted
        fds = [one.imm for one in program.insns if one.is_wide and one.src == insn.PSEUDO_MAP_FD]
        code = [
            insn.Insn(insn.LD_IMM64, 1, insn.PSEUDO_MAP_FD, 0, fds[0]),
            insn.Insn(0),
            insn.mov_imm(0, 0),
            insn.exit_(),
        ]
        other = ProgType.XDP if program.prog_type != ProgType.XDP else ProgType.SCHED_CLS
        self.claimed, _log = bpf.prog_load("other", other, 0, encode(code))
        if self.claimed >= 0:
            os.close(self.claimed)
        raise _EnoughError

    def loaded(self, _unreached: Mapping[str, object]) -> None:
        raise AssertionError("the load was to end")


@pytest.mark.parametrize("name", [*PROGRAMS, "redirect"])
def test_a_trial_claims_neither_program_array_nor_device_map(name: str, bpf_load: Load) -> None:
    claim = _Claim()
    with pytest.raises(_EnoughError):
        bpf_load(compiled("tied"), programs=[name], instrument=[claim])
    assert claim.accepted
    assert claim.claimed >= 0
