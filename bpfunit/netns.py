"""Network namespaces for tests: no traffic of a test meets that of another, or leaves the guest."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bpfunit._sys import libc
from bpfunit.errors import SyscallError

_HERE = "/proc/thread-self/ns/net"
_SIOCGSKNS = 0x894C  # include/uapi/linux/sockios.h, since Linux 4.10
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


@contextmanager
def entered(fd: int) -> Iterator[None]:
    """Have the calling thread in the network namespace behind ``fd`` within the block.

    Sockets made there stay there.

    Raises:
        SyscallError: ``fd`` is no network namespace, or the caller is not root.
    """
    home = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.path.samestat(os.fstat(fd), os.fstat(home)):
            yield
            return
        libc.setns(fd, libc.CLONE_NEWNET)
        try:
            yield
        finally:
            libc.setns(home, libc.CLONE_NEWNET)
    finally:
        os.close(home)


@contextmanager
def of_socket(sock: socket.socket) -> Iterator[None]:
    """Have the calling thread in the network namespace of a socket within the block."""
    fd = fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
    try:
        with entered(fd):
            yield
    finally:
        os.close(fd)


class NetworkNamespace:
    """A new network namespace with nothing in it but its loopback interface, which is up.

    A context manager: it goes away with the last socket in it after the block::

        with NetworkNamespace("10.244.0.5") as ns, ns.entered():
            server = socket.create_server(("10.244.0.5", 8080))

    Args:
        addresses: IPv4 and IPv6 addresses for the loopback interface, so that servers can listen
            there and clients in the namespace reach them.

    Raises:
        SyscallError: EPERM when the caller is not root.
    """

    def __init__(self, *addresses: str) -> None:
        self.fd = -1
        failures: list[BaseException] = []

        def make() -> None:
            # a thread that moves itself for good, so that the caller's stays where it is
            try:
                libc.unshare(libc.CLONE_NEWNET)
                _loopback_up()
                for address in addresses:
                    _add_address(address)
                self.fd = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
            except BaseException as error:
                failures.append(error)

        maker = threading.Thread(target=make)
        maker.start()
        maker.join()
        if failures:
            raise failures[0]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have the calling thread in this namespace within the block."""
        with entered(self.fd):
            yield

    def close(self) -> None:
        """Let go of the namespace."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> NetworkNamespace:
        """Return self; the calling thread stays where it is."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        # struct ifreq: a name of 16 bytes, then the flags
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


# Two requests, spelled here: the import of pyroute2 is 280 modules, which is seconds in an emulated
# guest. Numbers from include/uapi/linux/rtnetlink.h, if_addr.h, netlink.h.
_NEWADDR, _NEWROUTE, _DELROUTE = 20, 24, 25
_REQUEST_ACK, _CREATE_NEW = 0x01 | 0x04, 0x200 | 0x400
_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_HOST, _TYPE_LOCAL = 254, 4, 254, 2
_IFA_ADDRESS, _IFA_LOCAL, _RTA_DST, _RTA_OIF = 1, 2, 1, 4
_NO_DAD = (
    0x02  # IFA_F_NODAD: else IPv6 addresses cannot be bound to until a worker of the kernel ran
)
LOOPBACK_INDEX = 1  # lo is the first interface of every network namespace (net/core/dev.c)


def _ask(change: int, body: bytes) -> int:
    """Send one rtnetlink request from the calling thread's namespace; return 0 or the errno."""
    flags = _REQUEST_ACK | (0 if change == _DELROUTE else _CREATE_NEW)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), change, flags, 1, 0) + body)
        # struct nlmsgerr: the header, then the negative errno
        return -int(struct.unpack_from("=16xi", netlink.recv(4096))[0])


def _attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value


def _packed(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def _add_address(address: str) -> None:
    family, packed = _packed(address)
    flags = _NO_DAD if family == socket.AF_INET6 else 0
    body = struct.pack("=4BI", family, 8 * len(packed), flags, _SCOPE_HOST, LOOPBACK_INDEX)
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    if failure := _ask(_NEWADDR, body):
        raise SyscallError(f"add {address} to the loopback interface", failure)


def change_host_route(address: str, *, add: bool) -> int:
    """Add or remove the local route to one host over the loopback interface.

    It is that of the calling thread's namespace.

    Args:
        address: an IPv4 or IPv6 address.
        add: whether to add or to remove.

    Returns:
        0 or the errno, EEXIST for a route that is there already.
    """
    family, packed = _packed(address)
    origin = (_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_HOST, _TYPE_LOCAL)
    body = struct.pack("=8BI", family, 8 * len(packed), 0, 0, *origin, 0)
    body += _attribute(_RTA_DST, packed) + _attribute(_RTA_OIF, struct.pack("=I", LOOPBACK_INDEX))
    return _ask(_NEWROUTE if add else _DELROUTE, body)
