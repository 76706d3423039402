"""The engine live: every hook reached by its real call, and what no call reaches refused."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable

import pytest

import bpfunit
from bpfunit import NotApplicableError, engines, features
from bpfunit._sys.cgroup import Cgroup, CgroupError
from bpfunit.netns import NetworkNamespace

from ..objects import compiled

pytestmark = [pytest.mark.guest, pytest.mark.usefixtures("no_bpf_leaks")]

ADDRESS = {4: "10.1.2.3:4567", 6: "[fd00::1:2:3]:4567"}
CALLS = ("connect", "bind", "sendmsg", "recvmsg", "getpeername", "getsockname")
HOOKS = [(call, version) for call in CALLS for version in (4, 6)]
MAY_DENY = [(call, version) for call, version in HOOKS if call in CALLS[:3]]
names = pytest.mark.parametrize(("call", "version"), HOOKS, ids=lambda value: str(value))
deniers = pytest.mark.parametrize(("call", "version"), MAY_DENY, ids=lambda value: str(value))


@pytest.fixture(scope="module", autouse=True)
def _engine_is_there() -> None:
    """Make the engine before the descriptors of the first test are counted."""
    engines.get("live")


@pytest.fixture
def oracle(bpf_load: Callable[..., bpfunit.Object]) -> bpfunit.Object:
    """A program for every hook, run by real calls whatever the session's engine is."""
    can = {"has_set_retval": features.has_helper("bpf_set_retval")}
    return bpf_load(compiled("oracle"), globals=can, engine="live")


def plan(oracle: bpfunit.Object, **what: object) -> None:
    """Let the program of the next run do this; it lets the call proceed by default."""
    oracle.maps.plans[0] = {"verdict": 1, **what}


@names
def test_program_sees_the_crafted_address(oracle: bpfunit.Object, call: str, version: int):
    plan(oracle)

    run = oracle.programs[f"{call}{version}"].run(ADDRESS[version])

    assert (run.engine, run.retval, run.errno) == ("live", 1, 0)
    assert run.dst == ADDRESS[version]
    assert run.untouched
    seen = oracle.maps.sightings[0]
    assert seen.runs == 1
    assert socket.ntohs(seen.user_port) == 4567
    assert run.duration_ns


@names
def test_rewritten_address_is_on_the_result(oracle: bpfunit.Object, call: str, version: int):
    words = [bpfunit.ip4("10.9.8.7"), 0, 0, 0] if version == 4 else list(bpfunit.ip6("fd00::9"))
    plan(oracle, rewrite_ip=1, ip=words, rewrite_port=1, port=bpfunit.port(89))

    run = oracle.programs[f"{call}{version}"].run(ADDRESS[version])

    assert run.dst == ("10.9.8.7" if version == 4 else "fd00::9", 89)


@deniers
def test_denied_call_has_the_error_of_the_hook(oracle: bpfunit.Object, call: str, version: int):
    plan(oracle, verdict=0)

    run = oracle.programs[f"{call}{version}"].run(ADDRESS[version])

    assert (run.retval, run.errno) == (0, errno.EPERM)


@pytest.mark.needs(since="5.18", helper="bpf_set_retval")
@deniers
@pytest.mark.parametrize("verdict", [0, 1])
def test_error_that_the_program_chose_is_reported(
    oracle: bpfunit.Object, call: str, version: int, verdict: int
):
    plan(oracle, verdict=verdict, error=errno.ECONNREFUSED)

    run = oracle.programs[f"{call}{version}"].run(ADDRESS[version])

    assert (run.retval, run.errno) == (verdict, errno.ECONNREFUSED)


@pytest.mark.parametrize(
    ("version", "source"), [(4, "9.8.7.6"), (6, "fd00::77"), (6, "fe80::77"), (6, "ff02::77")]
)
def test_datagram_has_the_crafted_source(oracle: bpfunit.Object, version: int, source: str):
    plan(oracle)

    run = oracle.programs[f"sendmsg{version}"].run(ADDRESS[version], source)

    assert run.src.host == source


@pytest.mark.parametrize("version", [4, 6])
def test_udp_lite_datagram_comes_from_the_crafted_address(oracle: bpfunit.Object, version: int):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE).close()
    except OSError:
        major = int(os.uname().release.partition(".")[0])
        if major < 7:  # those have it; a skip would hide that the socket cannot be made
            raise
        pytest.skip("this kernel has no UDP-Lite; 7.2 and 7.3 have none")
    plan(oracle)

    run = oracle.programs[f"recvmsg{version}"].run(
        ADDRESS[version], type=socket.SOCK_DGRAM, proto=socket.IPPROTO_UDPLITE
    )

    assert run.untouched
    assert oracle.maps.sightings[0].protocol == socket.IPPROTO_UDPLITE


