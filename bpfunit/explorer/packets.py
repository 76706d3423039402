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
_HOP_BY_HOP, _FRAGMENT, _DESTINATION = 0, 44, 60
# As the rest of a TCP header behind what UDP or ICMP have it is a SYN: see _tcp().
_PAYLOAD = b"pay.\x50\x02load.."
_PADDING = bytes((1, 4, 0, 0, 0, 0))  # PadN, RFC 8200
_IP_OPTIONS = bytes((1, 148, 4, 0, 0, 1, 1, 0))  # router alert between no-operations
# what a Linux client sends with SYN: MSS, SACK permitted, timestamps, window scale
_TCP_OPTIONS = bytes.fromhex("020405b4 0402 080a 00000001 00000000 01 030307")
# the question for example.com, type A
_QUESTION = bytes.fromhex("000101000001000000000000") + b"\7example\3com\0\0\1\0\1"


def _ethernet(kind: int, rest: bytes) -> bytes:
    return bytes.fromhex("020000000002 020000000001") + struct.pack("!H", kind) + rest


def _ip4(protocol: int, rest: bytes, options: bytes = b"", fragment: int = 0) -> bytes:
    size = 20 + len(options)
    return (
        struct.pack(
            "!BBHHHBBH", 0x40 | size // 4, 0, size + len(rest), 1, fragment, 64, protocol, 0
        )
        + bytes((10, 1, 0, 1))
        + bytes((10, 2, 0, 2))
        + options
        + rest
    )


def _ip6(protocol: int, rest: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(rest), protocol, 64)
    return head + bytes.fromhex("fd" + "00" * 14 + "01" + "fd" + "00" * 14 + "02") + rest


def _extended(protocol: int, rest: bytes) -> tuple[int, bytes]:
    """Return the number of the first of some extension headers, and them with the rest."""
    fragment = struct.pack("!BBHI", protocol, 0, 1, 7)
    destination = struct.pack("!BB", _FRAGMENT, 0) + _PADDING
    return _HOP_BY_HOP, struct.pack(
        "!BB", _DESTINATION, 0
    ) + _PADDING + destination + fragment + rest


def _tcp(options: bytes = b"") -> bytes:
    """Return a segment that is a sound datagram of UDP and a ping as well.

    So that an input with the number of another protocol in it is not malformed.
    """
    size = 20 + len(options)
    as_udp = size + len(_PAYLOAD) << 16 | 1
    head = struct.pack("!HHIIBBHHH", 0x0800, 80, as_udp, 0, size << 2, 0x02, 8192, 0, 0)
    return head + options + _PAYLOAD


def _udp(payload: bytes = _PAYLOAD) -> bytes:
    return struct.pack("!HHHH", 40002, 53, 8 + len(payload), 0) + payload


def _icmp() -> bytes:
    return struct.pack("!BBHHH", 8, 0, 0, 1, 1) + _PAYLOAD


def beginnings() -> list[bytes]:
    """Return the packets."""
    tcp4, udp4 = _ip4(_TCP, _tcp()), _ip4(_UDP, _udp())
    inner = struct.pack("!HH", 5, _IP) + tcp4
    twice = struct.pack("!HHHH", 5, _VLAN, 6, _IP) + tcp4
    return [
        _ethernet(_IP, tcp4),
        _ethernet(_IP, udp4),
        _ethernet(_IP, _ip4(_ICMP, _icmp())),
        _ethernet(_IP6, _ip6(_TCP, _tcp())),
        _ethernet(_IP6, _ip6(_UDP, _udp())),
        _ethernet(_IP6, _ip6(_ICMP6, _icmp())),
        _ethernet(_ARP, struct.pack("!HHBBH", 1, _IP, 6, 4, 1) + bytes(20)),
        _ethernet(_VLAN, inner),
        _ethernet(_VLAN, twice),
        _ethernet(_IP, _ip4(_TCP, _tcp(_TCP_OPTIONS), _IP_OPTIONS)),
        _ethernet(_IP, _ip4(_UDP, _udp(), fragment=0x2001)),
        _ethernet(_IP, _ip4(_UDP, _udp(_QUESTION))),
        _ethernet(_IP6, _ip6(*_extended(_TCP, _tcp()))),
        bytes(64),
    ]
