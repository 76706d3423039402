"""What has to be so before a real call can show a hook the crafted address.

A datagram from any source waits in a socket's queue, a socket is connected to any peer, a socket is
bound to any address: all within the network namespace of the socket, over its loopback interface,
so that nothing leaves the guest.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from bpfunit import netns
from bpfunit._sys import sockets
from bpfunit.progtypes.sock_addr.crafted import Crafted

_TCP_REPAIR = 19
_IP_FREEBIND, _IP_BIND_ADDRESS_NO_PORT = 15, 24
_IPV6_FREEBIND, _IPV6_HDRINCL = 78, 36
_DELIVERY_SECONDS = 0.2  # loopback delivers within the send; a loaded guest may defer to ksoftirqd
_UDP_LIKE = (socket.IPPROTO_UDP, socket.IPPROTO_UDPLITE)
_ANY4, _ANY6 = bytes(4), bytes(16)
_MAPPED = bytes(10) + b"\xff\xff"
_UNSPEC = struct.pack("=H14x", socket.AF_UNSPEC)


def disconnect(sock: socket.socket) -> None:
    """Undo a connect: the socket has no peer and may connect anew (connect(2), AF_UNSPEC)."""
    sockets.connect(sock.fileno(), _UNSPEC)


# ---- a datagram from anywhere ----


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of bytes, for UDP never 0 (RFC 768)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


def _udp_packet(protocol: int, source: bytes, sport: int, target: bytes, dport: int) -> bytes:
    """Return an IPv4 or IPv6 packet with a UDP or UDP-Lite datagram of two bytes."""
    payload, length = b"ok", 10
    # UDP-Lite has the checksum's coverage where UDP has the length, 0 for all of it (RFC 3828)
    stated = length if protocol == socket.IPPROTO_UDP else 0
    pseudo = source + target + struct.pack("!II", length, protocol)
    total = checksum(pseudo + struct.pack("!HHHH", sport, dport, stated, 0) + payload)
    udp = struct.pack("!HHHH", sport, dport, stated, total) + payload
    if len(source) == 4:
        # the kernel fills in total length, id and header checksum (raw(7), IP_HDRINCL)
        header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, protocol, 0)
    else:
        header = struct.pack("!IHBB", 6 << 28, length, protocol, 64)
    return header + source + target + udp


def raw_socket(family: int) -> socket.socket:
    """Return a socket that sends packets from their IP header on."""
    raw = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
    if family == socket.AF_INET6:
        raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
    return raw


def queue_datagram(crafted: Crafted, sock: socket.socket) -> None:
    """Let a datagram from the crafted address wait in the socket's queue.

    It goes out by the loopback interface, which keeps the route that the sender chose, so that no
    check on the way in asks whether the source is plausible. A socket without a port gets one, as
    it would with the first datagram that it sends.

    Raises:
        NotApplicableError: no such datagram can reach this socket.
    """
    protocol = sockets.protocol(sock)
    if protocol not in _UDP_LIKE:
        raise crafted.refuse("only a UDP socket can be sent a datagram from any source")
    if select.select([sock], [], [], 0)[0]:
        raise crafted.refuse("another datagram already waits in the socket's queue")
    if sock.getsockname()[1] == 0:
        sockets.bind(sock.fileno(), struct.pack("=H26x", sock.family))
    local, port = sock.getsockname()[:2]
    source, target = crafted.address, socket.inet_pton(sock.family, local.partition("%")[0])
    if source.startswith(_MAPPED) and len(source) == 16:
        # an IPv4 datagram on a dual-stack socket reads as a v4-mapped address
        source, target = source[12:], target[12:] if target.startswith(_MAPPED) else _ANY4
    if target == _ANY4:
        target = socket.inet_aton("127.0.0.1")
    if target == _ANY6:
        target = socket.inet_pton(socket.AF_INET6, "::1")
    packet = _udp_packet(protocol, source, crafted.port, target, port)
    family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
    host = socket.inet_ntop(family, target)
    with netns.of_socket(sock), raw_socket(family) as raw:
        try:
            raw.sendto(packet, (host, 0))
        except OSError as error:
            raise crafted.refuse(f"a datagram to {host} cannot be sent: {error.strerror}") from None
    if not select.select([sock], [], [], _DELIVERY_SECONDS)[0]:
        raise crafted.refuse("the kernel delivers no datagram with this source to the socket")


# ---- a socket connected to anybody, bound to anything ----


@contextmanager
def route(address: bytes) -> Iterator[None]:
    """Have a local route to one host, in the current network namespace, within the block."""
    host = socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
    added = netns.change_host_route(host, add=True) == 0
    try:
        yield
    finally:
        if added:
            netns.change_host_route(host, add=False)


def scope(address: bytes) -> int:
    """Return the interface that a link-local IPv6 address needs with it, 0 for others."""
    link_local = address[:1] == b"\xfe" and len(address) == 16 and address[1] & 0xC0 == 0x80
    multicast = address[:1] == b"\xff" and len(address) == 16 and address[1] & 0x0F in (1, 2)
    return netns.LOOPBACK_INDEX if link_local or multicast else 0


@contextmanager
def connected(crafted: Crafted, sock: socket.socket, ours: bool) -> Iterator[None]:
    """Have the crafted address as the socket's peer within the block.

    A TCP socket is put into the established state without a packet (``TCP_REPAIR``, Linux 3.5).

    Raises:
        NotApplicableError: the socket has another peer, or cannot have this one.
    """
    failure, peer = (errno.ENOTCONN, b"") if ours else sockets.name(sock.fileno(), "getpeername")
    if not failure:
        if not _same_address(peer, crafted.sockaddr()):
            raise crafted.refuse("the socket is connected to another peer")
        yield
        return
    repair = sock.type == socket.SOCK_STREAM
    if repair and sockets.protocol(sock) != socket.IPPROTO_TCP:
        raise crafted.refuse("of stream sockets only TCP can have a peer that does not answer")
    host = crafted.address[12:] if crafted.address[:12] == _MAPPED else crafted.address
    with netns.of_socket(sock), route(host):
        if repair:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        try:
            failure = sockets.connect(sock.fileno(), crafted.sockaddr(scope(crafted.address)))
            if failure:
                raise crafted.refuse(f"no socket gets this peer: {os.strerror(failure).lower()}")
            yield
        finally:
            disconnect(sock)
            if repair:
                sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)


def bound(crafted: Crafted, sock: socket.socket, ours: bool) -> None:
    """See to it that the socket is bound to the crafted address.

    Args:
        crafted: the context whose address is to be the socket's own.
        sock: the socket.
        ours: whether it may be bound here; somebody else's stays as it is.

    Raises:
        NotApplicableError: it is bound to another address, or cannot be bound to this one.
    """
    if not ours:
        failure, local = sockets.name(sock.fileno(), "getsockname")
        if not failure and _same_address(local, crafted.sockaddr()):
            return
        raise crafted.refuse("the socket is bound to another address; bind it to this one first")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    if crafted.port == 0 and sock.type != socket.SOCK_RAW:
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    failure = sockets.bind(sock.fileno(), crafted.sockaddr(scope(crafted.address)))
    if failure:
        raise crafted.refuse(f"no socket gets this address: {os.strerror(failure).lower()}")


def _same_address(one: bytes, other: bytes) -> bool:
    """Compare family, port and address of two socket addresses, and nothing else."""
    if len(one) < 8 or one[:4] != other[:4]:
        return False
    return one[4:8] == other[4:8] if one[0] == socket.AF_INET else one[8:24] == other[8:24]
