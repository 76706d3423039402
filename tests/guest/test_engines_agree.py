"""Programs that tell one socket, or one run, from another: the engines still agree on them."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from bpfunit import Object, engines, ip4, port
from bpfunit.engines import RawOutcome, Request
from bpfunit.engines.both import EnginesDisagreeError

from ..objects import compiled

pytestmark = [pytest.mark.guest, pytest.mark.usefixtures("no_bpf_leaks")]

Load = Callable[[str], Object]
FRONTEND = "10.96.0.1:80"
ENGINES = ["testrun", "live", "both"]
SO_PRIORITY, SO_MARK = 12, 36
by_all = pytest.mark.parametrize("engine", ENGINES)
with_and_without = pytest.mark.parametrize("own", [True, False], ids=["sock", "nosock"])


@pytest.fixture(scope="module", autouse=True)
def _engine_is_there() -> None:
    """Make the engine before the descriptors of the first test are counted."""
    engines.get("live")


@pytest.fixture
def load(bpf_load: Callable[..., Object]) -> Load:
    return lambda engine: bpf_load(compiled("agree"), engine=engine)


@by_all
@with_and_without
@pytest.mark.parametrize("name", ["connects", "sends", "by_time", "by_chance", "by_namespace"])
def test_keys_that_no_two_runs_share_are_no_difference(
    load: Load, name: str, own: bool, engine: str
):
    obj = load(engine)
    sock_type = socket.SOCK_DGRAM if name == "sends" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, sock_type) as sock:
        result = obj.programs[name].run(FRONTEND, sock=sock if own else None)
    assert result.retval == 1
    made = 2 if name == "by_chance" else 1
    assert len(obj.maps.reverse) + len(obj.maps.entries) == made, "as if it had run once"


@by_all
def test_reverse_nat_finds_where_its_socket_went(load: Load, engine: str):
    obj = load(engine)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert obj.programs.connects.run(FRONTEND, sock=sock).dst == "10.244.0.5:8080"
        sock.connect(("127.0.0.1", 8080))
        assert obj.programs.names_peer.run("127.0.0.1:8080", sock=sock).dst == FRONTEND
    assert obj.programs.names_peer.run("127.0.0.1:8080").dst == "127.0.0.1:8080"


@by_all
@with_and_without
@pytest.mark.parametrize("name", ["binds", "grants_once"])
def test_program_that_changes_its_socket_has_one_verdict(
    load: Load, name: str, own: bool, engine: str
):
    program = load(engine).programs[name]
    with socket.socket() as sock:
        assert program.run(FRONTEND, sock=sock if own else None).retval == 1
        if own:
            assert program.run(FRONTEND, sock=sock).retval == 0, "the second call finds it changed"


@by_all
def test_what_the_program_did_to_the_tests_socket_stays(load: Load, engine: str):
    programs = load(engine).programs
    with socket.socket() as sock:
        programs.binds.run(FRONTEND, sock=sock)
        programs.grants_once.run(FRONTEND, sock=sock)
        assert sock.getsockname() == ("127.0.0.1", 22444)
        assert [sock.getsockopt(1, number) for number in (SO_PRIORITY, SO_MARK)] == [5, 5]


def test_options_are_put_back_on_a_socket_that_has_no_like(load: Load):
    program = load("both").programs.grants_once
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert program.run(FRONTEND, sock=sock).retval == 1
        assert sock.getsockopt(1, SO_PRIORITY) == 5


def test_options_of_the_test_are_there_on_the_second_socket(load: Load):
    program = load("both").programs.grants_once
    with socket.socket() as sock:
        sock.setsockopt(1, SO_PRIORITY, 5)
        assert program.run(FRONTEND, sock=sock).retval == 0


class Meddling:
    """The engine testrun, followed by an entry that the program never made."""

    name = "testrun"
    is_test_run = True

    def __init__(self, obj: Object) -> None:
        self._real, self._map = engines.get("testrun"), obj.maps.entries

    def run(self, program: engines.ProgramRef, request: Request) -> RawOutcome:
        outcome = self._real.run(program, request)
        self._map[1234] = 7
        return outcome


@pytest.mark.parametrize("name", ["by_time", "by_namespace"])
def test_entry_of_one_engine_alone_is_a_difference(
    load: Load, monkeypatch: pytest.MonkeyPatch, name: str
):
    obj = load("both")
    monkeypatch.setitem(engines._made, "testrun", Meddling(obj))
    with pytest.raises(EnginesDisagreeError, match="new entry"):
        obj.programs[name].run(FRONTEND)


def test_value_is_compared_though_its_key_is_chance(load: Load, monkeypatch: pytest.MonkeyPatch):
    obj = load("both")
    real = engines.get("testrun")

    class Falsifying:
        name = "testrun"
        is_test_run = True

        def run(self, program: engines.ProgramRef, request: Request) -> RawOutcome:
            outcome = real.run(program, request)
            for key in obj.maps.reverse:
                obj.maps.reverse[key] = {"ip": ip4("10.96.0.2"), "port": port(80)}
            return outcome

    monkeypatch.setitem(engines._made, "testrun", Falsifying())
    with pytest.raises(EnginesDisagreeError, match="map reverse"):
        obj.programs.sends.run(FRONTEND)


@by_all
@pytest.mark.parametrize("written", [1, 10, 99])
def test_address_of_another_family_comes_to_the_hook(load: Load, engine: str, written: int):
    program = load(engine).programs.connects
    result = program.run(ctx=program.craft(FRONTEND, user_family=written))
    assert (result.retval, result.ctx.user_family, result.dst) == (1, written, "10.244.0.5:8080")
