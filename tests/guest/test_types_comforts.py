"""What every type of programs has: the path taken, coverage, stubs, faults, log lines and so on.

One program, whose setting says what it does, stands in the sections of all types.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

import bpfunit
from bpfunit import Object, Program, Result, faults
from bpfunit._sys.sockets import reuseport_group
from bpfunit.bench.clock import Mode, mode_of_guest
from bpfunit.coverage import CoverageRecorder
from bpfunit.coverage import Mode as ProbeMode
from bpfunit.features import kernel_version
from bpfunit.runs import explain

from ..objects import compiled

pytestmark = pytest.mark.guest

Load = Callable[..., Object]
NOTHING, LOG, TAIL_CALL, CHANCE, REMEMBER, DAWDLE = range(6)  # the object's enum
IPV4 = struct.pack("!BBHHHBBH8x", 0x45, 0, 20, 1, 0, 64, 17, 0)
FRAME = bytes(12) + b"\x08\x00" + IPV4 + bytes(26)


NO_TAIL_CALL = "Linux 7.2 and newer attach no parser with a tail call"


class Inputs(NamedTuple):
    """What a type is run with: arguments, and the same as one input of ``run_many``."""

    args: tuple[Any, ...]
    many: Any
    options: Mapping[str, Any] = {}


SET, GET = (
    (f"{which}sockopt", "SOL_SOCKET", "SO_PRIORITY", *((6,) if which == "set" else ()))
    for which in ("set", "get")
)
TYPES: dict[str, Callable[[ExitStack], Inputs]] = {
    "sock_addr": lambda stack: Inputs(("10.0.0.1:80",), "10.0.0.1:80"),
    "sock_ops": lambda stack: Inputs(
        ("active_established",), "active_established", {"sock": connected(stack)}
    ),
    "sk_msg": lambda stack: Inputs((b"GET /",), b"GET /", {"sock": connected(stack)}),
    "setsockopt": lambda stack: Inputs(SET, SET, {"sock": stack.enter_context(socket.socket())}),
    "getsockopt": lambda stack: Inputs(GET, GET, {"sock": stack.enter_context(socket.socket())}),
    "sock_create": lambda stack: of_socket(stack.enter_context(socket.socket())),
    "sock_release": lambda stack: of_socket(stack.enter_context(socket.socket())),
    "post_bind": lambda stack: of_socket(bound(stack)),
    "device": lambda stack: Inputs(("c 1:3", "rw"), ("c 1:3", "rw")),
    "sysctl": lambda stack: Inputs(("net/ipv4/tcp_mem",), "net/ipv4/tcp_mem"),
    "reuseport": lambda stack: of_group(stack.enter_context(reuseport_group(2))[0]),
    "parser": lambda stack: Inputs((b"GET /",), b"GET /", {"sock": connected(stack)}),
    "verdict": lambda stack: Inputs((b"GET /",), b"GET /", {"sock": connected(stack)}),
    "kprobe": lambda stack: Inputs((1, 2), (1, 2)),
    "kretprobe": lambda stack: Inputs((), (), {"ret": 1}),
    "tracepoint": lambda stack: Inputs((), {"flags": 1}, {"flags": 1}),
    "packet": lambda stack: Inputs((FRAME,), FRAME),
    "xdp": lambda stack: Inputs((FRAME,), FRAME),
    "tc": lambda stack: Inputs((FRAME,), FRAME),
}


def connected(stack: ExitStack) -> socket.socket:
    return stack.enter_context(bpfunit.tcp_pair())[0]


def bound(stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket())
    sock.bind(("127.0.0.1", 0))
    return sock


def of_socket(sock: socket.socket) -> Inputs:
    return Inputs((), sock, {"sock": sock})


def of_group(sock: socket.socket) -> Inputs:
    return Inputs((b"hello",), {"data": b"hello", "sock": sock}, {"sock": sock})


class Tried:
    """One type's program in an object of its own, and how it is run."""

    def __init__(self, load: Load, name: str, inputs: Inputs, **options: Any) -> None:
        program = f"of_{name}"
        # Linux 7.2 and newer attach no parser that may change data, as what it tail-calls may
        self.tailless = name == "parser" and kernel_version() >= (7, 2)
        path = compiled("comforts", *(["TAILLESS"] if self.tailless else []))
        self.obj = load(path, programs=[program], engine="testrun", **options)
        self.program: Program = self.obj.programs[program]
        self.array: Any = None if self.tailless else self.obj.maps[f"next_{name}"]
        self.inputs = inputs

    def run(self, what: int, **more: Any) -> Result:
        """Run with a setting."""
        self.obj.maps.setting[0] = what
        return self.program.run(*self.inputs.args, **{**self.inputs.options, **more})


