"""Both engines in one run: agreement is silent, a difference is spelled out."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

import bpfunit
from bpfunit import engines
from bpfunit.engines import RawOutcome, Request
from bpfunit.engines.both import EnginesDisagreeError

from ..objects import compiled

pytestmark = [pytest.mark.guest, pytest.mark.usefixtures("no_bpf_leaks")]


@pytest.fixture(scope="module", autouse=True)
def _engine_is_there() -> None:
    """Make the engine before the descriptors of the first test are counted."""
    engines.get("live")


@pytest.fixture
def oracle(bpf_load: Callable[..., bpfunit.Object]) -> bpfunit.Object:
    """A program for every hook, run on both engines whatever the session's is."""
    obj = bpf_load(compiled("oracle"), engine="both")
    obj.maps.plans[0] = {"verdict": 1, "remember": 1}
    return obj


class Tampered:
    """The engine testrun with its answers falsified."""

    name = "testrun"
    is_test_run = True

    def __init__(self, **changes: Any) -> None:
        self._real, self._changes = engines.get("testrun"), changes

    def run(self, program: engines.ProgramRef, request: Request) -> RawOutcome:
        return self._real.run(program, request)._replace(**self._changes)


def test_test_is_left_with_the_traces_of_one_run(oracle: bpfunit.Object):
    with socket.socket() as sock:
        first = oracle.programs.connect4.run("10.1.2.3:80", sock=sock)
        second = oracle.programs.connect4.run("10.1.2.3:80", sock=sock)
        assert oracle.maps.memory[sock] == 2

    assert (first.engine, first.storage("memory"), second.storage("memory")) == ("both", 1, 2)
    assert oracle.maps.sightings[0].runs == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"retval": 0}, "return value: live 00000001, testrun 00000000"),
        ({"errno": 1}, "errno: live 00000000, testrun 00000001"),
        ({"ctx": bytes(72)}, "context: live BpfSockAddr(user=10.1.2.3:80"),
    ],
)
def test_difference_is_spelled_out(
    oracle: bpfunit.Object,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    told: str,
):
    monkeypatch.setitem(engines._made, "testrun", Tampered(**changes))

    with pytest.raises(EnginesDisagreeError) as difference:
        oracle.programs.connect4.run("10.1.2.3:80")

    assert str(difference.value).startswith("run connect4: the engines live and testrun differ")
    assert told in str(difference.value)


def test_chance_of_the_program_is_no_difference(
    bpf_load: Callable[..., bpfunit.Object], bpf_object_path: object
):
    # the hook notes the time of each connect, which no two runs share
    obj = bpf_load(bpf_object_path, engine="both")
    program = obj.programs.cgroup_connect4_prog
    program.run("0.0.0.2:929")  # manage this namespace

    run = program.run("10.1.2.3:80")

    assert run.untouched
    assert run.storage("km_sockstorage").connect_ns


def test_refusal_of_both_is_that_of_the_kernel(oracle: bpfunit.Object):
    with pytest.raises(bpfunit.SyscallError) as refusal:
        oracle.programs.connect4.run(ctx=None)
    assert refusal.value.errno == 22


def test_run_of_one_engine_alone_is_not_applicable(oracle: bpfunit.Object):
    with pytest.raises(bpfunit.NotApplicableError):
        oracle.programs.sendmsg4.run("10.1.2.3:0")
    assert oracle.maps.sightings[0].runs == 0


def test_queue_and_stack_are_put_back_between_the_engines(
    bpf_load: Callable[..., bpfunit.Object],
) -> None:
    obj = bpf_load(compiled("maptypes"), programs=["visit"], engine="both")
    queue, stack = obj.maps.waiting, obj.maps.pile
    for value in (7, 8):
        queue.push(value)
        stack.push(value)

    assert obj.programs.visit.run("10.1.1.1:80").retval == 1

    address = int(bpfunit.ip4("10.1.1.1"))
    assert [int(queue.pop()) for _ in range(3)] == [7, 8, address]
    assert [int(stack.pop()) for _ in range(3)] == [address, 8, 7]
    for emptied in (queue, stack):
        with pytest.raises(IndexError):
            emptied.pop()
