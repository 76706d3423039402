"""sock_ops and sk_msg by real connections and sends, alone and beside the test run."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest

import bpfunit
from bpfunit import NotApplicableError, Object, SyscallError, engines
from bpfunit.engines import RawOutcome, Request
from bpfunit.engines.both import EnginesDisagreeError
from bpfunit.engines.live import LiveEngine
from bpfunit.progtypes.sock_ops import CB_FLAGS, SockOpsType

from ..objects import compiled

pytestmark = [pytest.mark.guest, pytest.mark.usefixtures("no_bpf_leaks")]

Load = Callable[..., Object]
FAMILIES = [socket.AF_INET, socket.AF_INET6]
CASES = int(os.environ.get("BPFUNIT_CASES", "300"))
OPS = ["timeout_init", "rwnd_init", "tcp_connect", "needs_ecn", "active_established"]
OPS += ["passive_established", "tcp_listen", "state"]


@pytest.fixture(scope="module", autouse=True)
def _engine_is_there() -> None:
    """Make the engine before the descriptors of the first test are counted."""
    engines.get("live")


@pytest.fixture(params=["live", "both"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def oracle(bpf_load: Load, engine: str) -> Object:
    return bpf_load(compiled("tcplive"), engine=engine)


def plan(obj: Object, **fields: int) -> None:
    obj.maps.plans[0] = {"verdict": 1, **fields}
    obj.maps.sightings[0] = {}


def flags_for(op: str, *more: str) -> dict[str, Any]:
    return {"cb_flags": ["state", *more]} if op == "state" else {"cb_flags": more} if more else {}


# -- sock_ops --------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_op_comes_with_a_real_connection(oracle: Object, engine: str, op: str) -> None:
    plan(oracle, remember=3, answers=1, reply=7)
    result = oracle.programs.ops.run(op, **flags_for(op))
    assert (result.engine, result.retval, result.errno, result.reply) == (engine, 1, 0, 7)
    assert result.storage() == 3
    assert oracle.maps.sightings[0].runs == 1


@pytest.mark.parametrize("new", ["close", "fin_wait1", "close_wait"])
def test_state_is_left_by_a_real_call(oracle: Object, new: str) -> None:
    plan(oracle)
    result = oracle.programs.ops.run("state", args=("established", new), cb_flags=["state", "rto"])
    assert result.cb_flags == {"state", "rto"}
    assert list(oracle.maps.sightings[0].words)[1] == 1


def test_program_that_returns_0_has_no_opinion(oracle: Object) -> None:
    plan(oracle, verdict=0, answers=1, reply=9)
    result = oracle.programs.ops.run("timeout_init")
    assert (result.retval, result.errno, result.reply) == (0, errno.EPERM, -1)
    assert result.replylong[0] == 9


def test_callback_flags_are_as_the_program_left_them(oracle: Object) -> None:
    plan(oracle, sets_flags=1, flags=CB_FLAGS["rtt"])
    assert oracle.programs.ops.run("active_established").cb_flags == {"rtt"}
    plan(oracle)
    result = oracle.programs.ops.run("passive_established", cb_flags=["rto"])
    assert result.cb_flags == {"rto"}


def test_op_that_no_ordinary_call_leads_to_is_not_applicable(oracle: Object) -> None:
    run = oracle.programs.ops.run
    with pytest.raises(NotApplicableError, match="no ordinary call leads to rto"):
        run("rto")
    with pytest.raises(NotApplicableError, match=r'say cb_flags=\["state"\]'):
        run("state")
    with pytest.raises((NotApplicableError, SyscallError), match="to last_ack"):
        run("state", args=("close_wait", "last_ack"), cb_flags=["state"])
    with bpfunit.tcp_pair() as (client, _), pytest.raises(NotApplicableError, match="leave out so"):
        run("active_established", sock=client)
    assert oracle.maps.sightings[0].runs == 0


# -- sk_msg ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_message_arrives_as_the_program_leaves_it(oracle: Object, engine: str, family: int) -> None:
    plan(oracle, remember=2, push=3, poke=0x20)
    with bpfunit.tcp_pair(family) as (client, _):
        result = oracle.programs.messages.run(b"message", sock=client)
        assert (result.engine, result.verdict, result.errno) == (engine, "pass", 0)
        assert result.data == b"Abcmessage"
        assert result.storage() == 2
    assert oracle.maps.sightings[0].runs == 1


def test_message_is_dropped(oracle: Object) -> None:
    plan(oracle, verdict=0, poke=0x20)
    result = oracle.programs.messages.run(b"message")
    assert (result.verdict, result.errno, result.data) == ("drop", errno.EACCES, b"Message")


@pytest.mark.parametrize("ingress", [0, 1])
def test_message_goes_where_it_is_redirected(oracle: Object, ingress: int) -> None:
    plan(oracle, redirect=1, ingress=ingress)
    with bpfunit.tcp_pair() as (client, server), bpfunit.tcp_pair() as (other, _far):
        oracle.maps.others[0] = other
        result = oracle.programs.messages.run(b"message", sock=client)
        assert (result.verdict, result.ingress, result.data) == ("redirect", ingress, b"message")
        assert result.redirected_to(other)
        assert not result.redirected_to(server)
        assert result.redirected_to(oracle.maps.others, 0)


def test_send_that_cannot_be_is_not_applicable(oracle: Object) -> None:
    run = oracle.programs.messages.run
    plan(oracle, cork=100)
    with pytest.raises(NotApplicableError, match="holds the message back"):
        run(b"message")
    plan(oracle, apply=2)
    with pytest.raises(NotApplicableError, match="times about one message"):
        run(b"message")
    with pytest.raises(NotApplicableError, match=r"fragments=\[3, 4\] is up to it"):
        run(b"message", fragments=[3, 4])
    with pytest.raises(NotApplicableError, match="somebody else"):
        run(b"message", shared=True)
    with bpfunit.tcp_pair() as (client, server):
        server.send(b"unread")
        client.send(b"unread")
        with pytest.raises(NotApplicableError, match="bytes that nobody has read"):
            run(b"message", sock=client)


# -- the engine ------------------------------------------------------------------------------------


def test_type_that_the_kernel_refuses_does_not_take_live_from_the_others(
    bpf_load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    obj = bpf_load(compiled("tcplive"))
    plan(obj)

    def refused(*_args: Any) -> None:
        raise SyscallError("load an observer", errno.EINVAL)

    monkeypatch.setattr(SockOpsType, "make_live_calls", refused)
    engine = LiveEngine()
    try:
        monkeypatch.setitem(engines._made, "live", engine)
        monkeypatch.setattr(obj.observation, "engine", "live")
        assert obj.programs.messages.run(b"message").verdict == "pass"
        with pytest.raises(SyscallError, match="load an observer: EINVAL"):
            obj.programs.ops.run("tcp_connect")
    finally:
        engine.close()
        monkeypatch.undo()
        made = engines.get("live")
        assert isinstance(made, LiveEngine)
        made._cgroup.enter()  # where the sockets of later tests are to be made


# -- both ------------------------------------------------------------------------------------------


def test_difference_between_the_engines_is_spelled_out(
    bpf_load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    obj = bpf_load(compiled("tcplive"), engine="both")
    plan(obj)
    real = engines.get("testrun")

    class Tampered:
        name, is_test_run = "testrun", True

        def run(self, program: Any, request: Any) -> Any:
            outcome = real.run(program, request)
            return outcome._replace(data=outcome.data[:-1] + b"?")

    monkeypatch.setitem(engines._made, "testrun", Tampered())
    with pytest.raises(EnginesDisagreeError, match="data: live"):
        obj.programs.messages.run(b"message")


def ops_case(chance: random.Random) -> tuple[dict[str, int], str, dict[str, Any]]:
    """Return a plan, an op, and what else the run is given."""
    op = chance.choice(OPS)
    flags = chance.sample(sorted(CB_FLAGS), chance.randrange(3)) if chance.random() < 0.5 else None
    crafted: dict[str, Any] = {} if flags is None else {"cb_flags": flags}
    if op == "state":
        crafted["args"] = ("established", chance.choice(["close", "fin_wait1", "close_wait"]))
        crafted["cb_flags"] = {*(flags or ()), "state"}
    wanted = {
        "verdict": chance.choice([1, 1, 1, 0]),
        "remember": chance.choice([0, 1, 7]),
        "answers": chance.randrange(2),
        "reply": chance.choice([0, 1, 10, 2**31, 2**32 - 1, chance.randrange(2**32)]),
        "sets_flags": chance.randrange(2),
        # bits that no kernel has are among them
        "flags": chance.choice([0, 4, 127, chance.randrange(256)]),
    }
    return wanted, op, crafted


def message_case(chance: random.Random) -> tuple[dict[str, int], bytes]:
    """Return a plan and a message."""
    size = chance.choice([1, 2, 7, 100, 1500, chance.randrange(1, 4096)])
    pop = chance.choice([0, 0, 0, 1, size // 2]) if size > 3 else 0
    wanted = {
        "verdict": chance.choice([1, 1, 1, 0]),
        "remember": chance.choice([0, 1, 7]),
        "push": chance.choice([0, 0, 1, 8]),
        "pop": pop,
        "pop_at": chance.choice([0, 0, 1, size - pop]),
        "pull": chance.choice([0, 0, 1, size, size + 1]),
        "poke": chance.choice([0, 1, 255]),
        # never less than there is: a program that is asked again, and pushes again, has no end
        "apply": chance.choice([0, 0, 0, size + 100]),
        "cork": chance.choice([0, 0, 0, 1, size]),
        "redirect": chance.choice([0, 0, 0, 1, 2]),
        "ingress": chance.randrange(2),
    }
    return wanted, chance.randbytes(size)


class Seen(NamedTuple):
    """What is compared: the outcome, what the program saw, and the socket's storage."""

    retval: int
    errno: int
    answer: bytes
    sighting: bytes
    storage: int | None


