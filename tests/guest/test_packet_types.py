"""Packet programs have results, tail calls and hints of their own type."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

import bpfunit
from bpfunit import ContextError, Object, PacketProgram, SyscallError
from bpfunit.progtypes.packet import SkBuff, XdpMd
from bpfunit.runs import explain

from ..objects import compiled

pytestmark = pytest.mark.guest

FRAME = bytes(range(64))


@pytest.fixture(params=[False, True], ids=["by spies", "traced"])
def obj(
    request: pytest.FixtureRequest, no_bpf_leaks: None, bpf_load: Callable[..., Object]
) -> Object:
    return bpf_load(compiled("packets"), trace_tail_calls=request.param)


def test_packet_that_comes_out_as_it_went_in_is_untouched(obj: Object) -> None:
    result = obj.programs.leaves_alone.run(FRAME)
    assert result.untouched
    assert (result.data, result.verdict) == (FRAME, "XDP_DROP")
    assert "packet out: 64 bytes" in explain.describe(obj.observation)


def test_tail_call_of_an_xdp_program_shows_what_xdp_programs_see(obj: Object) -> None:
    obj.maps.next_xdp.spy(1, returns=2)
    result = obj.programs.hands_on.run(FRAME)
    (call,) = result.tail_calls
    assert (call.map, call.index, result.verdict) == ("next_xdp", 1, "XDP_PASS")
    assert isinstance(call.ctx, XdpMd)
    assert call.ctx.ingress_ifindex == 1, "the test run comes in by the loopback interface"
    assert "0.0.0.0" not in explain.describe(obj.observation)


def test_tail_call_of_a_tc_program_shows_the_buffer_as_it_is_then(obj: Object) -> None:
    obj.maps.next_tc.spy(0)
    (call,) = obj.programs.marks_and_hands_on.run(FRAME).tail_calls
    assert isinstance(call.ctx, SkBuff)
    assert (call.ctx.mark, call.ctx.len) == (7, len(FRAME))


def test_arrays_of_two_types_in_one_object_are_recorded_apart(obj: Object) -> None:
    obj.maps.next_tc.spy(0)
    obj.maps.next_xdp.spy(1)
    assert [c.map for c in obj.programs.hands_on.run(FRAME).tail_calls] == ["next_xdp"]
    assert [c.map for c in obj.programs.marks_and_hands_on.run(FRAME).tail_calls] == ["next_tc"]


def test_many_packets_in_one_call(obj: Object) -> None:
    obj.maps.next_xdp.spy(1, returns=3)
    runs = obj.programs.hands_on.run_many([FRAME, bytes(80)]).raise_for_errors()
    assert [(run.verdict, run.data) for run in runs] == [("XDP_TX", FRAME), ("XDP_TX", bytes(80))]
    assert [len(run.tail_calls) for run in runs] == [1, 1]


def test_hint_of_a_refusal_speaks_of_the_programs_own_type(obj: Object) -> None:
    with pytest.raises(SyscallError) as refused:
        obj.programs.marks_and_hands_on.run(FRAME, ctx=bytes(4095) + b"\1")
    assert refused.value.errno == errno.E2BIG
    assert "struct __sk_buff" in str(refused.value)
    assert "sock_addr" not in str(refused.value)


def test_an_address_for_a_packet_program_says_what_it_takes(obj: Object) -> None:
    with pytest.raises(ContextError, match=r"its type is xdp; give it a packet \(data=\)"):
        obj.programs.leaves_alone.run("10.96.0.1:80")


def test_class_of_a_program_is_that_of_its_type(obj: Object) -> None:
    program = obj.programs.leaves_alone
    assert isinstance(program, PacketProgram)
    assert isinstance(bpfunit.Program.from_fd(program.fd), PacketProgram)
    with pytest.raises(bpfunit.BpfunitError, match="its type is xdp; use PacketProgram"):
        bpfunit.SockAddrProgram.from_fd(program.fd)