Try = Callable[..., Tried]


@pytest.fixture(params=TYPES)
def tried(request: pytest.FixtureRequest, bpf_load: Load) -> Iterator[Try]:
    """Load the program of a type with what a test wants."""
    with ExitStack() as stack:
        inputs = TYPES[request.param](stack)
        yield lambda **options: Tried(bpf_load, request.param, inputs, **options)


def test_path_is_in_the_report_of_a_failing_test(tried: Try) -> None:
    one = tried()
    taken = str(one.run(NOTHING).path)
    assert "comforts.bpf.c" in taken
    assert "!what" in taken
    other = str(one.run(CHANCE).path)
    assert other != taken
    assert other.splitlines()[-1].strip() in explain.describe(one.obj.observation)


@pytest.mark.bpf_plain
@pytest.mark.parametrize("mode", ProbeMode, ids=lambda mode: mode.value)
def test_branches_are_covered(tried: Try, mode: ProbeMode) -> None:
    recorder = CoverageRecorder(mode)
    try:
        with recorder.recording():
            one = tried()
        assert (recorder.refused, recorder.beyond) == ({}, {})
        one.run(NOTHING, repeat=3)
        (model,) = recorder.models()
        entry = recorder.take()[model.key][0]
        assert entry == (3 if mode is ProbeMode.COUNTERS else 1)
    finally:
        recorder.close()


def test_helper_is_stubbed(tried: Try) -> None:
    with ExitStack() as stack:
        missing, chance = faults.stub("bpf_map_lookup_elem"), faults.random(7, 8)
        for one in (missing, chance):
            stack.callback(one.close)
        run = tried(instrument=[missing, chance]).run
        assert run(NOTHING).retval == 0
        missing.active = False
        assert [run(CHANCE).retval for _ in range(4)] == [1, 0, 1, 0]
        assert chance.calls == 4


def test_fault_is_real(tried: Try) -> None:
    one = tried()
    with faults.full_map(one.obj.maps.remembered):
        assert one.run(REMEMBER).retval == 0
    assert one.run(REMEMBER).retval == 1
    assert one.obj.maps.remembered.snapshot() == {0: 0}


def test_log_lines_are_on_the_result(tried: Try) -> None:
    one = tried()
    result = one.run(LOG)
    assert result.retval == 1
    (line,) = result.log
    assert "said so" in str(line)
    assert len(result.events["event_log"]) == 1
    assert "said so" in explain.describe(one.obj.observation)
    assert one.run(NOTHING).log == []


def test_tail_call_is_seen_by_a_spy(tried: Try) -> None:
    one = tried()
    if one.tailless:
        pytest.skip(NO_TAIL_CALL)
    one.array.spy(0, returns=1)
    result = one.run(TAIL_CALL)
    (call,) = result.tail_calls
    assert (call.index, result.retval) == (0, 1)
    assert one.run(NOTHING).tail_calls == []


def test_tail_calls_are_traced(tried: Try) -> None:
    one = tried(trace_tail_calls=True)
    if one.tailless:
        pytest.skip(NO_TAIL_CALL)
    result = one.run(TAIL_CALL)
    assert result.tail_calls == []
    (attempt,) = result.tail_call_attempts
    assert (attempt.index, attempt.entered, result.retval) == (0, False, 0)
    one.array[0] = one.program  # itself, 33 times
    assert len(one.run(TAIL_CALL).tail_call_attempts) > 30


def test_many_runs_in_one_call(tried: Try) -> None:
    one = tried()
    one.obj.maps.setting[0] = LOG
    sock = one.inputs.options.get("sock")
    shared = isinstance(one.inputs.many, (bytes, str, tuple)) and sock is not None
    runs = one.program.run_many([one.inputs.many] * 5, **({"sock": sock} if shared else {}))
    assert [run.retval for run in runs.raise_for_errors()] == [1] * 5


@pytest.mark.bpf_plain
def test_cost_is_measured(tried: Try) -> None:
    """In a guest that counts instructions the figure is exact, and another run has the same."""
    one = tried()

    def cost(what: int) -> int:
        figures = [one.run(what, repeat=100, observe=False).duration_ns for _ in range(5)]
        return min(figure for figure in figures if figure is not None)

    assert cost(DAWDLE) > cost(NOTHING) > 0
    if mode_of_guest() is Mode.EXACT:
        assert cost(DAWDLE) == cost(DAWDLE)


def test_benchmark_takes_the_input_as_run_does(tried: Try, bpf_benchmark: Any) -> None:
    one = tried()
    one.obj.maps.setting[0] = NOTHING
    result = bpf_benchmark(one.program, *one.inputs.args, rounds=2, repeat=20, **one.inputs.options)
    assert result.retval == 1
