"""Program types that the kernel itself can run: packets in, packets out, through the same API."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from bpfunit import Object, ip4

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


@pytest.mark.needs(since="5.13")  # the test run of sk_lookup
def test_sk_lookup_runs_on_a_context_alone(bpf_load: Callable[..., Object]) -> None:
    obj = bpf_load(compiled("native"), programs=["refuse_port_7"])
    for port, verdict in ((7, 0), (8, 1)):
        context = obj.types["struct bpf_sk_lookup"](
            family=socket.AF_INET, protocol=socket.IPPROTO_TCP, local_port=port
        )
        result = obj.programs.refuse_port_7.run(ctx=context)
        assert result.retval == verdict
        assert result.ctx.cookie == 0, "no socket was chosen"
