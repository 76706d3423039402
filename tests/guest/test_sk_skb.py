"""``sk_skb`` programs: parsers and verdicts, crafted and by real traffic, and what is refused."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

import pytest

import bpfunit
from bpfunit import ContextError, Object, SyscallError
from bpfunit._sys.uapi import AttachType
from bpfunit.progtypes.sk_skb import SkSkbProgram

from ..objects import compiled
from .rawtcp import attach_to_map

pytestmark = pytest.mark.guest

Load = Callable[..., Object]


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("skskb"))


def test_a_parser_says_how_long_the_message_is(obj: Object) -> None:
    result = obj.programs.parse.run(b"\x05hello more")
    assert (result.verdict, result.length, result.untouched) == ("parsed", 6, True)


def test_a_verdict_passes_drops_and_redirects(obj: Object) -> None:
    decide = obj.programs.decide
    assert decide.run(b"\x01x").verdict == "pass"
    assert decide.run(b"\x01d").verdict == "drop"
    assert decide.run(b"\x01r").verdict == "drop"  # nobody is in the map
    with bpfunit.tcp_pair() as (client, server), bpfunit.tcp_pair() as (other, _far):
        obj.maps.others[0] = other
        result = decide.run(b"\x01r", sock=server)
        assert (result.verdict, result.ingress) == ("redirect", True)
        assert result.redirected_to(other)
        assert not result.redirected_to(client)
        assert not decide.run(b"\x01x", sock=server).redirected_to(other)
    assert obj.maps.bytes[0] == 10


def test_the_data_is_on_the_result_as_the_program_left_it(obj: Object) -> None:
    result = obj.programs.decide.run(b"\x01w", priority=2)
    assert (result.data, result.priority, result.untouched) == (b"\x01W", 6, False)
    assert obj.programs.decide.run(b"\x01x", priority=2).priority == 2
    assert "2 bytes: 0177" in "\n".join(result.describe())


def test_data_that_grows_says_the_headroom_that_it_needs(obj: Object) -> None:
    with pytest.raises(SyscallError, match="headroom=1000") as refused:
        obj.programs.decide.run(b"\x01g")
    assert refused.value.errno == errno.ENOSPC
    assert len(obj.programs.decide.run(b"\x01g", headroom=1000).data) == 1002


def test_many_messages_in_one_call(obj: Object) -> None:
    with bpfunit.tcp_pair() as (_, server):
        runs = obj.programs.decide.run_many([b"\x01x", b"\x01d", b"\x01w"], sock=server)
        assert [run.verdict for run in runs.raise_for_errors()] == ["pass", "drop", "pass"]
        assert runs[2].data == b"\x01W"
        parsed = obj.programs.parse.run_many([b"\x01x", b"\x09y"], sock=server)
        assert [(run.verdict, run.retval) for run in parsed] == [("parsed", 2), ("parsed", 10)]
    with pytest.raises(ContextError, match="pass sock="):
        obj.programs.decide.run_many([b"\x01x"])


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=str)
@pytest.mark.parametrize("last", ["x", "w", "d", "r"])
def test_real_traffic_goes_where_the_run_says(obj: Object, family: int, last: str) -> None:
    """The same two programs on a sockmap, and a message that comes in."""
    message = b"\x05" + last.encode() + b"abcd"
    with bpfunit.tcp_pair(family) as (client, server), bpfunit.tcp_pair(family) as (other, far):
        obj.maps.others[0] = other
        length = obj.programs.parse.run(message, sock=server).length
        result = obj.programs.decide.run(message, sock=server)
        assert length == len(message)
        attach_to_map(obj.maps.others.fd, obj.programs.parse.fd, AttachType.SK_SKB_STREAM_PARSER)
        attach_to_map(obj.maps.others.fd, obj.programs.decide.fd, AttachType.SK_SKB_STREAM_VERDICT)
        obj.maps.others[1] = server
        before = obj.maps.bytes[0]
        client.send(message)
        deadline = time.monotonic() + 60
        while obj.maps.bytes[0] - before < len(message) and time.monotonic() < deadline:
            time.sleep(0.02)
        client.send(b"\x01x")  # in a segment of its own: what shows that the first is through
        expected = (result.data if result.verdict == "pass" else b"") + b"\x01x"
        server.settimeout(60)
        got = b""
        while len(got) < len(expected):
            got += server.recv(100)
        assert got == expected
        if result.redirected_to(other):
            other.settimeout(60)
            assert other.recv(100) == result.data
        assert far.getpeername() == other.getsockname()


def test_a_slip_is_said_in_the_words_of_run(obj: Object) -> None:
    program = obj.programs.decide
    assert isinstance(program, SkSkbProgram)
    with pytest.raises(ContextError, match="1 to 65536 can be crafted"):
        program.run(b"")
    with pytest.raises(ContextError, match="linear=3 of 2 bytes"):
        program.run(b"\x01x", linear=3)
    with pytest.raises(ContextError, match="as parser: it was loaded as verdict"):
        program.run(b"\x01x", hook="parser")
    with pytest.raises(ContextError, match='write "parser" or "verdict"'):
        program.run(b"\x01x", hook="both")
    with pytest.raises(ContextError, match=r"give it the bytes that came in \(data=\)"):
        program.run("10.0.0.1:80")  # type: ignore[arg-type]
    with socket.socket() as fresh, pytest.raises(SyscallError, match=r"bpfunit.tcp_pair\(\)"):
        program.run(b"\x01x", sock=fresh)


def test_a_program_of_no_stated_hook_is_run_as_either(obj: Object) -> None:
    either = obj.programs.either
    assert either.run(b"abc", hook="parser").length == 3
    assert either.run(b"abc").verdict == "drop"
    assert either.run(b"a").verdict == "pass"
