"""Programs of type ``sk_reuseport``: what they see, whom they select, and refusals."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from bpfunit._sys import bpf, uapi
from bpfunit._sys.uapi import AttachType, Cmd, MapType, ProgType
from bpfunit.errors import SyscallError
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun, rawtcp
from .rawrun import Cells, Descriptor, TypedProgram

pytestmark = pytest.mark.guest

V4, V6 = socket.AF_INET, socket.AF_INET6
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}
ANY = {V4: "0.0.0.0", V6: "::"}
RESULT = struct.Struct("=iIQQ")  # struct bpfunit_sk_reuseport_result
DROP, HASH, SELECT = range(3)  # enum bpfunit_sk_reuseport_verdict
MIGRATE = 1  # BPFUNIT_SK_REUSEPORT_MIGRATE
SO_ATTACH_REUSEPORT_EBPF, SO_COOKIE = 52, 57
LEN, ETH_PROTOCOL, IP_PROTOCOL, BIND_INANY, HASH_FIELD = 16, 20, 24, 28, 32
SK, MIGRATING_SK = 40, 48  # offsets in struct sk_reuseport_md
FIELDS = (LEN, ETH_PROTOCOL, IP_PROTOCOL, BIND_INANY, HASH_FIELD)
LOAD_BYTES, LOAD_RELATIVE, SELECT_REUSEPORT = 26, 68, 82  # enum bpf_func_id
SELECTING, MIGRATING = AttachType.SK_REUSEPORT_SELECT, AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE
UDP_SIZE, TCP_SIZE = 8, 20


@dataclass(frozen=True)
class Outcome:
    """The answer of a test run."""

    program: int
    err: int
    verdict: int
    cookie: int
    inode: int


def packet(
    source: tuple[str, int],
    target: tuple[str, int],
    above: bytes = b"",
    *,
    kind: int = DGRAM,
    protocol: int | None = None,
) -> bytes:
    """A packet from its IP header on."""
    if protocol is None:
        protocol = socket.IPPROTO_UDP if kind == DGRAM else socket.IPPROTO_TCP
    header = struct.pack("!HH", source[1], target[1])
    if kind == DGRAM:
        header += struct.pack("!HH", UDP_SIZE + len(above), 0)
    else:
        header += struct.pack("!IIBBHHH", 1, 0, 5 << 4, 2, 100, 0, 0)
    size = len(header) + len(above)
    if ":" in target[0]:
        a, b = (socket.inet_pton(V6, end[0]) for end in (source, target))
        ip = struct.pack("!IHBB16s16s", 6 << 28, size, protocol, 64, a, b)
    else:
        a, b = (socket.inet_aton(end[0]) for end in (source, target))
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + size, 0, 0, 64, protocol, 0, a, b)
    return ip + header + above


def request(
    body: bytes,
    transport: int | None = None,
    hash: int = 0,
    migrating: int = 0,
    reserved: int = 0,
    **fields: int,
) -> bytes:
    """The ``data_in`` of a request; ``fields`` are of its head."""
    if transport is None:
        transport = 0 if not body else 20 if body[0] >> 4 == 4 else 40
    return rawtcp.head(**fields) + struct.pack("=4I", transport, hash, migrating, reserved) + body


class Program(TypedProgram):
    def __init__(self, code: list[Insn], attach_type: int = SELECTING) -> None:
        code = [asm.mov_reg(6, 1), *code]
        super().__init__(code, ProgType.SK_REUSEPORT, attach_type)

    def ask(
        self,
        sock: socket.socket,
        body: bytes,
        hash: int = 0,
        migrating: socket.socket | None = None,
        repeat: int = 1,
    ) -> Outcome:
        """Run on a packet for a group."""
        more = {} if migrating is None else {"flags": MIGRATE, "migrating": migrating.fileno()}
        data = request(body, hash=hash, sock=sock.fileno(), **more)
        answer = self.request(data=data, ctx_room=0, data_room=64, repeat=repeat)
        assert answer.data_size == RESULT.size
        return Outcome(answer.retval, *RESULT.unpack_from(answer.data))

    def attach(self, sock: socket.socket) -> None:
        """Have the program choose among the sockets of the group."""
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, self.fd)


class Socks(Descriptor):
    """A map of the group's sockets by number."""

    def __init__(self, map_type: int = MapType.REUSEPORT_SOCKARRAY) -> None:
        super().__init__(bpf.map_create("group", map_type, 4, 8, 8))

    def put(self, key: int, sock: socket.socket) -> None:
        number, value = ctypes.c_uint32(key), ctypes.c_uint64(sock.fileno())
        attr = uapi.MapElemAttr(
            map_fd=self.fd, key=ctypes.addressof(number), value=ctypes.addressof(value)
        )
        bpf.call_checked("put socket", Cmd.MAP_UPDATE_ELEM, attr)


