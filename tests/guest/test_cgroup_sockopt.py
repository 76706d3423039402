"""``cgroup_sockopt`` programs: crafted, held against real calls, many at once, and refusals."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bpfunit import ContextError, NotApplicableError, Object, SyscallError, engines, features
from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType
from bpfunit.progtypes.cgroup_sockopt import SockoptProgram

from ..objects import compiled

pytestmark = pytest.mark.guest

Load = Callable[..., Object]
SO_OURS = 4711


def c_int(value: int) -> bytes:
    return struct.pack("=i", value)


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("sockopt"))


@pytest.fixture(scope="module", autouse=True)
def observers() -> None:
    engines.get("live")  # its descriptors are no leak of the test that comes first


@pytest.fixture
def inside(obj: Object) -> Iterator[socket.socket]:
    """A socket in a cgroup with both programs attached."""
    programs = obj.programs
    with Cgroup() as cgroup:
        with cgroup.entered():
            sock = socket.socket()
        with (
            sock,
            cgroup.attached(AttachType.CGROUP_SETSOCKOPT, programs.limit.fd),
            cgroup.attached(AttachType.CGROUP_GETSOCKOPT, programs.answer.fd),
        ):
            yield sock


def test_a_value_is_changed_and_the_kernel_sets_the_other_one(
    obj: Object, inside: socket.socket
) -> None:
    result = obj.programs.limit.run("setsockopt", "SOL_SOCKET", "SO_PRIORITY", 6, sock=inside)
    assert (result.verdict, result.errno, result.retval) == ("allow", 0, 1)
    assert (result.optval, result.optlen, result.untouched) == (c_int(4), 4, False)
    assert inside.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 0  # nothing was set
    inside.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 6)
    assert c_int(inside.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)) == result.optval


def test_a_value_that_is_left_is_the_caller_s(obj: Object, inside: socket.socket) -> None:
    result = obj.programs.limit.run("setsockopt", "SOL_SOCKET", "SO_PRIORITY", 3, sock=inside)
    assert (result.verdict, result.optval, result.untouched) == (
        "allow",
        c_int(3),
        True,
    )
    assert (result.level, result.optname) == (socket.SOL_SOCKET, socket.SO_PRIORITY)
    assert result.ctx_optlen == 0
    inside.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 3)
    assert inside.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 3
    long = obj.programs.limit.run("setsockopt", socket.SOL_SOCKET, 4712, b"x" * 4096)
    assert long.optval == b"x" * 4096


def test_a_denial_is_eperm(obj: Object, inside: socket.socket) -> None:
    result = obj.programs.limit.run("setsockopt", "SOL_SOCKET", 36, 1, sock=inside)
    assert (result.verdict, result.errno, result.optval) == ("deny", errno.EPERM, b"")
    with pytest.raises(PermissionError):
        inside.setsockopt(socket.SOL_SOCKET, 36, 1)


def test_the_kernel_is_bypassed(obj: Object, inside: socket.socket) -> None:
    result = obj.programs.limit.run("setsockopt", "SOL_SOCKET", "SO_KEEPALIVE", 1, sock=inside)
    assert (result.verdict, result.errno, result.ctx_optlen) == ("bypass", 0, -1)
    assert not result.untouched
    assert "verdict bypass" in "\n".join(result.describe())
    inside.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert inside.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_the_kernel_s_answer_is_the_default_of_getsockopt(
    obj: Object, inside: socket.socket
) -> None:
    get = obj.programs.answer
    result = get.run("getsockopt", "SOL_SOCKET", "SO_RCVBUF", sock=inside)
    assert (result.verdict, result.errno, result.untouched) == ("allow", 0, True)
    assert result.optval == inside.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4)
    crafted = get.run("getsockopt", "SOL_SOCKET", "SO_RCVBUF", 7, room=100)
    assert (crafted.optval, crafted.optlen) == (c_int(7), 4)
    with pytest.raises(PermissionError):
        inside.getsockopt(socket.SOL_SOCKET, 36)
    denied = get.run("getsockopt", "SOL_SOCKET", 36, 0)
    assert (denied.verdict, denied.errno, denied.optval) == ("deny", errno.EPERM, b"")


def test_a_failure_of_the_kernel_becomes_an_answer(obj: Object, inside: socket.socket) -> None:
    get = obj.programs.answer
    asked: dict[str, int] = {"failure": errno.ENOPROTOOPT}
    result = get.run("getsockopt", "SOL_SOCKET", SO_OURS, **asked)
    assert (result.errno, result.optval, result.ctx_retval) == (0, c_int(42), 0)
    assert inside.getsockopt(socket.SOL_SOCKET, SO_OURS, 4) == result.optval
    with socket.socket() as outside:  # the kernel is asked, and fails
        assert get.run("getsockopt", "SOL_SOCKET", SO_OURS, sock=outside).optval == c_int(42)
    left = get.run("getsockopt", "SOL_SOCKET", SO_OURS + 1, **asked)
    assert (left.verdict, left.errno, left.untouched) == (
        "allow",
        errno.ENOPROTOOPT,
        True,
    )
    with pytest.raises(OSError, match="not available") as failed:
        inside.getsockopt(socket.SOL_SOCKET, SO_OURS + 1, 4)
    assert failed.value.errno == left.errno


def test_storage_and_repetition(obj: Object) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        for so_far in (1, 2):
            result = obj.programs.limit.run("setsockopt", "SOL_SOCKET", "SO_PRIORITY", 6, sock=sock)
            assert result.storage() == so_far
        again = obj.programs.limit.run("setsockopt", 1, 12, 6, sock=sock, repeat=100)
        assert (again.storage(), again.optval) == (102, c_int(4))


def test_many_options_in_one_call(obj: Object) -> None:
    with socket.socket() as sock:
        runs = obj.programs.limit.run_many(
            [
                ("setsockopt", "SOL_SOCKET", "SO_PRIORITY", 9),
                ("setsockopt", "SOL_SOCKET", 36, 1),
                ("setsockopt", "SOL_SOCKET", "SO_KEEPALIVE", 1),
                ("setsockopt", "IPPROTO_TCP", "TCP_NODELAY", 1),
            ],
            sock=sock,
        ).raise_for_errors()
    assert [(run.verdict, run.errno, run.changed) for run in runs] == [
        ("allow", 0, c_int(4)),
        ("deny", errno.EPERM, None),
        ("bypass", 0, None),
        ("allow", 0, None),
    ]
    with pytest.raises(ContextError, match="pass sock="):
        obj.programs.limit.run_many([("setsockopt", 1, 12, 6)])


def test_a_slip_says_what_can_be_written(obj: Object) -> None:
    limit, answer = obj.programs.limit, obj.programs.answer
    assert isinstance(limit, SockoptProgram)
    assert isinstance(answer, SockoptProgram)
    slips: list[tuple[str, SockoptProgram, tuple[Any, ...], dict[str, Any]]] = [
        ('write "setsockopt" or "getsockopt"', limit, ("connect", 1, 12, 6), {}),
        ("it was loaded for setsockopt", limit, ("getsockopt", 1, 12, 6), {}),
        (
            "'SO_NOPE': no such name",
            limit,
            ("setsockopt", "SOL_SOCKET", "SO_NOPE", 6),
            {},
        ),
        (
            "room= and failure= are of getsockopt",
            limit,
            ("setsockopt", 1, 12, 6),
            {"room": 4},
        ),
        ("up to 4096 of a value", limit, ("setsockopt", 1, 12, bytes(4097)), {}),
        ("has 4 bytes, and room=2", answer, ("getsockopt", 1, 12, 6), {"room": 2}),
        ("gives a value or fails", answer, ("getsockopt", 1, 12, 6), {"failure": 92}),
        ("failure=-92 is no errno", answer, ("getsockopt", 1, 12), {"failure": -92}),
    ]
    for match, program, arguments, options in slips:
        with pytest.raises(ContextError, match=match):
            program.run(*arguments, **options)
    with socket.socket() as closed:
        pass
    with pytest.raises((SyscallError, OSError)) as refused:
        limit.run("setsockopt", 1, 12, 6, sock=closed)
    assert refused.value.errno == errno.EBADF


OLD = features.kernel_version() < (5, 18)
OPTIONS: list[tuple[str | int, str | int]] = [
    ("SOL_SOCKET", "SO_PRIORITY"),
    ("SOL_SOCKET", "SO_KEEPALIVE"),
    ("SOL_SOCKET", 36),
    ("SOL_SOCKET", SO_OURS),
    ("IPPROTO_TCP", "TCP_NODELAY"),
    ("IPPROTO_IP", "IP_TTL"),
]


@pytest.mark.parametrize("engine", ["live", "both"])
def test_random_calls_agree_on_both_engines(
    no_bpf_leaks: None, bpf_load: Load, engine: str
) -> None:
    """`BPFUNIT_CASES=12000` makes 3,000."""
    programs = bpf_load(compiled("sockopt"), engine=engine).programs
    chance = random.Random("sockopt")
    engine = "testrun" if OLD else engine  # before 5.18 there is no other
    for _ in range(max(24, int(os.environ.get("BPFUNIT_CASES", "1200")) // 4)):
        level, name = chance.choice(OPTIONS)
        kind = chance.choice((socket.SOCK_STREAM, socket.SOCK_DGRAM))
        with socket.socket(type=kind) as sock:
            if chance.random() < 0.6:
                size = chance.choice((0, 1, 3, 4, 4, 4, 16, 17, 256))
                value = bytes(chance.choice((0, 1, 5, 255)) for _ in range(size))
                result = programs.limit.run("setsockopt", level, name, value, sock=sock)
            else:
                room = chance.choice((1, 2, 4, 4, 16, 256))
                result = programs.answer.run("getsockopt", level, name, sock=sock, room=room)
            assert result.engine == engine
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 0


def test_what_no_real_call_shows_is_not_applicable(no_bpf_leaks: None, bpf_load: Load) -> None:
    if OLD:
        return  # all run by test run there, as the test above sees
    programs = bpf_load(compiled("sockopt"), engine="live").programs
    cases: list[tuple[str, SockoptProgram, tuple[Any, ...], dict[str, Any]]] = [
        ("the kernel answers", programs.answer, ("getsockopt", 1, 12, 77), {}),
        ("the kernel answers", programs.answer, ("getsockopt", 1, 12), {"failure": 92}),
        ("more than 256 bytes", programs.limit, ("setsockopt", 1, 12, bytes(257)), {}),
    ]
    for match, program, arguments, options in cases:
        with pytest.raises(NotApplicableError, match=match):
            program.run(*arguments, **options)


def test_storage_and_verdicts_of_real_calls(no_bpf_leaks: None, bpf_load: Load) -> None:
    if OLD:
        return
    limit = bpf_load(compiled("sockopt"), engine="live").programs.limit
    with socket.socket() as sock:
        for so_far in (1, 2):
            result = limit.run("setsockopt", "SOL_SOCKET", "SO_PRIORITY", 6, sock=sock)
            assert (result.verdict, result.optval, result.engine) == ("allow", c_int(4), "live")
            assert result.storage() == so_far
        assert limit.run("setsockopt", "SOL_SOCKET", 36, 1, sock=sock).errno == errno.EPERM
        bypassed = limit.run("setsockopt", "SOL_SOCKET", "SO_KEEPALIVE", 1, sock=sock)
        assert (bypassed.verdict, bypassed.errno) == ("bypass", 0)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 0
