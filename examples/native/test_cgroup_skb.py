"""cgroup_skb: 1 lets the packet pass, 0 drops it."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

pytestmark = pytest.mark.guest


@pytest.mark.parametrize(
    ("payload", "verdict"),
    [(UDP(dport=53), 1), (UDP(dport=123), 0), (TCP(dport=53), 0)],
    ids=["dns", "another udp port", "dns over tcp"],
)
def test_only_dns_may_leave(bpf_load, built, payload, verdict):
    packet = Ether(dst="02:00:00:00:00:01") / IP(dst="192.0.2.53") / payload
    result = bpf_load(built("cgroup_dns_only")).programs.dns_only.run(data=bytes(packet))
    assert result.retval == verdict