def returning(value: int) -> list[Insn]:
    return [asm.mov_imm(0, value), asm.exit_()]


PASS = returning(1)


def look(cells: Cells, transport: int) -> list[Insn]:
    """Cells: the context's fields, the two ports, and the addresses' last words."""
    code = list(asm.load_map_value(7, cells.fd, 0))
    for cell, offset in enumerate(FIELDS):
        code += [asm.load(4, 2, 6, offset), asm.store(4, 7, 4 * cell, 2)]
    for helper, offset, size, at, header in [
        (LOAD_BYTES, 0, 4, 20, 0),
        (LOAD_RELATIVE, 0, 14, 32, 0),  # the Ethernet header
        (LOAD_RELATIVE, 8 if transport == 40 else 12, transport - 12, 64, 1),
    ]:
        code += [
            asm.mov_reg(1, 6),
            asm.mov_imm(2, offset),
            asm.mov_reg(3, 7),
            asm.alu_imm(asm.ADD, 3, at),
            asm.mov_imm(4, size if transport == 40 or at != 64 else 8),
            asm.mov_imm(5, header),
            rawrun.call(helper),
        ]
    return code


def select(socks: Socks, *, payload_at: int | None = None, verdict: int = 1) -> list[Insn]:
    """Select by the first byte of the payload, or else by the last bit of the hash."""
    code = [asm.store_imm(8, 10, -8, 0)]
    if payload_at is None:
        code += [asm.load(4, 2, 6, HASH_FIELD), asm.alu_imm(0x50, 2, 1), asm.store(4, 10, -8, 2)]
    else:
        code += [
            asm.mov_reg(1, 6),
            asm.mov_imm(2, payload_at),
            asm.mov_reg(3, 10),
            asm.alu_imm(asm.ADD, 3, -8 if sys.byteorder == "little" else -5),
            asm.mov_imm(4, 1),
            rawrun.call(LOAD_BYTES),
        ]
    return [
        *code,
        asm.mov_reg(1, 6),
        *rawrun.load_map(2, socks.fd),
        asm.mov_reg(3, 10),
        asm.alu_imm(asm.ADD, 3, -8),
        asm.mov_imm(4, 0),
        rawrun.call(SELECT_REUSEPORT),
        *returning(verdict),
    ]


@contextmanager
def group(
    family: int = V4, kind: int = DGRAM, count: int = 3, host: str | None = None
) -> Iterator[list[socket.socket]]:
    """Sockets that are bound to one port."""
    with ExitStack() as stack:
        made: list[socket.socket] = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(family, kind))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            port = made[0].getsockname()[1] if made else 0
            sock.bind((host or LOOPBACK[socket.AddressFamily(family)], port))
            if kind == STREAM:
                sock.listen()
            sock.settimeout(5)
            made.append(sock)
        yield made


def where(sock: socket.socket) -> tuple[str, int]:
    host, port = sock.getsockname()[:2]
    return host, port


def is_chosen(outcome: Outcome, sock: socket.socket) -> bool:
    cookie = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
    chosen = outcome.verdict == SELECT and outcome.inode == os.fstat(sock.fileno()).st_ino
    assert not chosen or outcome.cookie in (0, cookie)
    return chosen


