"""What cannot be instrumented is told where it was asked for, and never left out quietly."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest

from bpfunit import BpfunitError, Object, faults
from bpfunit._sys.uapi import AttachType
from bpfunit.coverage import CoverageRecorder
from bpfunit.progtypes.packet import XdpMd
from bpfunit.progtypes.sock_addr import SOCK_ADDR

from ..objects import compiled

pytestmark = [pytest.mark.guest, pytest.mark.bpf_plain]

Load = Callable[..., Object]


def test_tracing_refuses_a_program_whose_tail_calls_it_cannot_see(bpf_load: Load) -> None:
    names = ["on_xdp", "on_usdt"]
    assert len(bpf_load(compiled("tied"), programs=names).programs) == 2
    with pytest.raises(BpfunitError, match=r"trace tail calls of on_usdt \(usdt\): .*cannot be"):
        bpf_load(compiled("tied"), programs=names, trace_tail_calls=True)


def test_a_stub_refuses_a_load_in_which_a_program_would_go_on_calling_the_helper(
    bpf_load: Load,
) -> None:
    with (
        closing(faults.random(1)) as numbers,
        pytest.raises(faults.FaultError, match=r"on_usdt \(usdt\) would go on calling it"),
    ):
        bpf_load(compiled("tied"), programs=["on_usdt"], instrument=[numbers])


def test_a_program_beyond_rewriting_is_not_taken_for_one_that_lacks_its_probes(
    bpf_load: Load,
) -> None:
    with closing(CoverageRecorder()) as recorder:
        with recorder.recording():
            bpf_load(compiled("tied"), programs=["on_xdp", "on_usdt"])
        assert recorder.refused == {}
        assert list(recorder.beyond) == ["on_usdt"]
        assert [model.program for model in recorder.models()] == ["on_xdp"]


def test_the_fields_of_an_attach_type_that_nobody_knows_are_not_guessed() -> None:
    with pytest.raises(BpfunitError, match="read the context: attach type 0 is none"):
        SOCK_ADDR.readable_words(AttachType.CGROUP_INET_INGRESS)
    assert len(SOCK_ADDR.readable_words(AttachType.CGROUP_INET4_CONNECT)) == 6


def test_a_tail_call_of_another_type_shows_that_types_context(bpf_load: Load) -> None:
    obj = bpf_load(compiled("tied"), programs=["on_xdp", "on_xdp_target"], trace_tail_calls=True)
    obj.maps.on_xdp_jumps[0] = obj.programs.on_xdp_target
    (call,) = obj.programs.on_xdp.run(data=bytes(64)).tail_calls
    assert call.target == "on_xdp_target"
    assert isinstance(call.ctx, XdpMd)


def test_more_tail_calls_than_are_recorded_are_an_error_and_not_a_shorter_list(
    bpf_load: Load,
) -> None:
    obj = bpf_load(compiled("tied"), programs=["on_xdp"], trace_tail_calls=True)
    run = obj.programs.on_xdp.run
    assert len(run(data=bytes(64), repeat=64).tail_call_attempts) == 64
    with pytest.raises(BpfunitError, match="130 records, there is room for 128"):
        _ = run(data=bytes(64), repeat=65).tail_call_attempts
