"""TC: the packet after the run, and the socket buffer's own fields."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

TC_ACT_OK, TC_ACT_SHOT = 0, 2
EXPEDITED = 46  # DSCP "EF", RFC 3246

pytestmark = pytest.mark.guest


@pytest.fixture
def marker(bpf_load, built):
    return bpf_load(built("tc_mark"))


def frame(ttl=64, dscp=EXPEDITED):
    ip = IP(dst="192.0.2.1", ttl=ttl, tos=dscp << 2)
    return Ether(dst="02:00:00:00:00:01") / ip / UDP(dport=5060)


def test_the_mark_of_the_dscp_ends_up_on_the_buffer(marker):
    marker.maps.mark_of_dscp[EXPEDITED] = 0x2E
    buffer = marker.types.__sk_buff(priority=6)
    result = marker.programs.mark.run(data=bytes(frame()), ctx=buffer)
    assert result.retval == TC_ACT_OK
    assert result.ctx.mark == 0x2E
    assert result.ctx.priority == 6


def test_the_ttl_goes_down_and_the_checksum_stays_right(marker):
    result = marker.programs.mark.run(data=bytes(frame(ttl=64)))
    after = Ether(result.data)
    assert after[IP].ttl == 63
    found = after[IP].chksum
    del after[IP].chksum  # scapy computes it anew
    assert found == Ether(bytes(after))[IP].chksum


def test_a_packet_at_the_end_of_its_life_is_dropped(marker):
    packet = bytes(frame(ttl=1))
    result = marker.programs.mark.run(data=packet)
    assert result.retval == TC_ACT_SHOT
    assert result.data == packet
