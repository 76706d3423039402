"""The real calls, one a hook: each brings its hook to see the crafted context, if any call can."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from bpfunit._sys import sockets
from bpfunit.progtypes.sock_addr import arrange
from bpfunit.progtypes.sock_addr.crafted import Crafted

_IP_PKTINFO, _IPV6_PKTINFO, _IPV6_FREEBIND = 8, 50, 78
_DONTWAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Case(NamedTuple):
    """One run: the context wanted, the socket, and whether that socket was made for the run."""

    crafted: Crafted
    sock: socket.socket
    ours: bool


@contextmanager
def _without_blocking(sock: socket.socket) -> Iterator[None]:
    """Keep a call from waiting for an answer that the network of a guest never gives."""
    fd = sock.fileno()
    before = os.get_blocking(fd)
    os.set_blocking(fd, False)
    try:
        yield
    finally:
        os.set_blocking(fd, before)


def _connect(case: Case) -> int:
    with _without_blocking(case.sock):
        return sockets.connect(case.sock.fileno(), case.crafted.sockaddr())


def _bind(case: Case) -> int:
    return sockets.bind(case.sock.fileno(), case.crafted.sockaddr())


def _control(case: Case) -> bytes:
    """Return the control message that names the datagram's source address, nothing for none."""
    source = case.crafted.source
    if not any(source):
        return b""
    if case.crafted.is_v4:  # struct in_pktinfo: interface, source, (unused) destination
        info, option = struct.pack("=i4s4x", 0, source), (socket.IPPROTO_IP, _IP_PKTINFO)
    else:  # struct in6_pktinfo: source, interface
        interface = struct.pack("=I", arrange.scope(source))
        info, option = source + interface, (socket.IPPROTO_IPV6, _IPV6_PKTINFO)
    header = struct.pack("=Qii", 16 + len(info), *option)
    return (header + info).ljust(40, b"\0")[: 16 + (len(info) + 7) // 8 * 8]


@contextmanager
def _any_source(case: Case) -> Iterator[None]:
    """Let an IPv6 socket name a source address that no interface has."""
    sock = case.sock
    if case.crafted.is_v4 or not any(case.crafted.source):
        yield
        return
    before = sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND)
    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    try:
        yield
    finally:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, before)


def _sendmsg(case: Case) -> int:
    address, control = case.crafted.sockaddr(), _control(case)
    return sockets.sendmsg(case.sock.fileno(), b"bpfunit", address, control, _DONTWAIT)


@contextmanager
def _datagram_waiting(case: Case) -> Iterator[None]:
    arrange.queue_datagram(case.crafted, case.sock)
    yield


def _recvmsg(case: Case) -> int:
    return sockets.recvmsg(case.sock.fileno(), _DONTWAIT)[0]


def _connected(case: Case) -> AbstractContextManager[None]:
    return arrange.connected(case.crafted, case.sock, case.ours)


def _getpeername(case: Case) -> int:
    return sockets.name(case.sock.fileno(), "getpeername")[0]


@contextmanager
def _bound(case: Case) -> Iterator[None]:
    arrange.bound(case.crafted, case.sock, case.ours)
    yield


def _getsockname(case: Case) -> int:
    return sockets.name(case.sock.fileno(), "getsockname")[0]


def _nothing(_case: Case) -> AbstractContextManager[None]:
    return nullcontext()


class Call(NamedTuple):
    """How one hook is reached.

    ``arranged`` holds what the call needs, and is entered before any program is attached; ``make``
    makes the call and returns 0 or its errno.
    """

    arranged: Callable[[Case], AbstractContextManager[None]]
    make: Callable[[Case], int]


CALLS = {
    "connect": Call(_nothing, _connect),
    "bind": Call(_nothing, _bind),
    "sendmsg": Call(_any_source, _sendmsg),
    "recvmsg": Call(_datagram_waiting, _recvmsg),
    "getpeername": Call(_connected, _getpeername),
    "getsockname": Call(_bound, _getsockname),
}
