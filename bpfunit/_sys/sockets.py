"""The socket calls that take a ``struct sockaddr``, with the bytes of that structure as they are.

Python's ``socket`` builds the structure from the socket's family, and so cannot hand an IPv4
address to an IPv6 socket, or a family that does not fit: the very calls whose hooks are tested.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_libc = ctypes.CDLL(None, use_errno=True)

_SOCKADDR_STORAGE = 128  # sizeof(struct sockaddr_storage)


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Msghdr(ctypes.Structure):
    """``struct msghdr`` of glibc and musl on 64-bit machines."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


_int, _ptr, _len = ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32
for _name, _arguments, _result in (
    ("connect", [_int, _ptr, _len], _int),
    ("bind", [_int, _ptr, _len], _int),
    ("getpeername", [_int, _ptr, ctypes.POINTER(_len)], _int),
    ("getsockname", [_int, _ptr, ctypes.POINTER(_len)], _int),
    ("sendmsg", [_int, ctypes.POINTER(_Msghdr), _int], ctypes.c_ssize_t),
    ("recvmsg", [_int, ctypes.POINTER(_Msghdr), _int], ctypes.c_ssize_t),
):
    _function = getattr(_libc, _name)
    _function.argtypes, _function.restype = _arguments, _result


def connect(fd: int, address: bytes) -> int:
    """``connect(2)``; return 0 or the errno."""
    return 0 if _libc.connect(fd, address, len(address)) == 0 else ctypes.get_errno()


def bind(fd: int, address: bytes) -> int:
    """``bind(2)``; return 0 or the errno."""
    return 0 if _libc.bind(fd, address, len(address)) == 0 else ctypes.get_errno()


def name(fd: int, call: str) -> tuple[int, bytes]:
    """``getpeername(2)`` or ``getsockname(2)``, as ``call`` says; return errno and address."""
    buffer = ctypes.create_string_buffer(_SOCKADDR_STORAGE)
    length = _len(_SOCKADDR_STORAGE)
    if getattr(_libc, call)(fd, buffer, ctypes.byref(length)) != 0:
        return ctypes.get_errno(), b""
    return 0, buffer.raw[: length.value]


def sendmsg(fd: int, payload: bytes, address: bytes, control: bytes, flags: int) -> int:
    """``sendmsg(2)`` of one buffer to ``address`` with control data; return 0 or the errno."""
    target = ctypes.create_string_buffer(address, len(address))
    data = ctypes.create_string_buffer(payload, len(payload))
    extra = ctypes.create_string_buffer(control, len(control)) if control else None
    vector = _Iovec(ctypes.addressof(data), len(payload))
    message = _Msghdr(
        name=ctypes.addressof(target),
        namelen=len(address),
        iov=ctypes.pointer(vector),
        iovlen=1,
        control=ctypes.addressof(extra) if extra is not None else None,
        controllen=len(control),
    )
    return 0 if _libc.sendmsg(fd, ctypes.byref(message), flags) >= 0 else ctypes.get_errno()


def recvmsg(fd: int, flags: int) -> tuple[int, bytes]:
    """``recvmsg(2)`` with room for the sender's address; return the errno and that address."""
    sender = ctypes.create_string_buffer(_SOCKADDR_STORAGE)
    data = ctypes.create_string_buffer(1 << 16)
    vector = _Iovec(ctypes.addressof(data), len(data))
    message = _Msghdr(
        name=ctypes.addressof(sender),
        namelen=_SOCKADDR_STORAGE,
        iov=ctypes.pointer(vector),
        iovlen=1,
    )
    if _libc.recvmsg(fd, ctypes.byref(message), flags) < 0:
        return ctypes.get_errno(), b""
    return 0, sender.raw[: message.namelen]


def protocol(sock: socket.socket) -> int:
    """Return the protocol that a socket has, also where it was made with 0 for the default."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)


@contextmanager
def reuseport_group(
    count: int = 2,
    *,
    family: int = socket.AF_INET,
    type: int = socket.SOCK_DGRAM,
    address: tuple[str, int] | None = None,
) -> Iterator[list[socket.socket]]:
    """Give sockets that are bound to one address and port, for the time of the block.

    Args:
        count: how many.
        family: AF_INET or AF_INET6.
        type: SOCK_DGRAM, or SOCK_STREAM for listeners.
        address: what they are bound to; by default loopback and a port that the kernel chooses.

    Yields:
        The sockets, in the order in which they came to the group.
    """
    host, port = address or ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0)
    with ExitStack() as stack:
        made: list[socket.socket] = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(family, type))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((host, made[0].getsockname()[1] if made else port))
            if type == socket.SOCK_STREAM:
                sock.listen()
            made.append(sock)
        yield made


@contextmanager
def tcp_pair(
    family: int = socket.AF_INET,
    *,
    client: tuple[str, int] | None = None,
    server: tuple[str, int] | None = None,
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two TCP sockets connected over loopback, for the time of the block.

    Args:
        family: AF_INET or AF_INET6.
        client: address and port of the one that connects; by default the kernel chooses. An address
            of this machine, 127.0.0.0/8 among them.
        server: those of the one that is connected to; by default loopback and a free port. With
            both given, the connection ends by a reset, so that the next one may have its ports.

    Yields:
        The one that connected, and the one that was accepted.

    Raises:
        OSError: an address is not this machine's, or its port is taken.
    """
    loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(server or (loopback, 0))
        listener.listen(1)
        one = stack.enter_context(socket.socket(family))
        if client is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(client)
        one.connect(listener.getsockname())
        other = stack.enter_context(listener.accept()[0])
        if client is not None and server is not None:
            for end in (one, other):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        yield one, other
