"""Program types that the kernel itself can run: packets in, packets out, through the same API."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bpfunit import BpfunitError, ContextError, Object, ip4

from ..objects import compiled

pytestmark = pytest.mark.guest

XDP_DROP, XDP_PASS = 1, 2
TC_ACT_OK = 0


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Callable[..., Object]) -> Object:
    names = ["drop_discard", "lower_ttl", "only_udp"]
    return bpf_load(compiled("native"), programs=names)


@pytest.fixture(scope="module")
def scapy() -> Any:
    return pytest.importorskip("scapy.all", reason="packets are built by scapy: pip install scapy")


def udp(scapy: Any, destination_port: int, **ip: Any) -> bytes:
    packet = scapy.Ether() / scapy.IP(src="10.0.0.1", dst="10.0.0.2", **ip)
    return bytes(packet / scapy.UDP(dport=destination_port) / b"hello, world")


def test_xdp_drops_and_counts_by_source(obj: Object, scapy: Any) -> None:
    program = obj.programs.drop_discard
    assert program.run(data=udp(scapy, 9)).retval == XDP_DROP
    assert program.run(data=udp(scapy, 9)).retval == XDP_DROP
    assert program.run(data=udp(scapy, 53)).retval == XDP_PASS
    assert obj.maps.dropped.snapshot() == {ip4("10.0.0.1"): 2}


def test_tc_changes_packet_and_context(obj: Object, scapy: Any) -> None:
    packet = udp(scapy, 53, ttl=64)
    skb = obj.types["struct __sk_buff"](mark=1)
    result = obj.programs.lower_ttl.run(data=packet, ctx=skb)
    assert result.retval == TC_ACT_OK
    assert scapy.Ether(result.data)[scapy.IP].ttl == 63
    assert result.ctx.mark == len(packet)
    assert result.ctx_in.mark == 1


def test_cgroup_skb_sees_the_network_header(obj: Object, scapy: Any) -> None:
    tcp = bytes(scapy.Ether() / scapy.IP() / scapy.TCP())
    assert obj.programs.only_udp.run(data=udp(scapy, 1)).retval == 1
    assert obj.programs.only_udp.run(data=tcp).retval == 0


def test_repeated_runs_are_timed(obj: Object, scapy: Any) -> None:
    result = obj.programs.drop_discard.run(data=udp(scapy, 9), repeat=100)
    assert result.duration_ns is not None
    assert obj.maps.dropped[ip4("10.0.0.1")] == 100


@pytest.fixture
def lookup(bpf_load: Callable[..., Object]) -> Any:
    return bpf_load(compiled("native"), programs=["refuse_port_7", "to_the_server"])


@pytest.mark.needs(since="5.13")  # the test run of sk_lookup
def test_sk_lookup_runs_on_a_context_of_the_objects_types(lookup: Object) -> None:
    for port, verdict in ((7, 0), (8, 1)):
        context = lookup.types["struct bpf_sk_lookup"](
            family=socket.AF_INET, protocol=socket.IPPROTO_TCP, local_port=port
        )
        result = lookup.programs.refuse_port_7.run(ctx=context)
        assert result.retval == verdict
        assert result.ctx.cookie == 0, "no socket was chosen"


@pytest.mark.needs(since="5.13")
@pytest.mark.parametrize(
    ("dst", "src", "protocol"),
    [
        ("127.0.0.1:9", "10.0.0.9:4242", "tcp"),
        ("[fd00::1]:9", "[fd00::9]:4242", "tcp"),
        ("127.0.0.1:9", "10.0.0.9:4242", "udp"),
    ],
)
def test_sk_lookup_sees_both_ends_and_the_protocol(
    lookup: Object, dst: str, src: str, protocol: str
) -> None:
    seen = lookup.maps.lookup_seen
    assert lookup.programs.to_the_server.run(dst, src=src, protocol=protocol).verdict == "SK_PASS"
    family = socket.AF_INET6 if "[" in dst else socket.AF_INET
    number = socket.IPPROTO_UDP if protocol == "udp" else socket.IPPROTO_TCP
    assert seen[0].family == family
    assert seen[0].protocol == number
    assert (seen[0].local_port, socket.ntohs(seen[0].remote_port)) == (9, 4242)
    version = 6 if family == socket.AF_INET6 else 4
    for end, endpoint in (("local", dst), ("remote", src)):
        address = socket.inet_pton(family, endpoint.rpartition(":")[0].strip("[]"))
        value = getattr(seen[0], f"{end}{version}")
        found = value.to_bytes(4, sys.byteorder) if version == 4 else bytes(value)
        assert found == address


@pytest.mark.needs(since="5.13")
def test_sk_lookup_tells_whom_it_chose(lookup: Object) -> None:
    steer = lookup.programs.to_the_server
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        assert steer.run("127.0.0.1:80").selection == 0
        assert not steer.run("127.0.0.1:80").selected(server)
        lookup.maps.servers[0] = server
        run = steer.run("127.0.0.1:80")
        assert run.selected(server)
        assert run.selected(lookup.maps.servers, 0)
        assert not run.selected(other)
        lookup.maps.servers[0] = other
        assert not run.selected(lookup.maps.servers, 0), "the map is asked now"
        contexts = [steer.craft("127.0.0.1:80"), steer.craft("[::1]:80")]
        assert [one.retval for one in steer.run_many(contexts)] == [1, 0], "IPv4 server for IPv6"


@pytest.mark.needs(since="5.13")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((),), "10.96.0.1:80"),
        (("10.0.0.1",), "no port"),
        ((None,), "found None"),
        ((b"",), "EINVAL"),
    ],
)
def test_sk_lookup_refuses_other_input(lookup: Object, arguments: Any, words: str) -> None:
    with pytest.raises(BpfunitError, match=re.escape(words)):
        lookup.programs.refuse_port_7.run(*arguments)


@pytest.mark.needs(since="5.13")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"src": "[fd00::1]:1"}, "both are of IPv4"),
        ({"protocol": "sctp"}, 'expected "tcp"'),
        ({"ctx": bytes(72)}, "leave out dst"),
    ],
)
def test_sk_lookup_refuses_what_does_not_go_together(
    lookup: Object, options: Any, words: str
) -> None:
    with pytest.raises(ContextError, match=words):
        lookup.programs.refuse_port_7.run("10.0.0.1:80", **options)
