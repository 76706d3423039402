"""cgroup_sock by sockets that are made, bound and closed, alone and beside the test run."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest

import bpfunit
from bpfunit import NotApplicableError, Object, engines
from bpfunit.engines import RawOutcome, Request
from bpfunit.engines.both import EnginesDisagreeError
from bpfunit.netns import NetworkNamespace
from bpfunit.progtypes.cgroup_sock import SockProgram

from ..objects import compiled

pytestmark = [pytest.mark.guest, pytest.mark.usefixtures("no_bpf_leaks")]

Load = Callable[..., Object]
CASES = int(os.environ.get("BPFUNIT_CASES", "300"))
SO_MARK = 36
KINDS = [
    (socket.AF_INET, socket.SOCK_STREAM, 0),
    (socket.AF_INET, socket.SOCK_DGRAM, 0),
    (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    (socket.AF_INET6, socket.SOCK_STREAM, 0),
    (socket.AF_INET6, socket.SOCK_DGRAM, 0),
    (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
]


@pytest.fixture(scope="module", autouse=True)
def _engine_is_there() -> None:
    """Make the engine before the descriptors of the first test are counted."""
    engines.get("live")


@pytest.fixture(params=["live", "both"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def oracle(bpf_load: Load, engine: str) -> Object:
    return bpf_load(compiled("socklive"), engine=engine)


def plan(obj: Object, **fields: int) -> None:
    obj.maps.plans[0] = {"verdict": 1, **fields}
    obj.maps.sightings[0] = {}


def remembered(result: Any) -> tuple[int, list[int]]:
    note = result.storage()
    return note.sum, list(note.tail)


# -- one call each ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kind", "proto"), KINDS)
def test_socket_is_made(oracle: Object, engine: str, family: int, kind: int, proto: int) -> None:
    plan(oracle, remember=3, sets=7, mark=0x55, priority=4, bound_dev_if=1)
    result = oracle.programs.made.run(family=family, type=kind, proto=proto)
    assert (result.engine, result.verdict, result.errno) == (engine, "allow", 0)
    assert result.fields == (1, 0x55, 4)
    assert result.fields_in == (0, 0, 0)
    assert remembered(result) == (3, [0, 0, 1])
    seen = oracle.maps.sightings[0]
    assert (seen.runs, list(seen.words)[:2]) == (1, [family, kind])


def test_socket_that_is_denied_keeps_what_the_program_said_of_it(oracle: Object) -> None:
    plan(oracle, verdict=0, remember=3, sets=1, mark=9)
    result = oracle.programs.made.run()
    assert (result.verdict, result.errno, result.mark) == ("deny", errno.EPERM, 9)
    assert remembered(result) == (3, [0, 0, 1])


@pytest.mark.parametrize("program", ["bound4", "bound6"])
@pytest.mark.parametrize("verdict", [1, 0])
def test_socket_is_bound(oracle: Object, program: str, verdict: int) -> None:
    plan(oracle, verdict=verdict, remember=5)
    address = "10.1.2.3:77" if program == "bound4" else "[fd00::9]:77"
    result = oracle.programs[program].run(address, type=socket.SOCK_DGRAM)
    assert (result.retval, result.errno) == (verdict, 0 if verdict else errno.EPERM)
    assert remembered(result) == (5, [0, 0, 1])
    assert 77 in list(oracle.maps.sightings[0].words)


def test_bind_to_the_port_that_the_kernel_chose(oracle: Object) -> None:
    plan(oracle)
    assert oracle.programs.bound4.run().verdict == "allow"
    assert list(oracle.maps.sightings[0].words)[6] >= 1024


@pytest.mark.parametrize("verdict", [1, 0])
@pytest.mark.parametrize("address", [None, "127.0.0.1:78"])
def test_socket_is_closed(oracle: Object, address: str | None, verdict: int) -> None:
    plan(oracle, verdict=verdict, remember=2, sets=2, priority=6)
    result = oracle.programs.gone.run(address)
    assert (result.retval, result.errno, result.priority) == (verdict, 0, 6)
    assert remembered(result) == (2, [0, 0, 1])


def test_socket_like_the_given_one_is_closed(oracle: Object) -> None:
    plan(oracle, remember=2)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 0x77)
        for so_far in (2, 4):
            result = oracle.programs.gone.run(sock=sock)
            assert remembered(result)[0] == so_far
        assert result.fields_in == result.fields == (0, 0x77, 0)
        assert list(oracle.maps.sightings[0].words)[5] == 0x77
        assert sock.getsockopt(socket.SOL_SOCKET, SO_MARK) == 0x77


def test_socket_is_made_in_the_namespace_of_the_run(oracle: Object) -> None:
    plan(oracle)
    with NetworkNamespace("10.9.9.9") as ns, ns.entered():
        assert oracle.programs.made.run().verdict == "allow"
        assert oracle.programs.bound4.run("10.9.9.9:80").verdict == "allow"
    assert list(oracle.maps.sightings[0].words)[6] == 80


def test_call_that_cannot_be_made_again_is_not_applicable(oracle: Object) -> None:
    plan(oracle)
    with socket.socket() as sock:
        with pytest.raises(NotApplicableError, match=r"socket\(2\) comes once"):
            oracle.programs.made.run(sock=sock)
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(NotApplicableError, match=r"bind\(2\) comes once"):
            oracle.programs.bound4.run(sock=sock)
        with pytest.raises(NotApplicableError, match="no second socket is bound or connected like"):
            oracle.programs.gone.run(sock=sock)
        assert sock.getsockname()[1]  # nobody has closed it
    with bpfunit.tcp_pair() as (client, _), pytest.raises(NotApplicableError, match="no second"):
        oracle.programs.gone.run(sock=client)
    assert oracle.maps.sightings[0].runs == 0


def test_nothing_but_the_call_comes_by(bpf_load: Load) -> None:
    obj = bpf_load(compiled("socklive"), engine="live")
    plan(obj)
    for name in ("made", "bound4", "bound6", "gone"):
        program = obj.programs[name]
        assert isinstance(program, SockProgram)
        program.run()
        assert program.run(repeat=3).retval == 1
    assert obj.maps.sightings[0].runs == 16
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
    assert obj.maps.sightings[0].runs == 16  # and nothing is attached now


# -- both ------------------------------------------------------------------------------------------


def test_difference_between_the_engines_is_spelled_out(
    bpf_load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    obj = bpf_load(compiled("socklive"), engine="both")
    plan(obj)
    real = engines.get("testrun")

    class Tampered:
        name, is_test_run = "testrun", True

        def run(self, program: Any, request: Any) -> Any:
            outcome = real.run(program, request)
            return outcome._replace(data=outcome.data[:-1] + b"?")

    monkeypatch.setitem(engines._made, "testrun", Tampered())
    with pytest.raises(EnginesDisagreeError, match="data: live"):
        obj.programs.made.run()


class Seen(NamedTuple):
    """What is compared: the outcome, what the program saw, and the socket's storage."""

    retval: int
    errno: int
    answer: bytes
    sighting: bytes
    storage: bytes | None