def seen(obj: Object, run: Callable[[Request], RawOutcome], request: Request) -> Seen:
    """Make a run and return all that came of it."""
    outcome = run(request)
    storage = obj.maps.memory.get(request.sock)
    sighting = bytes(obj.maps.sightings[0])
    return Seen(outcome.retval, outcome.errno, outcome.data, sighting, storage)


@contextmanager
def socket_for(op: str) -> Iterator[socket.socket]:
    """Give a socket of a state that an op is crafted on."""
    if op == "tcp_listen":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield listener
        return
    with bpfunit.tcp_pair() as pair:
        yield pair[op == "passive_established"]


def test_random_ops_are_the_same(bpf_load: Load) -> None:
    obj = bpf_load(compiled("tcplive"))
    program, crafted_run = obj.programs.ops, engines.get("testrun").run
    reasons: Counter[str] = Counter()
    with engines.get("live").prepared(program.ref) as live_run:
        for seed in range(CASES):
            wanted, op, more = ops_case(random.Random(seed))

            def request(sock: socket.socket, op: str = op, more: Any = more) -> Request:
                made = program._request(
                    op, sock, more.get("args"), None, more.get("cb_flags"), None
                )
                return made._replace(sock=sock, fresh=True)

            try:
                with socket.socket() as stand_in:
                    plan(obj, **wanted)
                    real = seen(obj, live_run, request(stand_in))
            except NotApplicableError as error:
                reasons[f"{op}: {str(error).partition(': ')[2]}"] += 1
                continue
            with socket_for(op) as sock:
                plan(obj, **wanted)
                crafted = seen(obj, partial(crafted_run, program.ref), request(sock))
            assert real == crafted, f"case {seed}: {op} {more} {wanted}"
    print(f"{CASES} ops, not applicable: {dict(reasons)}")
    assert sum(reasons.values()) <= CASES // 10, reasons


def test_random_messages_are_the_same(bpf_load: Load) -> None:
    obj = bpf_load(compiled("tcplive"))
    program, crafted_run = obj.programs.messages, engines.get("testrun").run
    reasons: Counter[str] = Counter()
    with bpfunit.tcp_pair() as (other, _far), ExitStack() as stack:
        obj.maps.others[1] = other  # entry 0 stays empty: a redirection that fails
        live_run = stack.enter_context(engines.get("live").prepared(program.ref))
        for seed in range(CASES):
            wanted, message = message_case(random.Random(seed))
            found: list[Seen] = []
            try:
                for run in (live_run, partial(crafted_run, program.ref)):
                    with bpfunit.tcp_pair() as (client, _):
                        plan(obj, **wanted)
                        request = program.as_request(message)._replace(sock=client)
                        found.append(seen(obj, run, request))
            except NotApplicableError as error:
                reasons[str(error).partition(": ")[2][:60]] += 1
                continue
            real, crafted = found
            assert real == crafted, f"case {seed}: {len(message)} bytes, {wanted}"
    print(f"{CASES} messages, not applicable: {dict(reasons)}")
    assert sum(reasons.values()) <= CASES // 4, reasons
