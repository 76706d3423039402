"""The socket of a test run: the caller's, or one that the kernel makes for the run."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from bpfunit._sys import bpf, libc, uapi
from bpfunit._sys.uapi import AttachType, Cmd
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun
from .rawrun import BpfSockAddr, Cells, Descriptor, RawProgram

pytestmark = pytest.mark.guest

SK_STORAGE_GET, BPF_BIND, SETSOCKOPT, GET_NETNS_COOKIE = 107, 64, 49, 122
DGRAM = socket.SOCK_DGRAM
SOCK_STATES = {"ESTABLISHED": 1, "CLOSE": 7, "LISTEN": 10}  # include/net/tcp_states.h


def context_on(sock: socket.socket, program: RawProgram) -> BpfSockAddr:
    """A context that leaves everything about the socket to the socket."""
    context = program.craft()
    context.family = context.type = context.protocol = 0
    context.sk = sock.fileno()
    return context


def record_state(cells: Cells) -> list[Insn]:
    """A program that copies the state of its socket into cell 0."""
    return [
        *asm.load_map_value(7, cells.fd, 0),
        asm.load(8, 2, 1, rawrun.SK),
        asm.load(4, 2, 2, rawrun.SOCK_STATE),
        asm.store(4, 7, 0, 2),
        *rawrun.ALLOW,
    ]


@pytest.fixture
def storage() -> Iterator[Descriptor]:
    with Descriptor(rawrun.storage_map()) as made:
        yield made


@pytest.fixture
def cells() -> Iterator[Cells]:
    with Cells() as made:
        yield made


def storage_of(storage: Descriptor, sock: socket.socket) -> int | None:
    key, value = ctypes.c_int(sock.fileno()), ctypes.c_uint32()
    attr = uapi.MapElemAttr(
        map_fd=storage.fd, key=ctypes.addressof(key), value=ctypes.addressof(value)
    )
    return value.value if bpf.call(Cmd.MAP_LOOKUP_ELEM, attr) == 0 else None


def count_in_storage(storage: Descriptor, cells: Cells) -> list[Insn]:
    """A program that adds 1 to the storage of its socket, and copies the sum into cell 0."""
    return [
        *asm.load_map_value(7, cells.fd, 0),
        asm.load(8, 2, 1, rawrun.SK),
        *rawrun.load_map(1, storage.fd),
        asm.mov_imm(3, 0),
        asm.mov_imm(4, 1),  # BPF_SK_STORAGE_GET_F_CREATE
        rawrun.call(SK_STORAGE_GET),
        asm.branch_imm(asm.JEQ, 0, 0, 4),
        asm.load(4, 1, 0, 0),
        asm.alu_imm(asm.ADD, 1, 1),
        asm.store(4, 0, 0, 1),
        asm.store(4, 7, 0, 1),
        *rawrun.ALLOW,
    ]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=str)
@pytest.mark.parametrize("sock_type", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=str)
def test_program_sees_the_callers_socket(cells: Cells, family: int, sock_type: int) -> None:
    attach_type = {
        socket.AF_INET: AttachType.CGROUP_INET4_CONNECT,
        socket.AF_INET6: AttachType.CGROUP_INET6_CONNECT,
    }[socket.AddressFamily(family)]
    fields = [rawrun.FAMILY, rawrun.TYPE, rawrun.PROTOCOL]
    program, sock = (
        RawProgram(rawrun.record(cells, fields), attach_type),
        socket.socket(family, sock_type),
    )
    with program, sock:
        answer = program.run(context_on(sock, program))
        found = (family, sock_type, sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL))
        assert cells.read()[:3] == found
        assert (answer.ctx.family, answer.ctx.type, answer.ctx.protocol) == found
        assert answer.ctx.sk == sock.fileno()


def test_storage_of_the_callers_socket_is_read_by_descriptor(
    storage: Descriptor, cells: Cells
) -> None:
    with RawProgram(count_in_storage(storage, cells)) as program:
        used, unused = socket.socket(), socket.socket()
        with used, unused:
            program.run(context_on(used, program))
            program.run(context_on(used, program))
            assert storage_of(storage, used) == 2
            assert storage_of(storage, unused) is None


def test_each_request_without_a_socket_has_a_fresh_one(storage: Descriptor, cells: Cells) -> None:
    with RawProgram(count_in_storage(storage, cells)) as program:
        crafted = program.craft(dst="10.0.0.1:80")
        for _ in range(3):
            program.run(crafted)
            assert cells.read()[0] == 1, "storage of another run's socket"
        program.run(crafted, repeat=5)
        assert cells.read()[0] == 5, "within one request it is one socket"


@pytest.mark.parametrize("state", SOCK_STATES)
def test_socket_is_taken_in_whatever_state_it_is(cells: Cells, state: str) -> None:
    server, client, fresh = socket.socket(), socket.socket(), socket.socket()
    with server, client, fresh, RawProgram(record_state(cells)) as program:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        chosen = {"LISTEN": server, "ESTABLISHED": client, "CLOSE": fresh}[state]
        program.run(context_on(chosen, program))
    assert cells.read()[0] == SOCK_STATES[state]


def test_socket_closed_after_the_run_is_gone(storage: Descriptor, cells: Cells) -> None:
    """The run's reference ends with the run, so closing the last descriptor frees the socket."""
    with RawProgram(count_in_storage(storage, cells)) as program:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
        sock.listen()
        program.run(context_on(sock, program))
        sock.close()
        with socket.socket() as again:
            again.bind(address)  # EADDRINUSE if the listener were still alive


