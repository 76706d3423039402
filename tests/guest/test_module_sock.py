"""Programs of type ``cgroup_sock``: what they see, what they change, and what is refused."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.kernel import version
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun, rawtcp
from .rawrun import Cells, TypedProgram
from .test_module_running import SET_RETVAL, unless_older_than

pytestmark = pytest.mark.guest

CREATE, RELEASE = AttachType.CGROUP_INET_SOCK_CREATE, AttachType.CGROUP_INET_SOCK_RELEASE
BIND4, BIND6 = AttachType.CGROUP_INET4_POST_BIND, AttachType.CGROUP_INET6_POST_BIND
HOOKS = [CREATE, RELEASE, BIND4, BIND6]
RESULT = struct.Struct("=i3I")  # struct bpfunit_sock_result
# offsets in struct bpf_sock
BOUND_DEV_IF, FAMILY, TYPE, PROTOCOL, MARK, PRIORITY, SRC_IP4, SRC_IP6 = 0, 4, 8, 12, 16, 20, 24, 28
SRC_PORT, DST_IP4, DST_IP6, STATE = 44, 52, 56, 72
SO_MARK, IP_FREEBIND = 36, 15
V4, V6 = socket.AF_INET, socket.AF_INET6
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}

ENDPOINTS = {
    "tcp4": (V4, socket.SOCK_STREAM, 0),
    "tcp6": (V6, socket.SOCK_STREAM, 0),
    "udp4": (V4, socket.SOCK_DGRAM, 0),
    "udp6": (V6, socket.SOCK_DGRAM, 0),
    "udplite4": (V4, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE),
    "raw4": (V4, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "raw6": (V6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
    "mptcp4": (V4, socket.SOCK_STREAM, 262),
    "mptcp6": (V6, socket.SOCK_STREAM, 262),
}


def load(code: list[Insn], attach_type: int = CREATE) -> TypedProgram:
    return TypedProgram(code, ProgType.CGROUP_SOCK, attach_type)


def ask(program: TypedProgram, sock: socket.socket, repeat: int = 1) -> tuple[int, ...]:
    """Run on a socket; what the program returned, and the fields of the result."""
    data = rawtcp.head(sock.fileno())
    answer = program.request(data=data, ctx_room=0, data_room=64, repeat=repeat)
    assert answer.data_size == RESULT.size
    return (answer.retval, *RESULT.unpack_from(answer.data))


def readable(attach_type: int) -> list[int]:
    """The words that a program of this type may read."""
    words = [FAMILY, TYPE, PROTOCOL, DST_IP4, *range(DST_IP6, DST_IP6 + 16, 4), STATE]
    if attach_type in (CREATE, RELEASE):
        return [*words, BOUND_DEV_IF, MARK, PRIORITY]
    if attach_type == BIND4:
        return [*words, SRC_PORT, SRC_IP4]
    return [*words, SRC_PORT, *range(SRC_IP6, SRC_IP6 + 16, 4)]


def make(endpoint: str) -> socket.socket:
    try:
        return socket.socket(*ENDPOINTS[endpoint])
    except OSError:
        lacking = {"mptcp": version() < (6, 1), "udplite": version() >= (7, 0)}
        if not lacking.get(endpoint[:-1]):
            raise  # the kernel has it; a skip would hide that the socket cannot be made
        pytest.skip(f"this kernel has no {endpoint}")


def set_word(offset: int, value: int) -> list[Insn]:
    return [asm.mov_imm(2, value), asm.store(4, 1, offset, 2)]


def returning(value: int) -> list[Insn]:
    return [asm.mov_imm(0, value), asm.exit_()]


@contextmanager
def seen(cells: Cells, program: TypedProgram) -> Iterator[Callable[[Callable[[], object]], object]]:
    """Give what makes a call within a cgroup that the program is attached to."""
    with Cgroup() as cgroup, cgroup.attached(program.attach_type, program.fd), cgroup.entered():

        def call(what: Callable[[], object]) -> object:
            cells.clear()
            return what()

        yield call


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_create_program_sees_what_the_attached_one_sees(endpoint: str) -> None:
    with Cells() as cells, load(rawrun.record(cells, readable(CREATE))) as program:
        with seen(cells, program) as call, make(endpoint):
            call(lambda: make(endpoint).close())
            real = cells.read()
        assert any(real)
        cells.clear()
        with make(endpoint) as fresh:
            assert ask(program, fresh, repeat=3)[:2] == (1, 0)
        assert cells.read() == real


@pytest.mark.parametrize("state", ["fresh", "bound", "connected"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_release_program_sees_what_the_attached_one_sees(endpoint: str, state: str) -> None:
    with Cells() as cells, load(rawrun.record(cells, readable(RELEASE)), RELEASE) as program:
        real = ours = None
        with seen(cells, program) as call, ExitStack() as stack:
            sock, other = make(endpoint), stack.enter_context(make(endpoint))
            loopback = LOOPBACK[socket.AddressFamily(sock.family)]
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 7)
            if state == "bound":
                sock.bind((loopback, 0))
            elif state == "connected":
                other.bind((loopback, 0))
                if sock.type == socket.SOCK_STREAM:
                    other.listen()
                sock.connect(other.getsockname())
            cells.clear()
            ask(program, sock, repeat=2)
            ours = cells.read()
            call(sock.close)
            real = cells.read()
        assert any(real)
        assert ours == real


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("port", [0, 4711])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=str)
def test_post_bind_program_sees_what_the_attached_one_sees(
    address: str, port: int, kind: int
) -> None:
    attach_type, family = (BIND6, V6) if ":" in address else (BIND4, V4)
    with (
        Cells() as cells,
        load(rawrun.record(cells, readable(attach_type)), attach_type) as program,
        seen(cells, program) as call,
        socket.socket(family, kind) as sock,
    ):
        call(lambda: sock.bind((address, port)))
        real = cells.read()
        cells.clear()
        assert ask(program, sock, repeat=2)[:2] == (1, 0)
        assert cells.read() == real
        at = readable(attach_type).index(SRC_PORT)
        assert real[at] == sock.getsockname()[1]


@pytest.mark.parametrize("hook", [CREATE, BIND4])
@pytest.mark.parametrize(("verdict", "err"), [(1, 0), (0, -errno.EPERM)])
def test_verdict_becomes_the_errno_of_the_call(hook: int, verdict: int, err: int) -> None:
    with load(returning(verdict), hook) as program, socket.socket() as sock, Cells() as cells:
        if hook == BIND4:
            sock.bind(("127.0.0.1", 0))
        assert ask(program, sock, repeat=3)[:2] == (verdict, err)

        def attempt() -> int:
            try:
                with socket.socket() as made:
                    if hook == BIND4:
                        made.bind(("127.0.0.1", 0))
            except OSError as error:
                return -(error.errno or 0)
            return 0

        with seen(cells, program) as call:
            assert call(attempt) == err


def test_nobody_listens_to_the_verdict_on_a_release() -> None:
    with load(returning(0), RELEASE) as program, Cells() as cells:
        with socket.socket() as sock:
            assert ask(program, sock)[:2] == (0, 0)
        with seen(cells, program) as call:
            call(socket.socket().close)


@pytest.mark.parametrize("hook", [CREATE, BIND4])
def test_program_chooses_the_errno(hook: int) -> None:
    """bpf_set_retval(): 5.18."""
    code = [asm.mov_imm(1, -errno.EACCES), rawrun.call(SET_RETVAL), *returning(1)]
    with unless_older_than(5, 18), load(code, hook) as program, socket.socket() as sock:
        if hook == BIND4:
            sock.bind(("127.0.0.1", 0))
        assert ask(program, sock, repeat=2)[1] == -errno.EACCES


def test_what_a_program_of_sock_create_sets_stays_and_a_real_socket_has_the_same() -> None:
    code = [*set_word(MARK, 9), *set_word(PRIORITY, 5), *set_word(BOUND_DEV_IF, 1), *returning(1)]
    with load(code) as program, Cells() as cells, ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        assert ask(program, sock, repeat=2) == (1, 0, 1, 9, 5)
        with seen(cells, program):
            real = stack.enter_context(socket.socket())
        for one in (sock, real):
            assert one.getsockopt(socket.SOL_SOCKET, SO_MARK) == 9
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 5
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)[:2] == b"lo"


def test_a_socket_lives_on_after_a_run_of_its_release() -> None:
    code = [*set_word(MARK, 9), *set_word(PRIORITY, 5), *set_word(BOUND_DEV_IF, 1), *returning(1)]
    with load(code, RELEASE) as program, rawtcp.tcp_pair() as (client, server):
        assert ask(program, client, repeat=2) == (1, 0, 1, 9, 5)
        assert client.getsockopt(socket.SOL_SOCKET, SO_MARK) == 0
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 0
        client.send(b"x")
        assert server.recv(1) == b"x"


def test_each_run_begins_with_the_socket_as_it_was() -> None:
    with Cells() as cells:
        code = [asm.mov_reg(6, 1), asm.load(4, 2, 6, MARK), *asm.load_map_value(7, cells.fd, 0)]
        code += [asm.load(4, 3, 7, 0), asm.Insn(asm.ALU64 | asm.SRC_REG, 3, 2)]
        code += [asm.store(4, 7, 0, 3), asm.mov_reg(1, 6), *set_word(MARK, 100), *returning(1)]
        with load(code) as program, socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 3)
            ask(program, sock, repeat=1000)
            assert cells.read()[0] == 3000


@pytest.mark.parametrize("hook", HOOKS)
def test_requests_that_are_refused_for_their_form(hook: int) -> None:
    with load(returning(1), hook) as program, socket.socket() as sock:
        fd = sock.fileno()
        for data in (None, rawtcp.head(fd)[:15], rawtcp.head(fd, flags=1)):
            program.refuses(errno.EINVAL, None, data, ctx_room=0)
        for fields in ({"version": 2}, {"reserved": 1}):
            program.refuses(errno.EINVAL, None, rawtcp.head(fd, **fields), ctx_room=0)
        program.refuses(errno.E2BIG, None, rawtcp.head(fd) + b"x", ctx_room=0)
        program.refuses(errno.EINVAL, bytes(80), rawtcp.head(fd))
        for name in ("flags", "cpu", "batch_size"):
            program.refuses(errno.EINVAL, None, rawtcp.head(fd), ctx_room=0, **{name: 1})


OTHER_FAMILIES = {"unix": errno.EAFNOSUPPORT, "netlink": errno.EAFNOSUPPORT}
OTHER_FAMILIES |= {"packet": errno.EAFNOSUPPORT, "vsock": errno.EAFNOSUPPORT}
OTHER_FAMILIES |= {"smc": errno.EAFNOSUPPORT}


@pytest.mark.parametrize("hook", HOOKS)
def test_sockets_that_no_such_program_sees_are_refused(hook: int) -> None:
    with rawtcp.no_tcp_connections() as found, load(returning(1), hook) as program:
        for name, (fd, expected) in found.items():
            if name in OTHER_FAMILIES or name in ("closed", "negative", "pipe"):
                wanted = OTHER_FAMILIES.get(name, expected)
                program.refuses(wanted, None, rawtcp.head(fd), ctx_room=0)


def refused_after(hook: int, call: Callable[[socket.socket], object], expected: int) -> None:
    """Assert that a socket is refused once something was done with it."""
    family = V6 if hook == BIND6 else V4
    with load(returning(1), hook) as program, socket.socket(family) as sock:
        call(sock)
        program.refuses(expected, None, rawtcp.head(sock.fileno()), ctx_room=0)


def test_states_that_no_such_program_sees_are_refused() -> None:
    refused_after(CREATE, lambda s: s.bind(("127.0.0.1", 0)), errno.EINVAL)
    refused_after(CREATE, lambda s: s.listen(), errno.EISCONN)
    for hook in (BIND4, BIND6):
        refused_after(hook, lambda s: None, errno.EADDRNOTAVAIL)
        refused_after(hook, lambda s: s.listen(), errno.EISCONN)
    with load(returning(1), BIND4) as four, load(returning(1), BIND6) as six:
        with socket.socket(V6) as sock:
            sock.bind(("::1", 0))
            four.refuses(errno.EAFNOSUPPORT, None, rawtcp.head(sock.fileno()), ctx_room=0)
        with socket.socket(V4) as sock:
            sock.bind(("127.0.0.1", 0))
            six.refuses(errno.EAFNOSUPPORT, None, rawtcp.head(sock.fileno()), ctx_room=0)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_bind_of_a_protocol_asks_the_program_or_is_refused(endpoint: str) -> None:
    """The refusal of protocols that bind on their own, held against bind(2) itself."""
    attach_type = BIND6 if endpoint.endswith("6") else BIND4
    with (
        Cells() as cells,
        load(rawrun.count(cells) + rawrun.ALLOW, attach_type) as program,
        seen(cells, program) as call,
        make(endpoint) as sock,
    ):
        call(lambda: sock.bind((LOOPBACK[socket.AddressFamily(sock.family)], 0)))
        asked = cells.read()[0]
        if endpoint.startswith("mptcp"):
            assert asked == 1  # about the subflow, which nobody has a descriptor of
        if asked and not endpoint.startswith("mptcp"):
            assert ask(program, sock)[1] == 0
        else:
            program.refuses(errno.EOPNOTSUPP, None, rawtcp.head(sock.fileno()), ctx_room=0)
