"""Programs on TCP sockets by ``bpf(2)`` alone: sockets in pairs, sockmaps, wrong descriptors."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bpfunit._sys import bpf, uapi
from bpfunit._sys.uapi import Cmd, MapType
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from .rawrun import Descriptor

VERSION = 1  # BPFUNIT_TESTRUN_VERSION of vm/testrun/bpfunit_testrun.h
NOT_OPEN = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # beyond what this process may open
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def head(sock: int, flags: int = 0, version: int = VERSION, reserved: int = 0) -> bytes:
    """A ``struct bpfunit_head``."""
    return struct.pack("=IIII", version, flags, sock, reserved)


@contextmanager
def tcp_pair(family: int = socket.AF_INET) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two connected TCP sockets, the client's first."""
    with (
        socket.socket(family) as listener,
        socket.socket(family) as client,
    ):
        listener.bind((LOOPBACK[socket.AddressFamily(family)], 0))
        listener.listen()
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            yield client, server


class SockMap(Descriptor):
    """A sockmap or sockhash with 4-byte keys."""

    def __init__(self, map_type: int = MapType.SOCKMAP) -> None:
        super().__init__(bpf.map_create("socks", map_type, 4, 8, 8))

    def put(self, key: int, sock: socket.socket) -> None:
        """Enter a socket."""
        number, value = ctypes.c_uint32(key), ctypes.c_uint64(sock.fileno())
        attr = uapi.MapElemAttr(
            map_fd=self.fd, key=ctypes.addressof(number), value=ctypes.addressof(value)
        )
        bpf.call_checked("put socket", Cmd.MAP_UPDATE_ELEM, attr)

    def keys(self) -> list[int]:
        """The keys that have a socket, of a sockhash."""
        found, key, following = [], ctypes.c_uint32(), ctypes.c_uint32()
        attr = uapi.MapElemAttr(map_fd=self.fd, key=0, value=ctypes.addressof(following))
        while bpf.call(Cmd.MAP_GET_NEXT_KEY, attr) == 0:
            found.append(following.value)
            key.value = following.value
            attr.key = ctypes.addressof(key)
        return found

    def attach(self, prog_fd: int, attach_type: int) -> None:
        """Attach a program to the map, for as long as the map lives."""

        attach_to_map(self.fd, prog_fd, attach_type)


def attach_to_map(map_fd: int, prog_fd: int, attach_type: int) -> None:
    """Attach a program to a sockmap, for as long as the map lives."""

    class Attr(ctypes.Structure):
        _fields_ = (
            ("target_fd", ctypes.c_uint32),
            ("attach_bpf_fd", ctypes.c_uint32),
            ("attach_type", ctypes.c_uint32),
            ("attach_flags", ctypes.c_uint32),
        )

    attr = Attr(map_fd, prog_fd, attach_type, 0)
    bpf.call_checked("attach to sockmap", Cmd.PROG_ATTACH, attr)


@contextmanager
def no_tcp_connections() -> Iterator[dict[str, tuple[int, int]]]:
    """Give descriptors that are no TCP sockets, by name, with the errno of a request for each."""
    with ExitStack() as stack:
        found: dict[str, tuple[int, int]] = {
            "closed": (NOT_OPEN, errno.EBADF),
            "negative": (0xFFFFFFFF, errno.EBADF),
        }
        ends = os.pipe()
        for end in ends:
            stack.callback(os.close, end)
        found["pipe"] = (ends[0], errno.ENOTSOCK)
        for name, arguments, expected in [
            ("unix", (socket.AF_UNIX, socket.SOCK_STREAM), errno.EAFNOSUPPORT),
            ("netlink", (socket.AF_NETLINK, socket.SOCK_RAW), errno.EAFNOSUPPORT),
            ("packet", (socket.AF_PACKET, socket.SOCK_RAW), errno.EAFNOSUPPORT),
            ("udp", (socket.AF_INET, socket.SOCK_DGRAM), errno.EPROTOTYPE),
            ("udp6", (socket.AF_INET6, socket.SOCK_DGRAM), errno.EPROTOTYPE),
            ("raw", (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP), errno.EPROTOTYPE),
            ("mptcp", (socket.AF_INET, socket.SOCK_STREAM, 262), errno.EPROTOTYPE),
            ("smc", (43, socket.SOCK_STREAM), errno.EAFNOSUPPORT),
            ("inet smc", (socket.AF_INET, socket.SOCK_STREAM, 256), errno.EPROTOTYPE),
            ("vsock", (socket.AF_VSOCK, socket.SOCK_STREAM), errno.EAFNOSUPPORT),
        ]:
            try:
                made = stack.enter_context(socket.socket(*arguments))
            except OSError:
                if name in ("unix", "netlink", "packet", "udp", "udp6", "raw"):
                    raise
                continue  # not every kernel has these
            found[name] = (made.fileno(), expected)
        yield found


def branch_reg(op: int, dst: int, src: int, off: int) -> Insn:
    """``if dst OP src goto +off``."""
    return Insn(asm.JMP | op | asm.SRC_REG, dst, src, off)