@pytest.mark.parametrize("family", [V4, V6], ids=str)
@pytest.mark.parametrize("bound", [LOOPBACK, ANY], ids=["loopback", "any"])
@pytest.mark.parametrize("key", [0, 1, 2])
def test_datagram_goes_where_the_attached_program_sends_it(
    family: int, bound: dict[int, str], key: int
) -> None:
    loopback = LOOPBACK[socket.AddressFamily(family)]
    with ExitStack() as stack:
        cells, socks = stack.enter_context(Cells()), stack.enter_context(Socks())
        members = stack.enter_context(group(family, host=bound[socket.AddressFamily(family)]))
        for number, member in enumerate(members):
            socks.put(number, member)
        transport = 20 if family == V4 else 40
        code = [*look(cells, transport), *select(socks, payload_at=UDP_SIZE)]
        program = stack.enter_context(Program(code))
        program.attach(members[0])
        client = stack.enter_context(socket.socket(family, DGRAM))
        client.bind((loopback, 0))
        target = (loopback, where(members[0])[1])
        payload = bytes([key]) + b"payload"
        client.sendto(payload, target)
        assert members[key].recv(100) == payload
        real = cells.read()
        cells.clear()
        body = packet(where(client), target, payload)
        outcome = program.ask(members[1], body, hash=real[4], repeat=3)
        assert cells.read() == real
        assert (outcome.program, outcome.err) == (1, 0)
        assert is_chosen(outcome, members[key])


@pytest.mark.parametrize("family", [V4, V6], ids=str)
def test_connection_goes_where_the_attached_program_sends_it(family: int) -> None:
    with ExitStack() as stack:
        cells, socks = stack.enter_context(Cells()), stack.enter_context(Socks())
        members = stack.enter_context(group(family, STREAM, 2))
        for number, member in enumerate(members):
            socks.put(number, member)
        code = [*look(cells, 20 if family == V4 else 40), *select(socks)]
        program = stack.enter_context(Program(code))
        program.attach(members[0])
        client = stack.enter_context(socket.socket(family))
        client.connect(where(members[0]))
        real = cells.read()
        chosen = members[real[4] & 1]
        stack.enter_context(chosen.accept()[0])
        cells.clear()
        body = packet(where(client), where(members[0]), bytes(real[0] - TCP_SIZE), kind=STREAM)
        outcome = program.ask(members[0], body, hash=real[4])
        assert cells.read() == real
        assert is_chosen(outcome, chosen)


def test_ipv4_packet_comes_to_a_dual_stack_socket() -> None:
    with ExitStack() as stack:
        cells = stack.enter_context(Cells())
        members = stack.enter_context(group(V6, host="::"))
        program = stack.enter_context(Program([*look(cells, 20), *PASS]))
        program.attach(members[0])
        client = stack.enter_context(socket.socket(V4, DGRAM))
        client.bind(("127.0.0.1", 0))
        target = ("127.0.0.1", where(members[0])[1])
        client.sendto(b"x", target)
        real = cells.read()
        assert any(real)
        cells.clear()
        outcome = program.ask(members[0], packet(where(client), target, b"x"), hash=real[4])
        assert cells.read() == real
        assert (outcome.verdict, outcome.inode) == (HASH, 0)


def test_verdicts() -> None:
    with Socks() as socks, group() as members:
        socks.put(1, members[1])
        body = packet(("10.0.0.9", 5), where(members[0]), b"\1")
        for code, expected in [
            (select(socks, payload_at=UDP_SIZE), (1, 0, SELECT)),
            (select(socks, payload_at=UDP_SIZE, verdict=0), (0, -errno.ECONNREFUSED, DROP)),
            (select(socks, payload_at=UDP_SIZE, verdict=7), (7, -errno.ECONNREFUSED, DROP)),
            (select(socks), (1, 0, HASH)),  # entry 0 is empty
            (PASS, (1, 0, HASH)),
        ]:
            with Program(code) as program:
                outcome = program.ask(members[0], body, repeat=2)
                assert (outcome.program, outcome.err, outcome.verdict) == expected
                assert bool(outcome.inode) == (outcome.verdict == SELECT)


def test_socket_of_another_group_is_not_selected() -> None:
    with Socks() as socks, group() as members, group() as others:
        socks.put(0, others[0])
        with Program(select(socks)) as program:
            assert program.ask(members[0], packet(("10.0.0.9", 5), where(members[0]))).inode == 0


def test_sockmap_entry_is_selected() -> None:
    with Socks(MapType.SOCKMAP) as socks, group(kind=STREAM) as members:
        socks.put(0, members[2])
        with Program(select(socks)) as program:
            body = packet(("10.0.0.9", 5), where(members[0]), kind=STREAM)
            assert is_chosen(program.ask(members[0], body, repeat=100), members[2])


