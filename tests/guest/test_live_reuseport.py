"""sk_reuseport by real packets and listeners that go, alone and beside the test run."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import bpfunit
from bpfunit import NotApplicableError, Object, engines
from bpfunit.engines import RawOutcome, Request
from bpfunit.engines.both import EnginesDisagreeError
from bpfunit.netns import NetworkNamespace
from bpfunit.progtypes.sk_reuseport import ReuseportProgram

from ..objects import compiled

pytestmark = [pytest.mark.guest, pytest.mark.usefixtures("no_bpf_leaks")]

Load = Callable[..., Object]
Group = list[socket.socket]
CASES = int(os.environ.get("BPFUNIT_CASES", "300"))
SO_ATTACH_REUSEPORT_EBPF, SO_COOKIE, IP_FREEBIND, IPV6_FREEBIND = 52, 57, 15, 78
FAMILIES = [socket.AF_INET, socket.AF_INET6]
KINDS = [(family, kind) for family in FAMILIES for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
since_migration = pytest.mark.needs(since="5.14")


@pytest.fixture(scope="module", autouse=True)
def _engine_is_there() -> None:
    """Make the engine before the descriptors of the first test are counted."""
    engines.get("live")


@pytest.fixture(params=["live", "both"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def oracle(bpf_load: Load, engine: str) -> Object:
    return bpf_load(compiled("reuselive"), engine=engine)


@pytest.fixture
def migrating(bpf_load: Load, engine: str) -> Object:
    return bpf_load(compiled("reuselive", "MIGRATE"), engine=engine)


def plan(obj: Object, **fields: int) -> None:
    obj.maps.plans[0] = {"retval": 1, "offset": 0, **fields}
    obj.maps.sightings[0] = {}


def enter(obj: Object, group: Group) -> None:
    for number, worker in enumerate(group):
        obj.maps.workers[number] = worker


def arrived(group: Group) -> Group:
    """Those of a group where something waits to be read or accepted."""
    return select.select(group, [], [], 0)[0]


# -- one packet each -------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kind"), KINDS)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_worker_is_selected(
    oracle: Object, engine: str, family: int, kind: int, number: int
) -> None:
    plan(oracle, selects=1, key=number)
    with bpfunit.reuseport_group(3, family=family, type=kind) as group:
        enter(oracle, group)
        result = oracle.programs.choose.run(b"hello, worker", sock=group[0])
        assert (result.engine, result.verdict, result.retval) == (engine, "select", 1)
        assert result.selected(group[number])
        assert result.selected(oracle.maps.workers, number)
        assert not result.selected(group[number - 1])
        assert arrived(group) == []  # nobody gets it
    seen = oracle.maps.sightings[0]
    header = 8 if kind == socket.SOCK_DGRAM else 20
    assert (seen.runs, seen.len) == (1, header + 13)
    assert seen.ip_protocol == (17 if kind == socket.SOCK_DGRAM else 6)
    assert seen.hash != 0  # the kernel's own


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
@pytest.mark.parametrize("retval", [0, 7])
def test_nobody_gets_it(oracle: Object, kind: int, retval: int) -> None:
    plan(oracle, selects=1, retval=retval)
    with bpfunit.reuseport_group(2, type=kind) as group:
        enter(oracle, group)
        result = oracle.programs.choose.run(sock=group[1])
        assert (result.verdict, result.errno) == ("drop", errno.ECONNREFUSED)
        assert result.retval == retval
        assert not result.selected(group[0])


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_nobody_is_selected(oracle: Object, kind: int) -> None:
    plan(oracle, selects=1, key=3)
    with bpfunit.reuseport_group(2, type=kind) as group:
        result = oracle.programs.choose.run(b"x", sock=group[0])
        assert (result.verdict, result.errno, result.retval) == ("hash", 0, 1)
        assert arrived(group) == []
    assert oracle.maps.sightings[0].selected == -errno.ENOENT
    assert oracle.programs.choose.run(b"x").verdict == "hash"  # a group of the run's own


def test_choice_by_hash_goes_by_the_kernels_own(oracle: Object) -> None:
    plan(oracle, selects=1, by_hash=1)
    with bpfunit.reuseport_group(4) as group:
        enter(oracle, group)
        for port in range(1000, 1008):
            result = oracle.programs.choose.run(sock=group[0], src=f"127.0.0.1:{port}")
            number = oracle.maps.sightings[0].hash % 5
            if number == 4:
                assert result.verdict == "hash"
            else:
                assert result.selected(group[number])


@pytest.mark.parametrize(
    ("family", "any_address", "target", "source"),
    [
        (socket.AF_INET, "0.0.0.0", "10.1.2.3", "192.0.2.9"),
        (socket.AF_INET6, "::", "fd00::3", "2001:db8::9"),
        (socket.AF_INET6, "::", "fe80::3", "fe80::9"),
        (socket.AF_INET6, "::", "10.1.2.3", "10.0.0.9"),
    ],
)
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_packet_between_addresses_of_nobodys(
    oracle: Object, kind: int, family: int, any_address: str, target: str, source: str
) -> None:
    plan(oracle, selects=1, key=1, start=1)
    with NetworkNamespace() as ns, ns.entered():
        address = (any_address, 0)
        with bpfunit.reuseport_group(2, family=family, type=kind, address=address) as group:
            enter(oracle, group)
            port = group[0].getsockname()[1]
            result = oracle.programs.choose.run(
                b"ok", sock=group[0], src=(source, 4000), dst=(target, port)
            )
            assert result.selected(group[1])
    seen = oracle.maps.sightings[0]
    assert (seen.relative, seen.bind_inany) == (0, 1)
    version = 4 if "." in target else 6
    packed = socket.inet_pton(socket.AF_INET if version == 4 else socket.AF_INET6, source)
    at = 12 if version == 4 else 8
    assert bytes(seen.header)[at:][: len(packed)] == packed


@since_migration
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", [0, 2])
def test_connection_migrates(migrating: Object, engine: str, family: int, number: int) -> None:
    plan(migrating, selects=1, key=number)
    with bpfunit.reuseport_group(3, family=family, type=socket.SOCK_STREAM) as group:
        with connection(group) as (client, server):
            enter(migrating, group)
            result = migrating.programs.migrate.run(sock=group[1], migrating=server)
            assert (result.engine, result.verdict, result.retval) == (engine, "select", 1)
            assert result.selected(group[number])
            client.sendall(b"still there")
            assert server.recv(20) == b"still there"
            assert arrived(group) == []
        seen = migrating.maps.sightings[0]
        assert (seen.runs, seen.len, seen.migrating[0]) == (1, 0, family)
        assert seen.migrating[5] == group[0].getsockname()[1]
        plan(migrating, selects=1, key=number)
        assert migrating.programs.migrate.run(sock=group[1]).selected(group[number])
        assert list(migrating.maps.sightings[0].migrating) == [0] * 8


@since_migration
@pytest.mark.parametrize(("fields", "verdict"), [({"retval": 0}, "drop"), ({}, "hash")])
def test_connection_is_reset_or_goes_by_hash(
    migrating: Object, fields: dict[str, int], verdict: str
) -> None:
    plan(migrating, **fields)
    with bpfunit.reuseport_group(2, type=socket.SOCK_STREAM) as group, connection(group) as ends:
        result = migrating.programs.migrate.run(sock=group[0], migrating=ends[1])
        assert result.verdict == verdict
        assert arrived(group) == []


class connection:
    """A connection to a group, as its two ends."""

    def __init__(self, group: Group) -> None:
        self._client = socket.create_connection(group[0].getsockname()[:2])
        (listener,) = select.select(group, [], [], 5)[0]
        self._server = listener.accept()[0]

    def __enter__(self) -> tuple[socket.socket, socket.socket]:
        return self._client, self._server

    def __exit__(self, *_error: object) -> None:
        self._client.close()
        self._server.close()


# -- what the engine leaves and refuses ------------------------------------------------------------


def test_nothing_stays_attached(oracle: Object) -> None:
    plan(oracle)
    with bpfunit.reuseport_group(2) as group:
        oracle.programs.choose.run(sock=group[0], repeat=3)
        runs = oracle.maps.sightings[0].runs
        assert runs == 3
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", group[0].getsockname())
        (got,) = select.select(group, [], [], 5)[0]
        assert got.recv(10) == b"hello"
        assert oracle.maps.sightings[0].runs == runs


def test_program_that_the_group_had_is_attached_again(bpf_load: Load) -> None:
    tested = bpf_load(compiled("reuselive"), engine="live")
    other = bpf_load(compiled("reuseport"))
    plan(tested)
    with bpfunit.reuseport_group(2) as group:
        enter(other, group)  # a socket is in one such map only
        group[0].setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, other.programs.choose.descriptor
        )
        assert tested.programs.choose.run(b"1", sock=group[1]).verdict == "hash"
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(b"1 hello", group[0].getsockname())
        group[1].settimeout(5)
        assert group[1].recv(10) == b"1 hello"
        assert (other.maps.asked[0], tested.maps.sightings[0].runs) == (1, 1)


def test_what_no_packet_shows_is_not_applicable(bpf_load: Load) -> None:
    obj = bpf_load(compiled("reuselive"), engine="live")
    plan(obj)
    choose = obj.programs.choose
    with bpfunit.reuseport_group(2, address=("0.0.0.0", 0)) as group:
        port = group[0].getsockname()[1]
        with pytest.raises(NotApplicableError, match="the kernel's hash of this packet is 0x"):
            choose.run(sock=group[0], hash=7)
        with pytest.raises(NotApplicableError, match="asks no program about such a packet"):
            choose.run(sock=group[0], dst=f"127.0.0.1:{port ^ 1}")
        with pytest.raises(NotApplicableError, match="asks no program about such a packet"):
            choose.run(sock=group[0], dst=f"224.0.0.1:{port}")  # all of the group get it
        group[1].connect(("127.0.0.1", 9))
        with pytest.raises(NotApplicableError, match="without being chosen"):
            choose.run(sock=group[1])
    with socket.socket() as sock, pytest.raises(NotApplicableError, match="does not listen"):
        choose.run(sock=sock)
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(NotApplicableError, match=r"take one of bpfunit\.reuseport_group"):
            choose.run(sock=sock)


@since_migration
def test_listener_with_a_connection_of_the_tests_is_left_alone(bpf_load: Load) -> None:
    obj = bpf_load(compiled("reuselive", "MIGRATE"), engine="live")
    plan(obj)
    with bpfunit.reuseport_group(2, type=socket.SOCK_STREAM) as group, connection(group) as ends:
        with socket.create_connection(group[0].getsockname()):
            assert select.select(group, [], [], 5)[0]
            with pytest.raises(NotApplicableError, match="that nobody has accepted"):
                obj.programs.migrate.run(sock=group[0], migrating=ends[1])
            (waiting,) = arrived(group)
            waiting.accept()[0].close()
        assert obj.programs.migrate.run(sock=group[0], migrating=ends[1]).verdict == "hash"


# -- both ------------------------------------------------------------------------------------------


def test_difference_between_the_engines_is_spelled_out(
    bpf_load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    obj = bpf_load(compiled("reuselive"), engine="both")
    plan(obj)
    real = engines.get("testrun")

    class Tampered:
        name, is_test_run = "testrun", True

        def run(self, program: Any, request: Any) -> Any:
            outcome = real.run(program, request)
            return outcome._replace(data=b"?" + outcome.data[1:])

    monkeypatch.setitem(engines._made, "testrun", Tampered())
    with pytest.raises(EnginesDisagreeError, match="data: live"):
        obj.programs.choose.run()


class Seen(NamedTuple):
    """What is compared: the outcome, and what the program saw."""

    retval: int
    errno: int
    answer: bytes
    sighting: bytes


def seen(obj: Object, outcome: RawOutcome) -> Seen:
    sighting = bytes(obj.maps.sightings[0])
    return Seen(outcome.retval, outcome.errno, outcome.data, sighting)


def case(chance: random.Random) -> tuple[dict[str, int], dict[str, Any], dict[str, Any]]:
    """Return a plan, what a group is made of, and a packet."""
    wanted = {
        "retval": chance.choice([1, 1, 1, 0, 2, 2**32 - 1]),
        "selects": chance.choice([1, 1, 0]),
        "key": chance.choice([0, 1, 2, 3, 4, 2**32 - 1]),
        "flags": chance.choice([0, 0, 0, 1, 2**31]),
        "by_hash": chance.choice([0, 1]),
        "offset": chance.choice([0, 0, 1, 7, 8, 14, 20, 28, 100, 65535, 2**32 - 1]),
        "start": chance.choice([0, 1, 1, 2]),
    }
    family, kind = chance.choice(KINDS)
    v6 = family == socket.AF_INET6
    # an address of nobody's, any, loopback
    bound = chance.choice(["fd00::7", "::", "::1"] if v6 else ["10.7.7.7", "0.0.0.0", "127.0.0.1"])
    size = chance.choice([0, 1, 2, 16, 24, 100, 1471, 1500, 4000, chance.randrange(2000)])
    packet: dict[str, Any] = {"data": chance.randbytes(size)}
    as_v4 = not v6 or (bound == "::" and chance.random() < 0.3)
    hosts = ["2001:db8::1", "::1", "fe80::1", "fd00::7"]
    if as_v4:
        hosts = ["192.0.2.1", "127.0.0.1", "10.7.7.7", "255.255.255.255", "8.8.8.8"]
    if bound in ("::", "0.0.0.0"):
        packet["dst"] = chance.choice(hosts[:3])
        packet["src"] = (chance.choice(hosts), chance.randrange(65536))
    elif chance.random() < 0.7:
        packet["src"] = (chance.choice(hosts), chance.randrange(65536))
    return wanted, {"family": family, "kind": kind, "bound": bound}, packet


def group_of(family: int, kind: int, bound: str) -> Group:
    """Return a group of three at an address that need not be here, each with a cookie."""
    made: Group = []
    for _ in range(3):
        sock = socket.socket(family, kind)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((bound, made[0].getsockname()[1] if made else 0))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
        made.append(sock)
    return made


def compare(
    obj: Object,
    program: ReuseportProgram,
    live: Callable[[Request], RawOutcome],
    request: Request,
    what: str,
) -> None:
    """Make one run by the real thing, and the same by test run."""
    try:
        outcome = live(request)
    except NotApplicableError as error:  # the test would end with it, and as no failure
        pytest.fail(f"{what}: {error}")
    real = seen(obj, outcome)
    assert outcome.settled is not None
    obj.maps.sightings[0] = {}
    crafted = seen(
        obj, engines.get("testrun").run(program.ref, request._replace(data=outcome.settled))
    )
    assert real == crafted, what


def migrates() -> bool:
    return tuple(map(int, os.uname().release.split(".")[:2])) >= (5, 14)


def test_random_packets_are_the_same(bpf_load: Load) -> None:
    names = ["choose", "migrate"] if migrates() else ["choose"]
    obj = bpf_load(compiled("reuselive", *(["MIGRATE"] if migrates() else [])))
    live = engines.get("live")
    with NetworkNamespace() as ns, ns.entered():
        for turn, name in enumerate(names):
            program = obj.programs[name]
            assert isinstance(program, ReuseportProgram)
            with live.prepared(program.ref) as run:
                for seed in range(turn, CASES, len(names)):
                    compare_a_packet(obj, program, run, seed)


def compare_a_packet(
    obj: Object, program: ReuseportProgram, live: Callable[[Request], RawOutcome], seed: int
) -> None:
    wanted, made, packet = case(random.Random(f"reuseport {seed}"))
    group = group_of(**made)
    what = f"case {seed}: {wanted} {made} {packet}"
    try:
        enter(obj, group[: seed % 4])
        plan(obj, **wanted)
        if "dst" in packet:
            packet["dst"] = (packet["dst"], group[0].getsockname()[1])
        compare(obj, program, live, program._request(group[seed % 3], **packet), what)
    finally:
        for worker in group:
            worker.close()


@since_migration
def test_random_migrations_are_the_same(bpf_load: Load) -> None:
    obj = bpf_load(compiled("reuselive", "MIGRATE"))
    program = obj.programs.migrate
    assert isinstance(program, ReuseportProgram)
    with engines.get("live").prepared(program.ref) as run:
        for seed in range(CASES // 5):
            compare_a_migration(obj, program, run, seed)


def compare_a_migration(
    obj: Object, program: ReuseportProgram, live: Callable[[Request], RawOutcome], seed: int
) -> None:
    chance = random.Random(f"migration {seed}")
    wanted, made, _ = case(chance)
    made.update(kind=socket.SOCK_STREAM, bound=chance.choice(["::", "::1"]))
    if made["family"] == socket.AF_INET:
        made["bound"] = chance.choice(["0.0.0.0", "127.0.0.1"])
    what = f"case {seed}: {wanted} {made}"
    group = group_of(**made)
    try:
        with connection(group) as (_, server):
            enter(obj, group[: seed % 4])
            plan(obj, **wanted)
            request = program._request(group[seed % 3], migrating=server)
            compare(obj, program, live, request, what)
            assert arrived(group) == [], what
    finally:
        for worker in group:
            worker.close()


def test_compare_sees_a_difference(bpf_load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    obj = bpf_load(compiled("reuselive"))
    program = obj.programs.choose
    assert isinstance(program, ReuseportProgram)
    plan(obj)
    with bpfunit.reuseport_group(1) as group, engines.get("live").prepared(program.ref) as live:
        request = program._request(group[0], b"hello")
        compare(obj, program, live, request, "the same")
        real = engines.get("testrun").run

        def other(ref: Any, wanted: Request) -> RawOutcome:
            data = wanted.data or b""
            port = 32 + 20  # behind the module's header and the packet's
            return real(ref, wanted._replace(data=data[:port] + b"??" + data[port + 2 :]))

        monkeypatch.setattr(engines.get("testrun"), "run", other)
        plan(obj)
        with pytest.raises(AssertionError, match="another byte"):
            compare(obj, program, live, request, "another byte")
