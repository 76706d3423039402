"""What the kernel's own test runs tell of a program, and what they say when they refuse."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from bpfunit import Object, Program, SyscallError, VerifierError

from ..objects import compiled

pytestmark = pytest.mark.guest

IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"
Load = Callable[[str], Object]


@pytest.fixture
def load(no_bpf_leaks: None, bpf_load: Callable[..., Object]) -> Load:
    return lambda name: bpf_load(compiled("verdicts"), programs=[name])


def ipv4(protocol: int, size: int = 64) -> bytes:
    """An Ethernet frame with an IPv4 header and nothing else in it."""
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, size - 14, 0, 0, 64, protocol, 0, b"\n\0\0\1", b"\n\0\0\2"
    )
    return (bytes(12) + IPV4 + ip).ljust(size, b"\0")


@pytest.mark.parametrize("engine", ["testrun", "live", "both"])
def test_types_that_no_call_reaches_run_whatever_the_engine(
    bpf_load: Callable[..., Object], engine: str
):
    obj = bpf_load(compiled("verdicts"), programs=["unspecified", "grows"], engine=engine)
    result = obj.programs.unspecified.run(data=ipv4(6))
    assert (result.retval, result.engine) == (-1, "testrun")


def test_tc_verdict_is_signed(load: Load):
    obj = load("unspecified")
    result = obj.programs.unspecified.run(data=ipv4(6), ctx=obj.types["struct __sk_buff"](mark=4))
    assert (result.retval, result.ctx.mark, result.retval_note) == (-1, 5, "")


def test_context_of_an_older_uapi_gets_its_answer(load: Load):
    # mark is the third word; every kernel's struct __sk_buff is longer than 168 bytes
    context = struct.pack("=II", 0, 0) + struct.pack("=I", 4) + bytes(156)
    result = load("unspecified").programs.unspecified.run(data=ipv4(6), ctx=context)
    assert len(result.ctx) == len(context)
    assert struct.unpack_from("=I", result.ctx, 8) == (5,)


def test_raw_tracepoint_runs_on_its_arguments(load: Load):
    program = load("takes_difference").programs.takes_difference
    result = program.run(ctx=struct.pack("=QQ", 3, 8))
    assert (result.retval, result.duration_ns) == (-5, None)
    assert program.run(ctx=struct.pack("=QQ", 8, 3)).retval == 5


def test_raw_tracepoint_without_arguments_says_what_is_missing(load: Load):
    with pytest.raises(SyscallError, match="the program reads its context") as refused:
        load("takes_difference").programs.takes_difference.run()
    assert refused.value.errno == errno.EINVAL


@pytest.mark.needs(since="5.14")  # the program type
def test_syscall_program_gives_its_context_back(load: Load):
    obj = load("adds")
    result = obj.programs.adds.run(ctx=obj.types["struct sum"](a=2, b=3))
    assert (result.retval, result.ctx.total, result.ctx_in.total) == (0, 5, 0)
    again = obj.programs.adds.run(ctx=obj.types["struct sum"](a=99, b=3), repeat=3)
    assert (again.retval, again.ctx.total) == (-7, 102), "each run starts from the context given"


def test_flow_dissector_says_where_its_verdict_is_not_the_programs(load: Load):
    result = load("dissects").programs.dissects.run(data=ipv4(6))
    assert (result.retval == 2) == (not result.retval_note)
    if result.retval_note:
        assert result.retval == 0
        assert "BPF_OK" in result.retval_note
        assert "BPF_OK" in repr(result)


@pytest.mark.needs(since="6.2")  # Debian's 5.10 and 6.1 do not load it
def test_modified_return_is_said_to_be_packed(load: Load):
    result = load("modifies").programs.modifies.run()
    assert result.retval != 3
    assert "upper half" in result.retval_note


def test_packet_that_outgrows_its_room_says_how_much_it_takes(load: Load):
    program = load("grows").programs.grows
    with pytest.raises(SyscallError, match=r"264 bytes after the run.*headroom=200") as refused:
        program.run(data=ipv4(6), headroom=100)
    assert refused.value.errno == errno.ENOSPC
    assert len(program.run(data=ipv4(6), headroom=200).data) == 264


def taken(program: Program, packet: bytes) -> bool:
    try:
        program.run(data=packet)
    except SyscallError:
        return False
    return True


@pytest.mark.parametrize(
    ("packet", "told"),
    [
        (bytes(13), "a packet of 13 bytes: it begins with an Ethernet header, 14 bytes"),
        (ipv4(6)[:33], "EtherType says IPv4: kernels want the whole header, 34 bytes"),
        (bytes(12) + IPV6 + bytes(39), "EtherType says IPv6: kernels want the whole header, 54 b"),
        (bytes(5000), "a packet of 5000 bytes: up to Linux 6.12 it has to fit a page"),
    ],
    ids=["no Ethernet", "half an IPv4", "half an IPv6", "beyond a page"],
)
def test_refused_packet_is_told_the_rule(load: Load, packet: bytes, told: str):
    program = load("unspecified").programs.unspecified
    if len(packet) != 13 and taken(program, packet):
        return  # this kernel has no such rule
    with pytest.raises(SyscallError, match=told) as refused:
        program.run(data=packet)
    assert refused.value.errno == errno.EINVAL


def test_context_too_long_names_its_structure(load: Load):
    with pytest.raises(SyscallError, match="this kernel's struct __sk_buff") as refused:
        load("unspecified").programs.unspecified.run(data=ipv4(6), ctx=bytes(500) + b"\1")
    assert refused.value.errno == errno.E2BIG


@pytest.mark.parametrize(("protocol", "verdict"), [(6, 1), (17, 0)])
def test_cgroup_skb_reads_the_packet_where_it_lies(load: Load, protocol: int, verdict: int):
    assert load("only_tcp").programs.only_tcp.run(data=ipv4(protocol)).retval == verdict


@pytest.mark.parametrize("size", [34, 64, 1500])
def test_cgroup_skb_sees_all_of_the_packet_behind_ethernet(load: Load, size: int):
    obj = load("measures")
    skb = obj.types["struct __sk_buff"]()
    result = obj.programs.measures.run(data=ipv4(6, size), ctx=skb, repeat=3)
    assert (result.retval, result.ctx.mark) == (1, size - 14)


def test_helper_in_the_wrong_hook_is_not_said_to_be_missing(bpf_load: Callable[..., Object]):
    with pytest.raises(VerifierError, match="this kernel has the helper, but not for this program"):
        bpf_load(compiled("misplaced"))
