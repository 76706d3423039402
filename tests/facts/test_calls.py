"""Which ordinary call runs which hook, and what a program there sees of the caller."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.netns import NetworkNamespace
from bpfunit.progtypes.sock_addr import HOOKS
from bpfunit.rewrite import insn as asm

from ..guest.rawrun import PROTOCOL, Cells, call, count
from .conftest import Facts
from .stock import loaded
from .uring import Ring

pytestmark = [pytest.mark.guest, pytest.mark.usefixtures("no_bpf_leaks")]

_CALLS, _NAMESPACES = "Which call runs which hook", "Namespaces and credentials"
_TCP, _UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
_V4, _V6 = socket.AF_INET, socket.AF_INET6
_MPTCP, _UDPLITE = 262, 136
_SO_PEERNAME, _SO_NETNS_COOKIE, _MSG_FASTOPEN = 28, 71, 0x20000000
_NETNS_COOKIE, _CGROUP_ID, _UID_GID = 122, 80, 15  # helpers
_USER = 1000

_libc = ctypes.CDLL(None)  # for calls of which Python makes more than one


class Watch:
    """Counting programs on every hook of a cgroup: which ran, and the protocol that they saw."""

    def __init__(self, stack: ExitStack, cgroup: Cgroup) -> None:
        self._cells: dict[str, Cells] = {}
        for attach_type, hook in HOOKS.items():
            cells = stack.enter_context(Cells(2))
            code = [
                asm.mov_reg(6, 1),
                *count(cells),
                asm.load(4, 9, 6, PROTOCOL),
                asm.store(4, 8, 4, 9),
                asm.mov_imm(0, 1),
                asm.exit_(),
            ]
            fd = stack.enter_context(loaded(code, ProgType.CGROUP_SOCK_ADDR, attach_type))
            stack.enter_context(cgroup.attached(attach_type, fd))
            self._cells[f"{hook.call}{4 if hook.family == _V4 else 6}"] = cells

    def clear(self) -> None:
        """Forget what ran."""
        for cells in self._cells.values():
            cells.clear()

    def ran(self) -> str:
        """Return the hooks that ran."""
        counts = {name: cells.read()[0] for name, cells in self._cells.items()}
        shown = [name if n == 1 else f"{name} ×{n}" for name, n in counts.items() if n]
        return ", ".join(shown) or "none"

    def protocol(self, name: str) -> int:
        """Return the protocol that the program of a hook saw last."""
        return self._cells[name].read()[1]


@pytest.fixture
def watch() -> Iterator[Watch]:
    with ExitStack() as stack:
        namespace = stack.enter_context(NetworkNamespace())
        cgroup = stack.enter_context(Cgroup("facts"))
        watched = Watch(stack, cgroup)
        stack.enter_context(namespace.entered())
        # who may make ping sockets: icmp(7)
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647", encoding="ascii")
        stack.enter_context(cgroup.entered())
        yield watched


def _home(family: int) -> str:
    return "127.0.0.1" if family == _V4 else "::1"


@contextmanager
def _server(family: int, sock_type: int) -> Iterator[int]:
    """Have somebody bound to a port of the loopback interface; yield the port."""
    with socket.socket(family, sock_type) as server:
        server.bind((_home(family), 0))
        if sock_type == _TCP:
            server.listen()
        yield server.getsockname()[1]


def _connect(
    family: int, sock_type: int, address: str = "", protocol: int = 0
) -> Callable[[Watch], None]:
    def run(watch: Watch) -> None:
        with (
            _server(_V4 if "." in (address or _home(family)) else _V6, sock_type) as port,
            socket.socket(family, sock_type, protocol) as sock,
        ):
            watch.clear()
            sock.connect((address or _home(family), port))

    return run


def _send_connected(family: int, address: str, times: int = 1) -> Callable[[Watch], None]:
    def run(watch: Watch) -> None:
        with (
            _server(_V4 if "." in address else _V6, _UDP) as port,
            socket.socket(family, _UDP) as sock,
        ):
            sock.connect((address, port))
            watch.clear()
            for _ in range(times):
                sock.send(b"x")

    return run


def _send_to(family: int, address: str) -> Callable[[Watch], None]:
    def run(watch: Watch) -> None:
        with (
            _server(_V4 if "." in address else _V6, _UDP) as port,
            socket.socket(family, _UDP) as sock,
        ):
            watch.clear()
            sock.sendto(b"x", (address, port))

    return run


def _receive(family: int, *, named: bool) -> Callable[[Watch], None]:
    def run(watch: Watch) -> None:
        with socket.socket(family, _UDP) as server, socket.socket(family, _UDP) as sock:
            server.bind((_home(family), 0))
            sock.sendto(b"x", server.getsockname())
            watch.clear()
            if named:
                server.recvfrom(1)
            else:
                server.recv(1)

    return run


def _named(
    act: Callable[[socket.socket], object], family: int = _V4, sock_type: int = _TCP
) -> Callable[[Watch], None]:
    """Do something with a connected socket."""

    def run(watch: Watch) -> None:
        with _server(family, sock_type) as port, socket.socket(family, sock_type) as sock:
            sock.connect((_home(family), port))
            watch.clear()
            act(sock)

    return run


def _bind(family: int) -> Callable[[Watch], None]:
    def run(watch: Watch) -> None:
        with socket.socket(family, _TCP) as sock:
            watch.clear()
            sock.bind((_home(family), 0))

    return run


def _fast_open(watch: Watch) -> None:
    with _server(_V4, _TCP) as port, socket.socket(_V4, _TCP) as sock:
        watch.clear()
        sock.sendto(b"x", _MSG_FASTOPEN, ("127.0.0.1", port))


def _listen(watch: Watch) -> None:
    with socket.socket(_V4, _TCP) as sock:
        watch.clear()
        assert _libc.listen(sock.fileno(), 1) == 0


def _accept(*, named: bool) -> Callable[[Watch], None]:
    def run(watch: Watch) -> None:
        with socket.socket(_V4, _TCP) as server, socket.socket(_V4, _TCP) as sock:
            server.bind(("127.0.0.1", 0))
            server.listen()
            sock.connect(server.getsockname())
            name, size = ctypes.create_string_buffer(128), ctypes.c_uint32(128)
            asked = (name, ctypes.byref(size)) if named else (None, None)
            watch.clear()
            os.close(_libc.accept(server.fileno(), *asked))

    return run


def _dissolve(watch: Watch) -> None:
    with _server(_V4, _UDP) as port, socket.socket(_V4, _UDP) as sock:
        sock.connect(("127.0.0.1", port))
        watch.clear()
        nobody = ctypes.create_string_buffer(16)  # AF_UNSPEC
        assert _libc.connect(sock.fileno(), nobody, 16) == 0


def _ping(watch: Watch) -> None:
    with socket.socket(_V4, _UDP, socket.IPPROTO_ICMP) as sock:
        watch.clear()
        sock.connect(("127.0.0.1", 0))


def _raw(watch: Watch) -> None:
    with socket.socket(_V4, socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:
        watch.clear()
        sock.connect(("127.0.0.1", 0))


CASES: dict[str, Callable[[Watch], None]] = {
    "connect(), TCP, IPv4": _connect(_V4, _TCP),
    "connect(), TCP, IPv6": _connect(_V6, _TCP),
    "connect(), TCP, IPv6 to a v4-mapped address": _connect(_V6, _TCP, "::ffff:127.0.0.1"),
    "connect(), UDP, IPv4": _connect(_V4, _UDP),
    "connect(), UDP, IPv6 to a v4-mapped address": _connect(_V6, _UDP, "::ffff:127.0.0.1"),
    "connect(), UDP-Lite, IPv4": _connect(_V4, _UDP, protocol=_UDPLITE),
    "connect() to AF_UNSPEC, UDP": _dissolve,
    "connect(), ping socket": _ping,
    "connect(), raw socket": _raw,
    "sendto() with MSG_FASTOPEN, TCP": _fast_open,
    "sendto(), UDP, IPv4": _send_to(_V4, "127.0.0.1"),
    "sendto(), UDP, IPv6": _send_to(_V6, "::1"),
    "sendto(), UDP, IPv6 to a v4-mapped address": _send_to(_V6, "::ffff:127.0.0.1"),
    "send() twice, UDP, IPv4, connected": _send_connected(_V4, "127.0.0.1", 2),
    "send() twice, UDP, IPv6, connected": _send_connected(_V6, "::1", 2),
    "send() twice, UDP, IPv6, connected to a v4-mapped address": _send_connected(
        _V6, "::ffff:127.0.0.1", 2
    ),
    "recvfrom(), UDP, IPv4": _receive(_V4, named=True),
    "recv(), UDP, IPv4": _receive(_V4, named=False),
    "bind(), TCP, IPv4": _bind(_V4),
    "bind(), TCP, IPv6": _bind(_V6),
    "listen() without bind(), TCP": _listen,
    "accept() that asks for the address, TCP": _accept(named=True),
    "accept() that does not, TCP": _accept(named=False),
    "getpeername(), TCP, IPv4": _named(lambda sock: sock.getpeername()),
    "getsockname(), TCP, IPv6": _named(lambda sock: sock.getsockname(), _V6),
    "getsockopt(SO_PEERNAME), TCP, IPv4": _named(
        lambda sock: sock.getsockopt(socket.SOL_SOCKET, _SO_PEERNAME, 16)
    ),
}


@pytest.mark.parametrize("row", CASES)
def test_hooks_of_a_call(facts: Facts, watch: Watch, row: str):
    try:
        CASES[row](watch)
    except OSError as error:
        if error.errno != errno.EPROTONOSUPPORT or "UDP-Lite" not in row:
            raise
        facts.say(_CALLS, row, "no such socket")
        return
    facts.say(_CALLS, row, watch.ran())


def test_multipath_tcp(facts: Facts, watch: Watch):
    row = "connect(), MPTCP, IPv4"
    try:
        _connect(_V4, _TCP, protocol=_MPTCP)(watch)
    except OSError as error:
        if error.errno != errno.EPROTONOSUPPORT:
            raise
        facts.say(_CALLS, row, "no such socket")
        return
    facts.say(_CALLS, row, f"{watch.ran()}, as protocol {watch.protocol('connect4')}")


def test_first_namespace(facts: Facts):
    with socket.socket() as sock:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError as error:
            found = f"not told: {error.strerror}"
        else:
            found = str(int.from_bytes(raw, sys.byteorder))
    facts.say(_NAMESPACES, "netns cookie of the guest's first namespace (SO_NETNS_COOKIE)", found)


def _who(cells: Cells) -> list[asm.Insn]:
    """A program that writes down the socket's namespace, the caller's cgroup and the user."""
    code = [
        asm.mov_reg(6, 1),
        *asm.load_map_value(7, cells.fd, 0),
        asm.mov_reg(1, 6),
        call(_NETNS_COOKIE),
    ]
    code += [asm.store(8, 7, 0, 0), call(_CGROUP_ID), asm.store(8, 7, 8, 0)]
    return [*code, call(_UID_GID), asm.store(8, 7, 16, 0), asm.mov_imm(0, 1), asm.exit_()]


@pytest.mark.parametrize("by_worker", [False, True], ids=["inline", "worker"])
def test_who_connects_by_io_uring(facts: Facts, by_worker: bool):
    with ExitStack() as stack:
        cells = stack.enter_context(Cells(8))
        program = stack.enter_context(
            loaded(_who(cells), ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT)
        )
        theirs, mine = (stack.enter_context(Cgroup(name)) for name in ("facts-sock", "facts-mine"))
        stack.enter_context(theirs.attached(AttachType.CGROUP_INET4_CONNECT, program))
        far = stack.enter_context(NetworkNamespace())
        with far.entered(), theirs.entered():
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            socks = [stack.enter_context(socket.socket()) for _ in range(2)]
        address = struct.pack("=H", _V4) + struct.pack(">H", server.getsockname()[1])
        address = (address + socket.inet_aton("127.0.0.1")).ljust(16, b"\0")
        caller = mine.path.stat().st_ino  # cgroup_id is the inode number of the directory
        # an ordinary connect, of a socket of the same namespace and cgroup
        with mine.entered(), _as_user():
            socks[0].connect(server.getsockname())
        ordinary = struct.unpack("=3Q", struct.pack("=8I", *cells.read())[:24])
        cells.clear()
        ring = Ring()
        stack.callback(ring.close)
        with mine.entered(), _as_user():
            assert ring.connect(socks[1].fileno(), address, by_worker=by_worker) == 0
        seen = struct.unpack("=3Q", struct.pack("=8I", *cells.read())[:24])
    assert ordinary[1] == caller, "the helper tells the caller's cgroup"
    assert ordinary[2] & 0xFFFFFFFF == _USER
    how = "by a worker" if by_worker else "inline"
    words = ["netns: the socket's" if seen[0] == ordinary[0] else f"netns: cookie {seen[0]}"]
    words.append("cgroup: the caller's" if seen[1] == ordinary[1] else "cgroup: another")
    words.append(f"user: {seen[2] & 0xFFFFFFFF}")
    facts.say(_NAMESPACES, f"connect by io_uring, {how}", ", ".join(words))


@contextmanager
def _as_user() -> Iterator[None]:
    """Be another user within the block; root stays at hand to come back."""
    os.setresuid(_USER, _USER, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
