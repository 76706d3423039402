"""What has to be so before a real call can show a hook the crafted address.

A datagram from any source waits in a socket's queue, a socket is connected to any peer, a socket is
bound to any address: all within the network namespace of the socket, over its loopback interface, so
that nothing leaves the guest.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from ..._sys import libc, sockets
from .crafted import Crafted

_SIOCGSKNS = 0x894C  # include/uapi/linux/sockios.h, since Linux 4.10
_SIOCADDRT, _SIOCDELRT = 0x890B, 0x890C
_RTF_UP, _RTF_HOST = 0x0001, 0x0004
_LOOPBACK_INDEX = 1  # lo is the first interface of every network namespace (net/core/dev.c)
_TCP_REPAIR = 19
_IP_FREEBIND, _IP_BIND_ADDRESS_NO_PORT = 15, 24
_IPV6_FREEBIND, _IPV6_HDRINCL = 78, 36
_DELIVERY_SECONDS = 2.0  # loopback delivers within the send; a loaded guest may defer to ksoftirqd
_ANY4, _ANY6 = bytes(4), bytes(16)
_MAPPED = bytes(10) + b"\xff\xff"
_UNSPEC = struct.pack("=H14x", socket.AF_UNSPEC)


@contextmanager
def namespace_of(sock: socket.socket) -> Iterator[None]:
    """Work in the network namespace of a socket within the block; the calling thread's is restored."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
        try:
            if os.path.samestat(os.fstat(theirs), os.fstat(home)):
                yield
                return
            libc.setns(theirs, libc.CLONE_NEWNET)
            try:
                yield
            finally:
                libc.setns(home, libc.CLONE_NEWNET)
        finally:
            os.close(theirs)
    finally:
        os.close(home)


def disconnect(sock: socket.socket) -> None:
    """Undo a connect: the socket has no peer and may connect anew (connect(2), AF_UNSPEC)."""
    sockets.connect(sock.fileno(), _UNSPEC)


# ---- a datagram from anywhere ----


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071), for UDP never 0 (RFC 768)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


def _udp_packet(source: bytes, sport: int, target: bytes, dport: int) -> bytes:
    """Return an IPv4 or IPv6 packet with a UDP datagram of two bytes."""
    payload, length = b"ok", 10
    pseudo = source + target + struct.pack("!II", length, socket.IPPROTO_UDP)
    checksum = _checksum(pseudo + struct.pack("!HHHH", sport, dport, length, 0) + payload)
    udp = struct.pack("!HHHH", sport, dport, length, checksum) + payload
    if len(source) == 4:
        # the kernel fills in total length, id and header checksum (raw(7), IP_HDRINCL)
        header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0)
    else:
        header = struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64)
    return header + source + target + udp


def _raw_socket(family: int) -> socket.socket:
    raw = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
    if family == socket.AF_INET6:
        raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
    return raw


def queue_datagram(crafted: Crafted, sock: socket.socket, bind: bool) -> None:
    """Let a datagram from the crafted address wait in the socket's queue.

    It goes out by the loopback interface, which keeps the route that the sender chose, so that no check
    on the way in asks whether the source is plausible.

    Args:
        crafted: the context whose address is the sender.
        sock: the receiver.
        bind: whether the socket is ours, to be bound where it is not yet.

    Raises:
        NotApplicableError: no such datagram can reach this socket.
    """
    if sock.proto != socket.IPPROTO_UDP:
        raise crafted.refuse("only a UDP socket can be sent a datagram from any source")
    if select.select([sock], [], [], 0)[0]:
        raise crafted.refuse("another datagram already waits in the socket's queue")
    if bind and sock.getsockname()[1] == 0:
        sockets.bind(sock.fileno(), struct.pack("=H26x", sock.family))
    local, port = sock.getsockname()[:2]
    if port == 0:
        raise crafted.refuse("the socket is not bound, so nothing can be sent to it; bind it first")
    source, target = crafted.address, socket.inet_pton(sock.family, local.partition("%")[0])
    if source.startswith(_MAPPED) and len(source) == 16:
        # an IPv4 datagram on a dual-stack socket reads as a v4-mapped address
        source, target = source[12:], target[12:] if target.startswith(_MAPPED) else _ANY4
    if target == _ANY4:
        target = socket.inet_aton("127.0.0.1")
    if target == _ANY6:
        target = socket.inet_pton(socket.AF_INET6, "::1")
    host = socket.inet_ntop(socket.AF_INET if len(source) == 4 else socket.AF_INET6, target)
    packet = _udp_packet(source, crafted.port, target, port)
    with namespace_of(sock), _raw_socket(4 if len(source) == 4 else 6) as raw:
        try:
            raw.sendto(packet, (host, 0))
        except OSError as error:
            raise crafted.refuse(f"a datagram to {host} cannot be sent: {error.strerror}") from None
    if not select.select([sock], [], [], _DELIVERY_SECONDS)[0]:
        raise crafted.refuse("the kernel delivers no datagram with this source to the socket")


# ---- a socket connected to anybody ----


def _route_request(address: bytes) -> bytes:
    """Return the route of one host by the loopback interface, as the route ioctls take it."""
    if len(address) == 16:  # struct in6_rtmsg
        flags = _RTF_UP | _RTF_HOST
        return struct.pack("=16s32xIHHIQIi", address, 0, 128, 0, 1, 0, flags, _LOOPBACK_INDEX)
    raise NotImplementedError


@contextmanager
def route(address: bytes) -> Iterator[None]:
    """Have a route to one host by the loopback interface within the block."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    request = _route_request(address)
    with socket.socket(family, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCADDRT, request)
        except FileExistsError:
            yield
            return
        try:
            yield
        finally:
            fcntl.ioctl(control, _SIOCDELRT, request)
