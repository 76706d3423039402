"""``sk_msg`` programs: crafted messages, real ones, redirections by socket and by map entry."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

import bpfunit
from bpfunit import ContextError, Object, SyscallError
from bpfunit._sys.uapi import AttachType
from bpfunit.progtypes.sk_msg import SkMsgProgram

from ..objects import compiled
from .rawtcp import attach_to_map

pytestmark = pytest.mark.guest

Load = Callable[..., Object]
FAMILIES = [socket.AF_INET, socket.AF_INET6]


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("skmsg"))


def test_a_message_passes_or_is_dropped(obj: Object) -> None:
    decide = obj.programs.decide
    passed = decide.run(b"GET /")
    assert (passed.verdict, passed.retval, passed.errno, passed.untouched) == ("pass", 1, 0, True)
    dropped = decide.run(b"drop")
    assert (dropped.verdict, dropped.retval, dropped.errno) == ("drop", 0, errno.EACCES)
    assert [line.text for line in dropped.log] == ["dropped"]
    assert "4 bytes: 64726f70 (untouched), verdict drop" in "\n".join(dropped.describe())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_redirection_says_which_socket_and_which_entry(obj: Object, family: int) -> None:
    decide, maps = obj.programs.decide, obj.maps
    assert decide.run(b"r").verdict == "drop"  # nobody is in the map
    with bpfunit.tcp_pair(family) as (client, server), bpfunit.tcp_pair(family) as (other, far):
        maps.others[0], maps.others[1], maps.named[7] = client, other, far
        result = decide.run(b"r", sock=client)
        assert (result.verdict, result.ingress) == ("redirect", True)
        assert result.redirected_to(other)
        assert not any(result.redirected_to(one) for one in (client, server, far))
        assert result.redirected_to(maps.others, 1)
        assert not result.redirected_to(maps.others, 0)
        assert not result.redirected_to(maps.others, 2)
        assert result.target_entries(maps.values()) == [("others", 1)]
        hashed = decide.run(b"h", sock=client)
        assert (hashed.verdict, hashed.ingress) == ("redirect", False)
        assert hashed.target_entries(maps.values()) == [("named", 7)]
        ignored = decide.run(b"i", sock=client)
        assert (ignored.verdict, ignored.target_entries(maps.values())) == ("pass", [])


def test_fragments_and_shared_pages_limit_what_the_program_sees(obj: Object) -> None:
    decide, seen = obj.programs.decide, obj.globals
    assert (decide.run(b"quite a word").verdict, seen.seen) == ("pass", 12)
    assert (decide.run(b"quite a word", fragments=[5, 7]).data, seen.seen) == (b"quite a word", 5)
    assert (decide.run(b"drop", shared=True).verdict, seen.seen) == ("pass", 0)


def test_apply_and_cork_are_on_the_result(obj: Object) -> None:
    result = obj.programs.decide.run(b"apply")
    assert (result.apply_bytes, result.cork_bytes) == (4, 9)
    result = obj.programs.decide.run(b"x")
    assert (result.apply_bytes, result.cork_bytes) == (0, 0)


def test_bytes_that_the_program_puts_in_front_are_in_the_data(obj: Object) -> None:
    result = obj.programs.decide.run(b"put", repeat=3)
    assert (result.data, result.untouched) == (b"HEADput", False)
    with pytest.raises(SyscallError, match="headroom=4") as refused:
        obj.programs.decide.run(b"put", headroom=0)
    assert refused.value.errno == errno.ENOSPC


def test_storage_of_the_socket_is_read_after_each_run(obj: Object) -> None:
    with bpfunit.tcp_pair() as (client, _):
        assert obj.programs.decide.run(b"one", sock=client).storage() == 3
        assert obj.programs.decide.run(b"three", sock=client).storage() == 8
        assert obj.maps.sent[client] == 8


def test_tail_calls_are_seen(obj: Object) -> None:
    assert obj.programs.decide.run(b"tail").tail_calls == []
    obj.maps.next.spy(0)
    result = obj.programs.decide.run(b"tail")
    assert [(call.map, call.index) for call in result.tail_calls] == [("next", 0)]


def test_many_messages_in_one_call(obj: Object) -> None:
    with bpfunit.tcp_pair() as (client, _):
        runs = obj.programs.decide.run_many([b"x", b"d", b"put"], sock=client).raise_for_errors()
        assert [run.verdict for run in runs] == ["pass", "drop", "pass"]
        assert [run.errno for run in runs] == [0, errno.EACCES, 0]
        assert runs[2].data == b"HEADput"
    with pytest.raises(ContextError, match="pass sock="):
        obj.programs.decide.run_many([b"x"])


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("message", [b"x", b"drop", b"redirect", b"into the void", b"put"], ids=str)
def test_a_real_send_goes_where_the_run_says(obj: Object, family: int, message: bytes) -> None:
    """The same program on a sockmap, and an ordinary send."""
    with bpfunit.tcp_pair(family) as (client, server), bpfunit.tcp_pair(family) as (other, _far):
        obj.maps.others[1] = other
        result = obj.programs.decide.run(message, sock=client)
        attach_to_map(obj.maps.others.fd, obj.programs.decide.fd, AttachType.SK_MSG_VERDICT)
        obj.maps.others[0] = client
        if result.errno:
            with pytest.raises(OSError, match=r".") as refused:
                client.send(message)
            assert refused.value.errno == result.errno
            return
        client.send(message)
        receiver = other if result.verdict == "redirect" else server
        receiver.settimeout(10)
        got = b""
        while len(got) < len(result.data):
            got += receiver.recv(100)
        assert got == result.data


def test_a_slip_is_said_in_the_words_of_run(obj: Object) -> None:
    program = obj.programs.decide
    assert isinstance(program, SkMsgProgram)
    slips: list[tuple[Any, dict[str, Any], str]] = [
        (b"", {}, "1 to 65536 can be crafted"),
        (bytes(65537), {}, "1 to 65536 can be crafted"),
        (b"abc", {"fragments": [1, 1]}, r"fragments=\[1, 1\] of a message of 3 bytes"),
        (b"abc", {"fragments": [3, 0]}, "lengths of 1 and more"),
        (bytes(17), {"fragments": [1] * 17}, "17 fragments; 16 can be crafted"),
        ("GET /", {}, r"give it the message \(data=\)"),
    ]
    for data, more, said in slips:
        with pytest.raises(ContextError, match=said):
            program.run(data, **more)
    with socket.socket() as fresh, pytest.raises(SyscallError, match=r"bpfunit.tcp_pair\(\)") as no:
        program.run(b"x", sock=fresh)
    assert no.value.errno == errno.ENOTCONN
    with socket.socket(type=socket.SOCK_DGRAM) as udp, pytest.raises(SyscallError, match="not TCP"):
        program.run(b"x", sock=udp)
