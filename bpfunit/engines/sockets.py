"""What a program can change on a given socket, and second sockets on which it may do so.

A ``cgroup_sock_addr`` program reaches its socket through two helpers: ``bpf_bind()``, which nothing
undoes, and ``bpf_setsockopt()``. What it keeps in socket storage is the business of
:mod:`bpfunit.engines.state`.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import lru_cache
from typing import NamedTuple

from bpfunit import netns
from bpfunit._sys import bpf, sockets, uapi
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.errors import SyscallError
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn
from bpfunit.rewrite.trial import xlated

_BIND, _SETSOCKOPT = 64, 49  # enum bpf_func_id
_HELPER_CALL = asm.JMP | asm.CALL
_IP, _IPV6, _TCP = socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_TCP
_SNDBUF, _RCVBUF = (socket.SOL_SOCKET, 7), (socket.SOL_SOCKET, 8)
_FORCED = {_SNDBUF: 32, _RCVBUF: 33}  # SO_SNDBUFFORCE, SO_RCVBUFFORCE: beyond the system's limit

# All that bpf_setsockopt() can set and getsockopt(2) can read, with what else a test may have set:
# sol_socket_sockopt() and its kin for ip, ipv6 and tcp in the kernel's net/core/filter.c.
# TCP_BPF_IW and its kin (1001 to 1004) cannot be read.
_OPTIONS = (
    *((socket.SOL_SOCKET, n) for n in (2, 5, 6, 7, 8, 9, 12, 13, 15, 18, 25, 36, 47, 74)),
    *((_IP, n) for n in (1, 2, 15, 19, 21, 24, 51)),
    *((_IPV6, n) for n in (16, 26, 67, 70, 75, 78)),
    *((_TCP, n) for n in (1, 2, 4, 5, 6, 7, 10, 13, 16, 18, 25, 27, 46)),
)

Options = dict[tuple[int, int], bytes]


class Face(NamedTuple):
    """What can be seen of a socket: its options, its two names, whether it listens."""

    options: Options
    names: tuple[bytes, bytes]
    listens: bool

    def unlike(self, other: Face) -> str:
        """Say how another face differs from this one, "" when it does not."""
        changed = [
            f"option {number} of level {level}"
            for level, number in sorted(self.options.keys() | other.options.keys())
            if self.options.get((level, number)) != other.options.get((level, number))
        ]
        if self.names[0] != other.names[0]:
            changed.insert(0, "its local address")
        if self.names[1] != other.names[1]:
            changed.insert(0, "its peer")
        if self.listens != other.listens:
            changed.insert(0, "that it listens")
        return ", ".join(changed)


def face(sock: socket.socket) -> Face:
    """Read what can be seen of a socket."""
    options = {}
    for level, number in _OPTIONS:
        try:
            options[level, number] = sock.getsockopt(level, number, 64)
        except OSError:
            continue  # another family's or protocol's, or younger than this kernel
    names = [sockets.name(sock.fileno(), call)[1] for call in ("getsockname", "getpeername")]
    listens = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    return Face(options, (names[0], names[1]), listens)


def put_back(sock: socket.socket, wanted: Face) -> str:
    """Set the options of a socket as they were; return what is still not so, "" for nothing."""
    now = face(sock)
    for option, value in wanted.options.items():
        if now.options.get(option) != value:
            _set(sock, option, value)
    return wanted.unlike(face(sock))


def _set(sock: socket.socket, option: tuple[int, int], value: bytes) -> None:
    level, number = option
    try:
        if option in _FORCED:  # what is read is twice what was set (socket(7))
            sock.setsockopt(level, _FORCED[option], int.from_bytes(value, sys.byteorder) // 2)
        else:
            sock.setsockopt(level, number, value)
    except OSError:
        return  # the caller looks at what came of it


def like(sock: socket.socket) -> socket.socket:
    """Return a new socket of the same family, type and protocol, in the same network namespace."""
    protocol = sockets.protocol(sock)
    with netns.of_socket(sock):
        return socket.socket(sock.family, sock.type, protocol)


def twin(sock: socket.socket, wanted: Face) -> socket.socket | None:
    """Return a second socket that looks the same, None where none can: bound, connected."""
    made = like(sock)
    if put_back(made, wanted):
        made.close()
        return None
    return made


def may_change(prog_fd: int) -> bool:
    """Whether a program calls a helper that changes its socket.

    A kernel that shows no addresses of helpers (``kptr_restrict``) does not tell: then all may.
    """
    prog_id = bpf.object_info("read program info", prog_fd, uapi.ProgInfo()).id
    if prog_id not in _known:
        calls = {i.imm for i in xlated(prog_fd) if i.code == _HELPER_CALL and i.src == 0}
        _known[prog_id] = not calls.isdisjoint(_addresses())
    return _known[prog_id]


# by the kernel's id of a program, which it gives to no other one while it runs
_known: dict[int, bool] = {}


@lru_cache(maxsize=1)
def _addresses() -> frozenset[int]:
    """Return what the kernel shows for a call of the two helpers: not their numbers."""
    code = [
        asm.mov_reg(6, 1),
        asm.store_imm(8, 10, -16, 0),
        asm.store_imm(8, 10, -8, 0),
        asm.mov_reg(2, 10),
        asm.alu_imm(asm.ADD, 2, -16),
        asm.mov_imm(3, 16),
        Insn(_HELPER_CALL, imm=_BIND),
        asm.mov_reg(1, 6),
        asm.mov_imm(2, socket.SOL_SOCKET),
        asm.mov_imm(3, 12),
        asm.mov_reg(4, 10),
        asm.alu_imm(asm.ADD, 4, -8),
        asm.mov_imm(5, 4),
        Insn(_HELPER_CALL, imm=_SETSOCKOPT),
        asm.mov_imm(0, 1),
        asm.exit_(),
    ]
    fd, log = bpf.prog_load(
        "bpfunit_ask",
        ProgType.CGROUP_SOCK_ADDR,
        AttachType.CGROUP_INET4_CONNECT,
        asm.encode(code),
    )
    if fd < 0:
        raise SyscallError("load a program that asks for helpers", -fd, log)
    try:
        return frozenset(i.imm for i in xlated(fd) if i.code == _HELPER_CALL and i.src == 0)
    finally:
        os.close(fd)
