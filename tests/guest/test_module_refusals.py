"""Requests that the module refuses: each with one errno, and without running the program."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Callable, Iterator

import pytest

from bpfunit._sys.uapi import AttachType
from bpfunit.errors import SyscallError

from . import rawrun
from .rawrun import BpfSockAddr, Cells, RawProgram

pytestmark = pytest.mark.guest

CONNECT4, CONNECT6 = AttachType.CGROUP_INET4_CONNECT, AttachType.CGROUP_INET6_CONNECT
BIND4, BIND6 = AttachType.CGROUP_INET4_BIND, AttachType.CGROUP_INET6_BIND
SENDMSG4, SENDMSG6 = AttachType.CGROUP_UDP4_SENDMSG, AttachType.CGROUP_UDP6_SENDMSG
RECVMSG4, NAME4 = AttachType.CGROUP_UDP4_RECVMSG, AttachType.CGROUP_INET4_GETSOCKNAME


class Counted:
    """A program that counts its runs."""

    def __init__(self, attach_type: int) -> None:
        self.cells = Cells()
        self.program = RawProgram(rawrun.count(self.cells) + rawrun.ALLOW, attach_type)

    def close(self) -> None:
        self.program.close()
        self.cells.close()

    def refuses(self, ctx: BpfSockAddr | bytes | None, expected: int, **fields: int) -> None:
        """Assert that the request fails with this errno and that the program did not run."""
        with pytest.raises(SyscallError) as refused:
            self.program.run(ctx, **fields)
        found = errno.errorcode[refused.value.errno or 0]
        assert found == errno.errorcode[expected]
        assert self.cells.read()[0] == 0, "the program ran"


@pytest.fixture
def counted() -> Iterator[Callable[[int], Counted]]:
    made: list[Counted] = []

    def make(attach_type: int = CONNECT4) -> Counted:
        made.append(Counted(attach_type))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def connect4(counted: Callable[[int], Counted]) -> Counted:
    return counted(CONNECT4)


def context(**fields: object) -> BpfSockAddr:
    """A good context of connect4 with some fields changed."""
    made = BpfSockAddr(
        user_family=socket.AF_INET,
        user_ip4=0x0100000A,
        user_port=socket.htons(80),
        family=socket.AF_INET,
        type=socket.SOCK_STREAM,
        protocol=socket.IPPROTO_TCP,
    )
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_missing_context(connect4: Counted) -> None:
    connect4.refuses(None, errno.EINVAL)


def test_size_without_context_and_context_without_size(connect4: Counted) -> None:
    connect4.refuses(None, errno.EINVAL, ctx_size_in=72)
    connect4.refuses(context(), errno.EINVAL, ctx_size_in=0)


@pytest.mark.parametrize(
    ("ctx", "size"),
    [(bytes(context()) + b"\1", 73), (bytes(context()), 4097), (bytes(context()), 0xFFFFFFFF)],
    ids=["byte past the end", "longer than a page", "four gigabytes"],
)
def test_context_too_long(connect4: Counted, ctx: bytes, size: int) -> None:
    connect4.refuses(ctx, errno.E2BIG, ctx_size_in=size)


@pytest.mark.parametrize("address", [8, 0xFFFF800000000000, 0xFFFFFFFFFFFFFFF0, 0x7FFFFFFFF000])
def test_wild_context_pointer(connect4: Counted, address: int) -> None:
    connect4.refuses(context(), errno.EFAULT, ctx_in=address)


@pytest.mark.parametrize(
    "fields",
    [
        {"flags": 1},
        {"flags": 1 << 31},
        {"cpu": 1},
        {"batch_size": 1},
        {"data_in": 4096, "data_size_in": 14},
        {"data_size_in": 14},
        {"data_out": 0, "data_size_out": 4},
    ],
    ids=str,
)
def test_parts_of_the_request_without_a_meaning_here(
    connect4: Counted, fields: dict[str, int]
) -> None:
    connect4.refuses(context(), errno.EINVAL, **fields)


@pytest.mark.parametrize(
    ("attach_type", "family"),
    [
        (CONNECT4, socket.AF_UNSPEC),
        (CONNECT6, socket.AF_UNSPEC),
        (BIND4, 0x10002),
        (SENDMSG4, socket.AF_INET6),
        (SENDMSG6, socket.AF_INET),
        (RECVMSG4, socket.AF_UNSPEC),
        (NAME4, socket.AF_INET6),
        (CONNECT4, 0xFFFF0002),
    ],
    ids=str,
)
def test_address_family_that_contradicts_the_attach_type(
    counted: Callable[[int], Counted], attach_type: int, family: int
) -> None:
    made = counted(attach_type)
    ctx = made.program.craft()
    ctx.user_family = family
    made.refuses(ctx, errno.EAFNOSUPPORT)


@pytest.mark.parametrize(
    ("attach_type", "fields"),
    [
        (CONNECT4, {"user_port": 80 << 16}),
        (CONNECT4, {"user_ip6": [0, 0, 0, 1]}),
        (CONNECT4, {"msg_src_ip4": 1}),
        (CONNECT4, {"msg_src_ip6": [1, 0, 0, 0]}),
        (CONNECT6, {"user_ip4": 1}),
        (CONNECT6, {"msg_src_ip6": [0, 0, 0, 1]}),
        (SENDMSG4, {"msg_src_ip6": [0, 0, 0, 1]}),
        (SENDMSG6, {"msg_src_ip4": 1}),
        (RECVMSG4, {"msg_src_ip4": 1}),
    ],
    ids=str,
)
def test_field_that_the_program_could_not_see(
    counted: Callable[[int], Counted], attach_type: int, fields: dict[str, object]
) -> None:
    made = counted(attach_type)
    ctx = made.program.craft()
    for name, value in fields.items():
        setattr(ctx, name, value)
    made.refuses(ctx, errno.EINVAL)


def test_descriptor_that_is_closed_or_no_descriptor_at_all(connect4: Counted) -> None:
    with socket.socket() as gone:
        number = gone.fileno()
    for fd in (number, 0x7FFFFFFF, 0x80000000, 1 << 32 | 3, 0xFFFFFFFFFFFFFFFF, 0xFFFF888000000000):
        connect4.refuses(context(sk=fd), errno.EBADF)


def test_descriptors_that_are_no_sockets(connect4: Counted) -> None:
    pipe_out, pipe_in = os.pipe()
    with tempfile.TemporaryFile() as file:
        others = [pipe_out, pipe_in, file.fileno(), connect4.program.fd, connect4.cells.fd]
        for fd in others:
            connect4.refuses(context(sk=fd), errno.ENOTSOCK)
    os.close(pipe_out)
    os.close(pipe_in)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET], ids=str)
def test_sockets_of_families_without_the_hook(connect4: Counted, family: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as other:
        connect4.refuses(context(sk=other.fileno()), errno.EAFNOSUPPORT)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"family": socket.AF_INET6}, errno.EAFNOSUPPORT),
        ({"type": socket.SOCK_DGRAM}, errno.EPROTOTYPE),
        ({"type": socket.SOCK_STREAM | socket.SOCK_NONBLOCK}, errno.EPROTOTYPE),
        ({"protocol": socket.IPPROTO_UDP}, errno.EPROTOTYPE),
        ({"protocol": 1 << 16 | socket.IPPROTO_TCP}, errno.EPROTOTYPE),
    ],
    ids=str,
)
def test_context_that_contradicts_its_socket(
    connect4: Counted, fields: dict[str, int], expected: int
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as real:
        connect4.refuses(context(sk=real.fileno(), **fields), expected)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"family": socket.AF_UNSPEC}, errno.EAFNOSUPPORT),
        ({"family": socket.AF_UNIX}, errno.EAFNOSUPPORT),
        ({"family": socket.AF_NETLINK}, errno.EAFNOSUPPORT),
        ({"family": 0xFFFFFFFF}, errno.EAFNOSUPPORT),
        ({"family": socket.AF_INET6}, errno.EAFNOSUPPORT),
        ({"type": 0}, errno.ESOCKTNOSUPPORT),
        ({"type": 77}, errno.EINVAL),
        ({"type": socket.SOCK_STREAM | socket.SOCK_CLOEXEC}, errno.EINVAL),
        ({"type": 10}, errno.ESOCKTNOSUPPORT),
        ({"type": socket.SOCK_DGRAM}, errno.EPROTONOSUPPORT),
        ({"protocol": 0xFFFFFFFF}, errno.EINVAL),
    ],
    ids=str,
)
def test_socket_that_socket2_would_not_make_either(
    connect4: Counted, fields: dict[str, int], expected: int
) -> None:
    connect4.refuses(context(**fields), expected)


@pytest.mark.parametrize(
    ("attach_type", "type_", "protocol"),
    [
        (CONNECT4, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        (BIND4, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        (SENDMSG4, socket.SOCK_STREAM, socket.IPPROTO_TCP),
        (SENDMSG4, socket.SOCK_RAW, socket.IPPROTO_UDP),
        (RECVMSG4, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    ],
    ids=str,
)
def test_socket_whose_calls_never_reach_the_hook(
    counted: Callable[[int], Counted], attach_type: int, type_: int, protocol: int
) -> None:
    made = counted(attach_type)
    ctx = context(type=type_, protocol=protocol)
    made.refuses(ctx, errno.EOPNOTSUPP)
    with socket.socket(socket.AF_INET, type_, protocol) as real:
        made.refuses(context(sk=real.fileno(), type=0, protocol=0), errno.EOPNOTSUPP)


@pytest.mark.parametrize(
    ("attach_type", "family", "type_"),
    [
        (CONNECT4, socket.AF_INET6, socket.SOCK_STREAM),
        (CONNECT6, socket.AF_INET, socket.SOCK_DGRAM),
        (BIND4, socket.AF_INET6, socket.SOCK_DGRAM),
        (RECVMSG4, socket.AF_INET6, socket.SOCK_DGRAM),
        (NAME4, socket.AF_INET6, socket.SOCK_DGRAM),
        (SENDMSG6, socket.AF_INET, socket.SOCK_DGRAM),
    ],
    ids=str,
)
def test_socket_of_the_other_family(
    counted: Callable[[int], Counted], attach_type: int, family: int, type_: int
) -> None:
    made = counted(attach_type)
    with socket.socket(family, type_) as real:
        ctx = made.program.craft()
        ctx.family = ctx.type = ctx.protocol = 0
        ctx.sk = real.fileno()
        made.refuses(ctx, errno.EAFNOSUPPORT)


def test_answer_that_has_nowhere_to_go(connect4: Counted) -> None:
    """The program has run by then, as in the kernel's own test runs."""
    for field in ("ctx_out", "data_out"):
        with pytest.raises(SyscallError) as refused:
            connect4.program.run(context(), **{field: 8})
        assert refused.value.errno == errno.EFAULT


def test_output_buffers_too_short_take_what_fits(connect4: Counted) -> None:
    with pytest.raises(SyscallError) as refused:
        connect4.program.run(context(), out_size=8)
    assert refused.value.errno == errno.ENOSPC
    answer = connect4.program.last
    assert (answer.retval, answer.ctx_size) == (1, 72)
    assert answer.ctx == bytes(context())[:8]
    with pytest.raises(SyscallError) as refused:
        connect4.program.run(context(), data_size_out=3)
    assert refused.value.errno == errno.ENOSPC
