"""XDP: packets built by scapy, verdict and map afterwards."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

XDP_DROP, XDP_PASS = 1, 2

# The address is given so that scapy does not look for a neighbour.
ETHER = Ether(dst="02:00:00:00:00:01")

pytestmark = pytest.mark.guest


@pytest.fixture
def firewall(bpf_load, built):
    return bpf_load(built("xdp_firewall"))


def test_tcp_to_a_blocked_port_is_dropped_and_counted(firewall):
    firewall.maps.blocked_ports[23] = 1
    packet = ETHER / IP(dst="192.0.2.1") / TCP(dport=23, flags="S")
    result = firewall.programs.firewall.run(data=bytes(packet))
    assert result.retval == XDP_DROP
    assert firewall.globals.dropped == 1


@pytest.mark.parametrize(
    "packet",
    [
        ETHER / IP(dst="192.0.2.1") / TCP(dport=22),
        ETHER / IP(dst="192.0.2.1") / UDP(dport=23),
        ETHER / bytes(46),
    ],
    ids=["another port", "udp", "not ip"],
)
def test_everything_else_passes(firewall, packet):
    firewall.maps.blocked_ports[23] = 1
    result = firewall.programs.firewall.run(data=bytes(packet))
    assert result.retval == XDP_PASS
    assert result.data == bytes(packet)
    assert firewall.globals.dropped == 0


def test_ip_options_do_not_hide_the_port(firewall):
    firewall.maps.blocked_ports[23] = 1
    packet = ETHER / IP(dst="192.0.2.1", options=b"\x01" * 8) / TCP(dport=23)
    assert firewall.programs.firewall.run(data=bytes(packet)).retval == XDP_DROP