@pytest.mark.parametrize(
    "attach_type", [AttachType.CGROUP_INET4_CONNECT, AttachType.CGROUP_UDP4_SENDMSG], ids=str
)
def test_dual_stack_datagram_socket_runs_the_ipv4_hook(attach_type: int) -> None:
    """As udpv6_sendmsg() and udpv6_pre_connect() do for an IPv4 destination."""
    program, sock = RawProgram(rawrun.ALLOW, attach_type), socket.socket(socket.AF_INET6, DGRAM)
    with program, sock:
        context = context_on(sock, program)
        assert program.run(context).ctx.family == socket.AF_INET6
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with pytest.raises(OSError) as refused:
            program.run(context)
        assert refused.value.errno == errno.EAFNOSUPPORT


def test_helpers_work_on_the_callers_socket() -> None:
    """bpf_bind() and bpf_setsockopt() want the socket locked, and change it for good."""
    address = struct.pack("=HHIQ", socket.AF_INET, 0, socket.htonl(0x7F000001), 0)
    words = struct.unpack("=4I", address)
    code = [asm.mov_reg(6, 1)]
    code += [asm.store_imm(4, 10, 4 * index - 16, word) for index, word in enumerate(words)]
    code += [asm.mov_reg(2, 10), asm.alu_imm(asm.ADD, 2, -16), asm.mov_imm(3, 16)]
    code += [rawrun.call(BPF_BIND), asm.mov_reg(7, 0)]
    code += [asm.store_imm(4, 10, -20, 77), asm.mov_reg(1, 6)]
    code += [asm.mov_imm(2, socket.SOL_SOCKET), asm.mov_imm(3, socket.SO_PRIORITY)]
    code += [asm.mov_reg(4, 10), asm.alu_imm(asm.ADD, 4, -20), asm.mov_imm(5, 4)]
    code += [rawrun.call(SETSOCKOPT), asm.alu_reg(0x40, 0, 7)]  # r0 |= r7: 0 when both worked
    code += [asm.branch_imm(asm.JEQ, 0, 0, 2), asm.mov_imm(0, 0), asm.exit_(), *rawrun.ALLOW]
    with RawProgram(code) as program, socket.socket() as sock:
        assert program.run(context_on(sock, program)).retval == 1
        assert sock.getsockname()[0] == "127.0.0.1"
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 77


def netns_cookie(cells: Cells) -> list[Insn]:
    """A program that stores the cookie of its socket's network namespace in cells 0 and 1."""
    return [
        rawrun.call(GET_NETNS_COOKIE),
        *asm.load_map_value(7, cells.fd, 0),
        asm.store(8, 7, 0, 0),
        *rawrun.ALLOW,
    ]


def test_socket_is_made_in_the_callers_network_namespace() -> None:
    with Cells() as cells, RawProgram(netns_cookie(cells)) as program:
        crafted = program.craft(dst="10.0.0.1:80")
        with socket.socket() as outside:
            program.run(crafted)
            here = cells.read()[:2]
            elsewhere: list[tuple[int, ...]] = []

            def in_a_namespace_of_its_own() -> None:
                libc.unshare(libc.CLONE_NEWNET)
                program.run(crafted)
                elsewhere.append(cells.read()[:2])
                # a socket brings its own namespace along
                program.run(context_on(outside, program))
                elsewhere.append(cells.read()[:2])

            thread = threading.Thread(target=in_a_namespace_of_its_own)
            thread.start()
            thread.join()
    assert elsewhere[0] != here
    assert elsewhere[1] == here


def test_raw_socket_needs_the_callers_privilege() -> None:
    """The kernel makes the socket as socket(2) would, no more."""
    with RawProgram(rawrun.ALLOW, AttachType.CGROUP_INET4_GETSOCKNAME) as program:
        crafted = program.craft(type=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP)
        assert program.run(crafted).retval == 1
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            try:
                program.run(crafted)
            except OSError as error:
                os._exit(error.errno or 0)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EPERM