def test_each_run_begins_without_a_selection() -> None:
    """The first of many runs selects, the others see that it is done and leave it."""
    with Cells() as cells, Socks() as socks, group() as members:
        socks.put(0, members[0])
        code = [
            *asm.load_map_value(7, cells.fd, 0),
            asm.load(4, 2, 7, 0),
            asm.alu_imm(asm.ADD, 2, 1),
            asm.store(4, 7, 0, 2),
            asm.branch_imm(asm.JEQ, 2, 1, 2),
            *PASS,
            *select(socks),
        ]
        with Program(code) as program:
            body = packet(("10.0.0.9", 5), where(members[0]))
            assert program.ask(members[0], body, repeat=2).verdict == HASH
            cells.clear()
            assert program.ask(members[0], body).verdict == SELECT


@contextmanager
def unless_too_old() -> Iterator[None]:
    """Expect the verifier to refuse the block's program before 5.14, and only there."""
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if release >= (5, 14):
        yield
        return
    with pytest.raises(SyscallError) as refused:
        yield
    assert refused.value.errno == errno.EACCES


def has_migrating() -> list[Insn]:
    """SK_PASS where there is a connection that migrates, else SK_DROP."""
    return [
        asm.load(8, 2, 6, MIGRATING_SK),
        asm.mov_imm(0, 0),
        asm.branch_imm(asm.JEQ, 2, 0, 1),
        asm.mov_imm(0, 1),
        asm.exit_(),
    ]


def test_connection_migrates_to_the_listener_that_the_program_selects() -> None:
    """5.14. And a real one does: its listener is shut down before anybody has accepted it."""
    with unless_too_old(), ExitStack() as stack:
        socks = stack.enter_context(Socks())
        members = stack.enter_context(group(kind=STREAM, count=3))
        socks.put(0, members[2])
        choose = [asm.load(8, 2, 6, MIGRATING_SK), asm.branch_imm(asm.JNE, 2, 0, 2), *PASS]
        choose += [asm.store_imm(8, 10, -8, 0), asm.mov_reg(1, 6), *rawrun.load_map(2, socks.fd)]
        choose += [asm.mov_reg(3, 10), asm.alu_imm(asm.ADD, 3, -8), asm.mov_imm(4, 0)]
        choose += [rawrun.call(SELECT_REUSEPORT), *PASS]
        program = stack.enter_context(Program(choose, MIGRATING))
        program.attach(members[0])
        client = stack.enter_context(socket.socket())
        client.connect(where(members[0]))
        gone, server = accepted(members)
        with server:
            outcome = program.ask(members[gone], b"", migrating=server, repeat=3)
            assert is_chosen(outcome, members[2])
            body = packet(where(client), where(members[0]), kind=STREAM)
            assert program.ask(members[0], body).verdict == HASH
        second = stack.enter_context(socket.socket())
        second.connect(where(members[0]))
        for member in members[:2]:  # whichever has it
            member.shutdown(socket.SHUT_RDWR)
        stack.enter_context(members[2].accept()[0])


def accepted(members: list[socket.socket]) -> tuple[int, socket.socket]:
    """Accept a connection on whichever listener has it."""
    for number, member in enumerate(members):
        member.settimeout(0.2)
        try:
            return number, member.accept()[0]
        except TimeoutError:
            continue
        finally:
            member.settimeout(5)
    raise AssertionError("nobody has the connection")


def test_program_knows_whether_a_connection_migrates() -> None:
    with (
        unless_too_old(),
        Program(has_migrating(), MIGRATING) as program,
        group(kind=STREAM) as members,
        socket.socket() as client,
    ):
        client.connect(where(members[0]))
        number, server = accepted(members)
        body = packet(where(client), where(members[0]), kind=STREAM)
        with server:
            assert program.ask(members[number], body).verdict == DROP
            assert program.ask(members[number], b"", migrating=server).verdict == HASH
            assert program.ask(members[number], body, migrating=server).verdict == HASH


def test_connections_that_cannot_migrate_are_refused() -> None:
    with ExitStack() as stack:
        members = stack.enter_context(group(kind=STREAM))
        datagrams = stack.enter_context(group())
        client = stack.enter_context(socket.socket())
        client.connect(where(members[0]))
        _, server = accepted(members)
        stack.enter_context(server)

        def refused(program: Program, expected: int, group_fd: int, fd: int) -> None:
            data = request(b"", sock=group_fd, flags=MIGRATE, migrating=fd)
            program.refuses(expected, None, data, ctx_room=0)

        at = members[0].fileno()
        plain = stack.enter_context(Program(PASS))
        refused(plain, errno.EOPNOTSUPP, at, server.fileno())
        with unless_too_old(), Program(has_migrating(), MIGRATING) as program:
            refused(program, errno.EBADF, at, rawtcp.NOT_OPEN)
            refused(program, errno.ENOTCONN, at, members[1].fileno())
            refused(program, errno.EADDRNOTAVAIL, at, client.fileno())
            refused(program, errno.EPROTOTYPE, datagrams[0].fileno(), server.fileno())
            for fd, _ in stack.enter_context(rawtcp.no_tcp_connections()).values():
                data = request(b"", sock=at, flags=MIGRATE, migrating=fd)
                with pytest.raises(SyscallError):
                    program.request(data=data, ctx_room=0)


