"""``sock_ops`` programs: every op by name, its answers, header options, and what is refused."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

import bpfunit
from bpfunit import ContextError, Object, SyscallError
from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType
from bpfunit.progtypes.sock_ops import OPS, STATES, SockOpsProgram, tcp_header, tcp_state

from ..objects import compiled
from .test_module_leaks import settled

pytestmark = pytest.mark.guest

Load = Callable[..., Object]
FAMILIES = [socket.AF_INET, socket.AF_INET6]
OPTION = b"\xc8\x04\x07\x09"  # kind 200, with two bytes of data


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("sockops"))


@pytest.mark.parametrize("op", OPS)
def test_every_op_runs_on_a_socket_made_for_it(obj: Object, op: str) -> None:
    packet = {"skb": tcp_header("A")} if op == "parse_hdr_opt" else {}
    result = obj.programs.follow.run(op, **packet)
    assert (result.retval, result.errno) == ((0, errno.EPERM) if op == "rwnd_init" else (1, 0))
    earlier = {"passive_established": "syn_recv", "tcp_listen": "listen"}
    earlier |= dict.fromkeys(("timeout_init", "rwnd_init", "tcp_connect", "needs_ecn"), "syn_sent")
    assert obj.globals.last.state == STATES[earlier.get(op, "established")]


def test_reply_is_what_the_kernel_takes_for_it(obj: Object) -> None:
    follow = obj.programs.follow
    assert follow.run("timeout_init").reply == 10
    ignored = follow.run("rwnd_init")
    assert (ignored.reply, ignored.replylong[0]) == (-1, 20)


def test_arguments_by_number_and_states_by_name(obj: Object) -> None:
    obj.programs.follow.run("rto", args=(3, 200000, 1))
    assert list(obj.globals.last.args) == [3, 200000, 1]
    obj.programs.follow.run("state", args=("established", "fin_wait1"))
    assert list(obj.globals.last.args)[:2] == [1, 4]
    obj.programs.follow.run("state")
    assert list(obj.globals.last.args)[:2] == [1, 7]


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_callback_flags_and_membership_stay_with_the_socket(obj: Object, family: int) -> None:
    follow, connections = obj.programs.follow, obj.maps.connections
    with bpfunit.tcp_pair(family) as (client, server):
        port = client.getsockname()[1]
        assert follow.run("rtt", sock=client, cb_flags=()).cb_flags == frozenset()
        assert port not in connections
        result = follow.run("active_established", sock=client, skb=tcp_header("SA"))
        assert result.cb_flags == {"state"}
        assert result.storage() == 2
        # a program entered it, and the kernel shows no values of 4 bytes: the keys tell
        assert port in connections
        assert (list(connections), len(connections)) == ([port], 1)
        assert server.getsockname()[1] not in connections
        both = follow.run("rtt", sock=client, cb_flags=("state", "rto"))
        assert both.cb_flags == {"state", "rto"}
        follow.run("state", sock=client)
        assert port not in connections
        assert len(connections) == 0


def test_header_options_are_parsed_reserved_and_written(obj: Object) -> None:
    follow = obj.programs.follow
    assert follow.run("parse_hdr_opt", skb=tcp_header("A", OPTION)).reply == 9
    assert follow.run("parse_hdr_opt", skb=tcp_header("A")).reply == 0
    assert follow.run("hdr_opt_len", option_room=12).option_room == 8
    assert follow.run("hdr_opt_len", skb=tcp_header("S"), option_room=12).option_room == 8
    written = follow.run("write_hdr_opt", option_room=8)
    assert (written.option_room, written.options) == (4, [(200, b"\x01\x02")])
    assert "callback flags: none" in "\n".join(written.describe())


def test_many_ops_in_one_call(obj: Object) -> None:
    with bpfunit.tcp_pair() as (client, _):
        inputs = ["timeout_init", ("rto", {"args": [1, 2, 3]}), "rwnd_init"]
        runs = obj.programs.follow.run_many(inputs, sock=client).raise_for_errors()
        assert [run.reply for run in runs] == [10, 1, -1]
        assert [run.errno for run in runs] == [0, 0, errno.EPERM]
    with pytest.raises(ContextError, match="needs args="):
        obj.programs.follow.run_many(["state"], sock=client)
    with pytest.raises(ContextError, match="give it an op by its name"):
        obj.programs.follow.run_many(["connected"], sock=client)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_real_connection_does_what_the_runs_say(obj: Object, family: int) -> None:
    follow, connections = obj.programs.follow, obj.maps.connections
    with bpfunit.tcp_pair(family) as (client, _):
        crafted = follow.run("active_established", sock=client)
        assert client.getsockname()[1] in connections
        follow.run("state", sock=client)
        assert len(connections) == 0
    loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with closing(Cgroup()) as cgroup, socket.socket(family) as listener:
        listener.bind((loopback, 0))
        listener.listen()
        with (
            cgroup.entered(),
            cgroup.attached(AttachType.CGROUP_SOCK_OPS, follow.fd),
            socket.socket(family) as client,
        ):
            client.connect(listener.getsockname())
            port = client.getsockname()[1]
            assert list(connections) == [port]
            assert follow.run("rtt", sock=client).cb_flags == crafted.cb_flags
            server, _ = listener.accept()
            server.close()
            client.close()
            assert settled(lambda: len(connections), 0) == 0


def test_an_op_that_the_socket_cannot_meet_is_refused_in_words(obj: Object) -> None:
    follow = obj.programs.follow
    with socket.socket() as fresh:
        assert tcp_state(fresh) == "close"
        with pytest.raises(SyscallError, match="is in close; active_established is called in est"):
            follow.run("active_established", sock=fresh)
    with bpfunit.tcp_pair() as (client, _):
        with pytest.raises(SyscallError, match="in established; tcp_listen is called in listen"):
            follow.run("tcp_listen", sock=client)
        with pytest.raises(SyscallError, match="from established to listen") as refused:
            follow.run("state", sock=client, args=("established", "listen"))
        assert refused.value.errno == errno.ENOTCONN
    with socket.socket(type=socket.SOCK_DGRAM) as udp, pytest.raises(SyscallError, match="not TCP"):
        follow.run("rtt", sock=udp)


@pytest.mark.parametrize(
    ("op", "more", "said"),
    [
        ("connected", {}, "the ops are timeout_init, "),
        ("rtt", {"skb": b"x" * 20}, "no packet at hand for 'rtt'"),
        ("parse_hdr_opt", {}, "parses a packet"),
        ("parse_hdr_opt", {"skb": bytes(2049)}, "2049 bytes; 2048 can be given"),
        ("rtt", {"option_room": 4}, "ops with room for options are"),
        ("hdr_opt_len", {"option_room": 6}, "a multiple of 4"),
        ("rtt", {"args": (1, 2, 3)}, "'rtt' has 2 arguments"),
        ("state", {"args": ("open",)}, "is no number and no state"),
        ("rtt", {"cb_flags": "state"}, "give names of rto, "),
        ("rtt", {"cb_flags": ["all"]}, "give names of rto, "),
    ],
)
def test_a_slip_is_said_in_the_words_of_run(
    obj: Object, op: str, more: dict[str, Any], said: str
) -> None:
    assert isinstance(obj.programs.follow, SockOpsProgram)
    with pytest.raises(ContextError, match=said):
        obj.programs.follow.run(op, **more)


def test_a_header_that_cannot_be_is_refused() -> None:
    with pytest.raises(ContextError, match="FSRPAUEC"):
        tcp_header("X")
    with pytest.raises(ContextError, match="there is room for 40"):
        tcp_header("A", bytes(41))
