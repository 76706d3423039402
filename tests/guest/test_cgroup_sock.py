"""``cgroup_sock`` programs: crafted, held against real calls, many at once, and refusals."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from bpfunit import ContextError, Object, SyscallError
from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType
from bpfunit.progtypes.cgroup_sock import SockProgram

from ..objects import compiled

pytestmark = pytest.mark.guest

Load = Callable[..., Object]
SO_MARK = 36


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("sock"))


@pytest.fixture
def attached(obj: Object) -> Iterator[None]:
    """The process is in a cgroup with all the programs attached."""
    hooks = {
        "made": AttachType.CGROUP_INET_SOCK_CREATE,
        "gone": AttachType.CGROUP_INET_SOCK_RELEASE,
        "bound4": AttachType.CGROUP_INET4_POST_BIND,
        "bound6": AttachType.CGROUP_INET6_POST_BIND,
    }
    with ExitStack() as stack:
        cgroup = stack.enter_context(Cgroup())
        for name, attach_type in hooks.items():
            stack.enter_context(cgroup.attached(attach_type, obj.programs[name].fd))
        stack.enter_context(cgroup.entered())
        yield


def test_a_datagram_socket_is_marked(obj: Object) -> None:
    result = obj.programs.made.run(type=socket.SOCK_DGRAM)
    assert (result.verdict, result.errno, result.retval) == ("allow", 0, 1)
    assert (result.mark, result.priority, result.bound_dev_if) == (0x1234, 3, 0)
    assert not result.untouched
    assert result.storage() == 1
    assert "mark 0x0, priority 0" in result.describe()[0]
    assert "mark 0x1234, priority 3 (changed), verdict allow" in result.describe()[1]
    assert obj.programs.made.run().untouched


def test_a_real_socket_has_what_the_run_said(obj: Object, attached: None) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, SO_MARK) == 0x1234
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 3
    assert obj.maps.closed[0] == 0x1234
    with pytest.raises(PermissionError):
        socket.socket(type=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP)


def test_a_raw_socket_is_denied(obj: Object) -> None:
    result = obj.programs.made.run(type=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP)
    assert (result.verdict, result.errno) == ("deny", errno.EPERM)


def test_what_the_program_does_to_a_socket_of_the_test_stays(obj: Object) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        for so_far in (1, 2):
            assert obj.programs.made.run(sock=sock).storage() == so_far
        assert sock.getsockopt(socket.SOL_SOCKET, SO_MARK) == 0x1234
        assert obj.programs.made.run(sock=sock, repeat=100).storage() == 102


def test_a_release_sees_the_socket_and_leaves_it(obj: Object) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 5)
        result = obj.programs.gone.run(sock=sock, repeat=3)
        assert (result.verdict, result.errno, result.untouched) == ("allow", 0, True)
        assert obj.maps.closed[0] == 15
    assert obj.programs.gone.run("127.0.0.1:80").errno == 0


@pytest.mark.parametrize(("port", "verdict"), [(80, "deny"), (1023, "deny"), (1024, "allow")])
def test_ports_below_1024_are_denied(obj: Object, port: int, verdict: str) -> None:
    result = obj.programs.bound4.run(f"10.1.2.3:{port}", type=socket.SOCK_DGRAM)
    assert (result.verdict, result.errno) == (verdict, errno.EPERM if verdict == "deny" else 0)
    assert obj.programs.bound4.run().verdict == "allow"


@pytest.mark.parametrize(("port", "fails"), [(1023, True), (1024, False)])
def test_a_real_bind_ends_as_the_run_said(
    obj: Object, attached: None, port: int, fails: bool
) -> None:
    with socket.socket() as sock:
        if fails:
            with pytest.raises(PermissionError):
                sock.bind(("127.0.0.1", port))
            assert sock.getsockname() == ("0.0.0.0", 0)
        else:
            sock.bind(("127.0.0.1", port))
    with socket.socket(socket.AF_INET6) as six:
        six.bind(("::1", 0))


def test_an_address_of_ipv6_is_denied(obj: Object) -> None:
    assert obj.programs.bound6.run("[::2]:0").verdict == "deny"
    assert obj.programs.bound6.run(("::3", 5000)).verdict == "allow"
    assert obj.programs.bound6.run().verdict == "allow"
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        assert obj.programs.bound6.run(sock=sock).errno == 0


def test_many_sockets_in_one_call(obj: Object) -> None:
    with ExitStack() as stack:
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM)
        socks = [stack.enter_context(socket.socket(type=kind)) for kind in kinds]
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        runs = obj.programs.made.run_many([*socks, unix])
    assert [(run.error, run.verdict, run.errno) for run in runs[:3]] == [(0, "allow", 0)] * 3
    assert [run.fields and run.fields.mark for run in runs] == [0, 0x1234, 0, None]
    assert runs[3].error == errno.EAFNOSUPPORT


def test_a_slip_says_what_can_be_written(obj: Object) -> None:
    made, bound4 = obj.programs.made, obj.programs.bound4
    assert isinstance(made, SockProgram)
    assert isinstance(bound4, SockProgram)
    with socket.socket() as sock:
        slips: list[tuple[str, SockProgram, tuple[Any, ...], dict[str, Any]]] = [
            ("just made has no address", made, ("10.0.0.1:80",), {}),
            ("pass one of the two", made, (), {"sock": sock, "family": socket.AF_INET}),
            ("an address of IPv6, and a socket of AF_INET", bound4, ("[::1]:80",), {}),
            ("it has no port", bound4, ("10.0.0.1",), {}),
        ]
        for match, program, arguments, options in slips:
            with pytest.raises(ContextError, match=match):
                program.run(*arguments, **options)
        with pytest.raises(ContextError, match="give it a socket"):
            made.run_many(["10.0.0.1:80"])
        with pytest.raises(SyscallError, match="not bound; pass an address") as refused:
            bound4.run(sock=sock)
        assert refused.value.errno == errno.EADDRNOTAVAIL
        sock.listen()
        with pytest.raises(SyscallError, match="connected or listens"):
            bound4.run(sock=sock)