def test_packets_that_do_not_come_to_the_group_are_refused() -> None:
    with group() as members, group(V6) as six, Program(PASS) as program:
        ours, fd = where(members[0]), members[0].fileno()
        source = ("10.0.0.9", 5)
        good = packet(source, ours, b"x")

        def refused(expected: int, body: bytes, at: int = 20, sock: int = fd) -> None:
            program.refuses(expected, None, request(body, at, sock=sock), ctx_room=0)

        assert program.ask(members[0], good).verdict == HASH
        refused(errno.EADDRNOTAVAIL, packet(source, ("127.0.0.2", ours[1])))
        refused(errno.EADDRNOTAVAIL, packet(source, (ours[0], ours[1] ^ 1)))
        refused(errno.EPROTOTYPE, packet(source, ours, protocol=socket.IPPROTO_TCP))
        refused(errno.EINVAL, b"", 0)
        refused(errno.EINVAL, good[:27])
        refused(errno.EINVAL, good, 24)
        refused(errno.EINVAL, good, 4)
        refused(errno.EINVAL, good, 0xFFFFFFFF)
        refused(errno.EINVAL, bytes([0x55]) + good[1:])
        refused(errno.EINVAL, bytes([0x46]) + good[1:])
        refused(errno.EAFNOSUPPORT, packet(("::9", 5), ("::1", ours[1])), 40)
        sixth = packet(("::9", 5), where(six[0]))
        refused(errno.EINVAL, sixth, 20, six[0].fileno())
        refused(
            errno.EADDRNOTAVAIL, packet(("::9", 5), ("::2", where(six[0])[1])), 40, six[0].fileno()
        )
        assert program.ask(six[0], sixth).verdict == HASH


def test_sockets_that_are_in_no_group_are_refused() -> None:
    body = packet(("10.0.0.9", 5), ("127.0.0.1", 5))
    with Program(PASS) as program, rawtcp.no_tcp_connections() as found:

        def refused(expected: int, sock: socket.socket, kind: int = DGRAM) -> None:
            body = packet(("10.0.0.9", 5), where(sock), kind=kind)
            program.refuses(expected, None, request(body, sock=sock.fileno()), ctx_room=0)

        for name, (fd, expected) in found.items():
            if name not in ("udp", "udp6"):
                program.refuses(expected, None, request(body, sock=fd), ctx_room=0)
        with socket.socket(type=DGRAM) as alone:
            alone.bind(("127.0.0.1", 0))
            refused(errno.ENOENT, alone)
            alone.connect(("127.0.0.1", 9))
            refused(errno.EISCONN, alone)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            refused(errno.ENOENT, listener, STREAM)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            refused(errno.ENOTCONN, sock, STREAM)


def test_requests_that_are_refused_for_their_form() -> None:
    with group() as members, Program(PASS) as program:
        fd = members[0].fileno()
        body = packet(("10.0.0.9", 5), where(members[0]))

        def refused(expected: int, data: bytes | None) -> None:
            program.refuses(expected, None, data, ctx_room=0)

        refused(errno.EINVAL, None)
        refused(errno.EINVAL, request(body, sock=fd)[:31])
        refused(errno.EINVAL, request(body, sock=fd, flags=2))
        refused(errno.EINVAL, request(body, sock=fd, version=2))
        refused(errno.EINVAL, request(body, sock=fd, reserved=1))
        refused(errno.EINVAL, request(body, sock=fd, migrating=fd))
        refused(errno.E2BIG, request(body + bytes(4096), sock=fd))
        program.refuses(errno.EINVAL, bytes(8), request(body, sock=fd))
        data = request(body, sock=fd)
        program.refuses(errno.ENOSPC, None, data, ctx_room=0, data_room=RESULT.size - 1)