def test_socket_of_the_test_stays_as_it_was(oracle: bpfunit.Object):
    plan(oracle, remember=3)
    with socket.socket() as sock:
        for _ in range(2):
            run = oracle.programs.connect4.run(ADDRESS[4], sock=sock)
        assert run.storage("memory") == 6
        assert sock.getblocking()
        assert sock.getsockname() == ("0.0.0.0", 0)
        with pytest.raises(OSError) as unconnected:
            sock.getpeername()
    assert unconnected.value.errno == errno.ENOTCONN


def test_nothing_is_sent(oracle: bpfunit.Object):
    plan(oracle)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        run = oracle.programs.sendmsg4.run(receiver.getsockname())
        assert run.untouched, "the run was to send to the receiver"
        assert oracle.maps.sightings[0].runs == 1
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"of the test", receiver.getsockname())
        receiver.settimeout(10)
        assert receiver.recv(64) == b"of the test", "what the run sent came first"
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(64)


def test_repeat_makes_as_many_calls(oracle: bpfunit.Object):
    plan(oracle)

    oracle.programs.recvmsg4.run(ADDRESS[4], repeat=5)

    assert oracle.maps.sightings[0].runs == 5


@names
def test_socket_is_of_the_namespace_it_was_made_in(oracle: bpfunit.Object, call: str, version: int):
    plan(oracle)
    program, cookies = oracle.programs[f"{call}{version}"], []
    with NetworkNamespace() as elsewhere:
        program.run(ADDRESS[version])
        cookies.append(oracle.maps.sightings[0].netns_cookie)
        with elsewhere.entered():
            program.run(ADDRESS[version])
        cookies.append(oracle.maps.sightings[0].netns_cookie)

    assert cookies[0] != cookies[1]


@pytest.mark.parametrize(
    ("program", "options", "reason"),
    [
        ("connect4", {"ctx": None}, "never comes without a context"),
        ("connect4", {"type": socket.SOCK_RAW, "proto": 255}, "before it comes to the hook"),
        ("bind4", {"type": socket.SOCK_RAW, "proto": 255}, "before it comes to the hook"),
        ("sendmsg4", {"dst": "10.0.0.1:0"}, "ends with EINVAL before it comes to the hook"),
        ("sendmsg6", {"dst": "[::ffff:10.0.0.1]:53"}, "before it comes to the hook"),
        ("recvmsg4", {"dst": "0.0.0.0:53"}, "delivers no datagram with this source"),
        ("recvmsg4", {"type": socket.SOCK_STREAM}, "only a UDP socket"),
        ("getpeername4", {"dst": "10.0.0.1:0"}, "ENOTCONN before it comes to the hook"),
        ("getpeername4", {"dst": "224.0.0.1:80"}, "no socket gets this peer"),
        ("connect4", {"family": 77}, "no socket of family 77"),
        ("connect4", {"type": 99}, "no socket of family 2, type 99"),
    ],
)
def test_what_no_real_call_produces_is_refused(
    oracle: bpfunit.Object, program: str, options: dict[str, object], reason: str
):
    plan(oracle)
    with pytest.raises(NotApplicableError, match=reason):
        oracle.programs[program].run(**{"dst": ADDRESS[4 if "4" in program else 6], **options})
    assert oracle.maps.sightings[0].runs == 0


def test_socket_with_another_peer_is_refused(oracle: bpfunit.Object):
    plan(oracle)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 9))
        with pytest.raises(NotApplicableError, match="connected to another peer"):
            oracle.programs.getpeername4.run(ADDRESS[4], sock=sock)
        run = oracle.programs.getpeername4.run("127.0.0.1:9", sock=sock)
    assert run.retval == 1


def test_a_cgroup_that_is_busy_for_a_moment_is_removed_all_the_same() -> None:
    cgroup = Cgroup("busy")
    below = cgroup.path / "below"
    below.mkdir()  # the kernel says EBUSY until it is gone, as it does while a task ends
    later = threading.Timer(0.3, below.rmdir)
    later.start()
    cgroup.close()
    later.join()
    assert not cgroup.path.exists()


def test_a_cgroup_that_stays_busy_says_what_holds_it() -> None:
    cgroup = Cgroup("held")
    below = cgroup.path / "below"
    below.mkdir()
    with pytest.raises(
        CgroupError, match="still busy after 2 seconds; it has processes or cgroups"
    ):
        cgroup.close()
    below.rmdir()
    cgroup.path.rmdir()


def test_a_process_that_ends_while_its_cgroup_is_closed_does_not_matter() -> None:
    for _ in range(20):
        cgroup = Cgroup("ending")
        child = os.fork()
        if child == 0:
            os.execvp("true", ["true"])
        cgroup.enter(child)
        cgroup.close()
        assert not cgroup.path.exists()
        os.waitpid(child, 0)