def seen(obj: Object, run: Callable[[Request], RawOutcome], request: Request) -> Seen:
    """Make a run and return all that came of it."""
    outcome = run(request)
    assert request.sock is not None
    note = obj.maps.memory.lookup(request.sock.fileno())
    sighting = bytes(obj.maps.sightings[0])
    return Seen(outcome.retval, outcome.errno, outcome.data, sighting, note)


def case(chance: random.Random) -> tuple[str, dict[str, int], dict[str, Any]]:
    """Return a program, a plan, and what the run's socket is made of."""
    name = chance.choice(["made", "bound4", "bound6", "gone"])
    wanted = {
        "verdict": chance.choice([1, 1, 0]),
        "remember": chance.choice([0, 0, 1, 7]),
        "sets": chance.randrange(8),
        "mark": chance.choice([0, 1, 2**31, 2**32 - 1, chance.randrange(2**32)]),
        "priority": chance.choice([0, 6, 7, 2**32 - 1, chance.randrange(2**32)]),
        "bound_dev_if": chance.choice([0, 1, 2, 2**31 - 1, 2**31, 2**32 - 1]),
    }
    family, kind, proto = chance.choice(KINDS[3:] if name == "bound6" else KINDS[:3])
    if name in ("made", "gone"):
        family, kind, proto = chance.choice(KINDS)
    made: dict[str, Any] = {"family": family, "type": kind, "proto": proto}
    if name.startswith("bound"):
        made["type"] = chance.choice([socket.SOCK_STREAM, socket.SOCK_DGRAM])
        made["proto"] = 0
    if name.startswith("bound") or (kind != socket.SOCK_RAW and chance.random() < 0.5):
        v4 = made["family"] == socket.AF_INET
        # an address of nobody's, of any device, of loopback
        hosts = ["10.7.7.7", "0.0.0.0", "127.0.0.1"] if v4 else ["fd00::7", "::", "::1"]
        made["address"] = (chance.choice(hosts), 0) if name != "made" else None
    return name, wanted, made


def test_random_sockets_are_the_same(bpf_load: Load) -> None:
    obj = bpf_load(compiled("socklive"))
    for seed in range(CASES):
        name, wanted, made = case(random.Random(f"sock {seed}"))
        program = obj.programs[name]
        assert isinstance(program, SockProgram)
        with program._make(**{"address": None, **made}) as sock:
            request = program.as_request(sock)._replace(fresh=True)
            if sock.type != socket.SOCK_RAW and sock.getsockname()[1]:
                made["address"] = sock.getsockname()[:2]  # with the port that the kernel chose
            plan(obj, **wanted)
            crafted = seen(obj, partial(engines.get("testrun").run, program.ref), request)
        with program._make(**{"address": None, **made}) as sock:
            request = program.as_request(sock)._replace(fresh=True)
            plan(obj, **wanted)
            try:
                real = seen(obj, partial(engines.get("live").run, program.ref), request)
            except NotApplicableError as error:  # the test would end with it, and as no failure
                pytest.fail(f"case {seed}: {name} {wanted} {made}: {error}")
        assert real == crafted, f"case {seed}: {name} {wanted} {made}"
