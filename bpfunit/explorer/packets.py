"""Packets to begin a search with: one of each shape that parsers look for."""

from __future__ import annotations

import struct

TYPES = (
    *("xdp", "sched_cls", "sched_act", "socket_filter", "cgroup_skb", "flow_dissector"),
    *("lwt_in", "lwt_out", "lwt_xmit", "lwt_seg6local"),
)
SHORTEST_PACKET = 14  # ETH_HLEN: newer kernels' bpf_test_init() refuses less
_IP, _IP6, _ARP, _VLAN = 0x0800, 0x86DD, 0x0806, 0x8100
_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58
_PAYLOAD = b"payload."


def _ethernet(kind: int, rest: bytes) -> bytes:
    return bytes.fromhex("020000000002 020000000001") + struct.pack("!H", kind) + rest


def _ip4(protocol: int, rest: bytes) -> bytes:
    return (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(rest), 1, 0, 64, protocol, 0)
        + bytes((10, 1, 0, 1))
        + bytes((10, 2, 0, 2))
        + rest
    )


def _ip6(protocol: int, rest: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(rest), protocol, 64)
    return head + bytes.fromhex("fd" + "00" * 14 + "01" + "fd" + "00" * 14 + "02") + rest


def _tcp() -> bytes:
    head = struct.pack("!HHIIBBHHH", 40001, 80, 1, 0, 0x50, 0x02, 8192, 0, 0)
    return head + _PAYLOAD


def _udp() -> bytes:
    return struct.pack("!HHHH", 40002, 53, 8 + len(_PAYLOAD), 0) + _PAYLOAD


def _icmp() -> bytes:
    return struct.pack("!BBHHH", 8, 0, 0, 1, 1) + _PAYLOAD


def beginnings() -> list[bytes]:
    """Return the packets."""
    tcp4, udp4 = _ip4(_TCP, _tcp()), _ip4(_UDP, _udp())
    inner = struct.pack("!HH", 5, _IP) + tcp4
    return [
        _ethernet(_IP, tcp4),
        _ethernet(_IP, udp4),
        _ethernet(_IP, _ip4(_ICMP, _icmp())),
        _ethernet(_IP6, _ip6(_TCP, _tcp())),
        _ethernet(_IP6, _ip6(_UDP, _udp())),
        _ethernet(_IP6, _ip6(_ICMP6, _icmp())),
        _ethernet(_ARP, struct.pack("!HHBBH", 1, _IP, 6, 4, 1) + bytes(20)),
        _ethernet(_VLAN, inner),
        bytes(64),
    ]
