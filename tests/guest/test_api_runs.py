"""Running programs: contexts, sockets and their storage, errors, native program types."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

import bpfunit
from bpfunit import BpfSockAddr, ContextError, Object, SyscallError, features, ip, ip4, port

from ..objects import compiled

pytestmark = pytest.mark.guest

ROUTES = {"routes": ("route_key", "route_value")}
Load = Callable[..., Object]


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("api"), map_types=ROUTES, globals={"level": 0})


def route(
    obj: Object, to: str, number: int, *, via: str = "10.96.0.1", chain: bool = False
) -> None:
    obj.maps.routes[{"addr": ip(via)}] = {"addr": ip(to), "port": port(number), "chain": chain}


def test_program_rewrites_the_crafted_destination(obj: Object) -> None:
    route(obj, "10.244.0.5", 8080)
    result = obj.programs.redirect4.run("10.96.0.1:80")
    assert (result.retval, result.errno) == (1, 0)
    assert result.dst == "10.244.0.5:8080"
    assert result.dst == ("10.244.0.5", 8080)
    assert not result.untouched
    assert result.ctx_in.user == "10.96.0.1:80"


def test_a_result_says_whether_the_program_was_interpreted(obj: Object) -> None:
    program = obj.programs.redirect4
    many = program.run_many(["10.96.0.1:80"])
    for one in (program, program.run("10.96.0.1:80"), many):
        assert one.interpreted is not features.has_jit()
    assert ("interpreted" in repr(program.run("10.96.0.1:80"))) is program.interpreted


@pytest.mark.needs(jit=True)
def test_a_test_that_needs_a_jit_runs_where_there_is_one_alone(obj: Object) -> None:
    assert not obj.programs.redirect4.interpreted


def test_context_holds_network_byte_order(obj: Object) -> None:
    result = obj.programs.redirect4.run("10.96.0.1:80")
    assert result.untouched
    assert result.ctx.user_ip4 == ip4("10.96.0.1")
    assert result.ctx.user_port == port(80)
    assert result.ctx.family == socket.AF_INET
    assert (result.ctx.type, result.ctx.protocol) == (socket.SOCK_STREAM, socket.IPPROTO_TCP)


def test_ipv6_destination_is_rewritten(obj: Object) -> None:
    route(obj, "fd00::5", 8443, via="fd00::1")
    assert obj.programs.redirect6.run("[fd00::1]:443").dst == "[fd00::5]:8443"


def test_socket_type_and_protocol_reach_the_program(obj: Object) -> None:
    route(obj, "10.244.0.5", 8080)
    result = obj.programs.redirect4.run("10.96.0.1:80", type=socket.SOCK_DGRAM)
    assert result.untouched
    assert result.ctx.protocol == socket.IPPROTO_UDP
    assert result.storage() is None


def test_storage_of_the_run_is_on_the_result(obj: Object) -> None:
    result = obj.programs.redirect4.run("10.96.0.1:80")
    assert result.storage("seen_storage").runs == 1
    assert result.storage().original == ip("10.96.0.1")
    assert result.storage().first_ns > 0


def test_each_run_has_a_fresh_socket(obj: Object) -> None:
    for _ in range(3):
        assert obj.programs.redirect4.run("10.96.0.1:80").storage().runs == 1


def test_runs_on_one_socket_share_its_storage(obj: Object) -> None:
    with socket.socket() as sock:
        first = obj.programs.redirect4.run("10.96.0.1:80", sock=sock)
        second = obj.programs.redirect4.run("10.96.0.2:80", sock=sock)
        assert (first.storage().runs, second.storage().runs) == (1, 2)
        assert second.storage().original == ip("10.96.0.1")
        assert obj.maps.seen_storage[sock].runs == 2
        del obj.maps.seen_storage[sock]
        assert obj.programs.redirect4.run("10.96.0.2:80", sock=sock).storage().runs == 1


def test_storage_map_that_does_not_exist_lists_those_that_do(obj: Object) -> None:
    result = obj.programs.redirect4.run("10.96.0.1:80")
    with pytest.raises(bpfunit.NotFoundError, match="no 'nope'; there is: seen_storage"):
        result.storage("nope")


def test_repeated_runs_start_from_the_crafted_address(obj: Object) -> None:
    route(obj, "10.244.0.5", 8080)
    result = obj.programs.redirect4.run("10.96.0.1:80", repeat=50)
    assert result.dst == "10.244.0.5:8080"
    assert result.storage().runs == 50
    assert result.duration_ns > 0


def test_missing_context_is_refused_and_nothing_runs(obj: Object) -> None:
    with socket.socket() as sock:
        with pytest.raises(SyscallError) as refused:
            obj.programs.redirect4.run(ctx=None, sock=sock)
        assert refused.value.errno == errno.EINVAL
        assert "the context is missing" in str(refused.value)
        assert sock not in obj.maps.seen_storage


def test_own_context_is_passed_as_it_is(obj: Object) -> None:
    route(obj, "10.244.0.5", 8080)
    context = obj.programs.redirect4.craft("10.96.0.9:80")
    context.user_ip4 = ip("10.96.0.1")
    assert obj.programs.redirect4.run(ctx=context).dst == "10.244.0.5:8080"
    with pytest.raises(SyscallError) as refused:
        obj.programs.redirect4.run(ctx=bytes(context) + b"\1")
    assert refused.value.errno == errno.E2BIG


def test_context_that_no_call_shows_is_refused_by_the_kernel(obj: Object) -> None:
    context = obj.programs.redirect4.craft("10.96.0.1:80")
    assert obj.programs.redirect4.run(ctx=context).retval == 1
    context.user_family = socket.AF_UNSPEC  # connect(2) disconnects, and asks no program
    with socket.socket() as sock:
        with pytest.raises(SyscallError) as refused:
            obj.programs.redirect4.run(ctx=context, sock=sock)
        assert refused.value.errno == errno.EAFNOSUPPORT
        assert sock not in obj.maps.seen_storage


def test_address_that_the_hook_never_sees_is_refused_with_the_remedy(obj: Object) -> None:
    with pytest.raises(ContextError, match=r"write \[::ffff:10\.0\.0\.1\]:80"):
        obj.programs.redirect6.run("10.0.0.1:80")
    with pytest.raises(ContextError, match="connect hook has no source address"):
        obj.programs.redirect4.run("10.0.0.1:80", src="10.0.0.2")


def test_source_of_a_datagram_is_rewritten(obj: Object) -> None:
    result = obj.programs.source4.run("10.0.0.1:53", src="10.9.9.9")
    assert result.ctx_in.source.host == "10.9.9.9"
    assert result.src.host == "127.0.0.9"
    assert result.retval == 1


def test_refusal_of_a_bind_is_an_errno(obj: Object) -> None:
    assert obj.programs.refuse4.run("0.0.0.0:22").errno == errno.EPERM
    assert obj.programs.refuse4.run("0.0.0.0:23").errno == 0


def test_printed_lines_are_those_of_the_run(obj: Object) -> None:
    assert obj.programs.source4.run("10.0.0.1:53").printk == ["sendmsg to port 53"]
    assert obj.programs.source4.run("10.0.0.1:54").printk == ["sendmsg to port 54"]
    assert obj.programs.redirect4.run("10.0.0.1:54").printk == []


def test_log_lines_are_those_of_the_run(bpf_load: Load) -> None:
    obj = bpf_load(compiled("api"), map_types=ROUTES, globals={"level": 3})
    for _ in range(2):
        result = obj.programs.redirect4.run("10.96.0.1:80")
        assert [(line, line.ret, line.map) for line in result.log] == [("no route", 7, "event_log")]
        assert len(result.events["event_log"]) == 1
    obj.globals.level = 0
    assert obj.programs.redirect4.run("10.96.0.1:80").log == []


def test_xdp_program_runs_on_a_packet(obj: Object) -> None:
    result = obj.programs.swap_ports.run(data=b"\x0f" + bytes(63))
    assert result.retval == 2
    assert result.data == b"\xf0" + bytes(63)
    assert sum(obj.maps.counters[0]) == 1
    assert not result.untouched
    assert not hasattr(result, "dst"), "a packet has no destination of its own"


def test_result_says_where_it_ran(obj: Object) -> None:
    result = obj.programs.redirect4.run("10.96.0.1:80")
    assert result.engine == "testrun"
    assert result.kernel[0].isdigit()
    assert result.program == "redirect4"


def test_program_of_someone_else_is_wrapped_by_its_descriptor(obj: Object) -> None:
    route(obj, "10.244.0.5", 8080)
    theirs = bpfunit.Program.from_fd(obj.programs.redirect4.fd, "cgroup/connect4")
    assert theirs.run("10.96.0.1:80").dst == "10.244.0.5:8080"
    with pytest.raises(bpfunit.BpfunitError, match=r'say it: Program\.from_fd\(fd, "cgroup/'):
        bpfunit.Program.from_fd(obj.programs.redirect4.fd).run("10.96.0.1:80")
    with pytest.raises(bpfunit.NotFoundError, match="no 'cgroup/conect4'; there is: cgroup/bind4"):
        bpfunit.Program.from_fd(obj.programs.redirect4.fd, "cgroup/conect4")
    with pytest.raises(SyscallError, match="expected a BPF program"):
        bpfunit.Program.from_fd(obj.maps.routes.fd)
    with pytest.raises(SyscallError, match="fd 9999 is not open"):
        bpfunit.Program.from_fd(9999)


def bulk_contexts(obj: Object, count: int) -> Any:
    hit, miss = (obj.programs.redirect4.craft(f"10.96.0.{n}:80") for n in (1, 2))
    contexts = (BpfSockAddr * count)()
    for n in range(count):
        contexts[n] = miss if n % 3 else hit
    return contexts


@pytest.mark.parametrize("native", [True, False], ids=["in C", "in Python"])
def test_bulk_runs_give_what_single_runs_give(
    obj: Object, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    route(obj, "10.244.0.5", 8080, chain=True)
    obj.maps.next4.spy(0)
    if not native:
        monkeypatch.setattr("bpfunit._native.run_many", lambda: None)
    results = obj.programs.redirect4.run_many(bulk_contexts(obj, 200)).raise_for_errors()
    assert results.native is native
    assert len(results) == 200
    for run in results:
        single = obj.programs.redirect4.run(ctx=BpfSockAddr.from_buffer_copy(run.ctx_in))
        assert (run.retval, run.errno, run.dst) == (single.retval, single.errno, single.dst)
        assert run.storage().original == single.storage().original
        assert run.storage().runs == single.storage().runs
        assert run.tail_calls == single.tail_calls
        assert len(run.tail_calls) == (run.index % 3 == 0)


def test_bulk_takes_destinations_and_bytes(obj: Object) -> None:
    route(obj, "10.244.0.5", 8080)
    program = obj.programs.redirect4
    assert [run.dst for run in program.run_many(["10.96.0.1:80", "10.96.0.2:80"])] == [
        "10.244.0.5:8080",
        "10.96.0.2:80",
    ]
    assert program.run_many(bytes(bulk_contexts(obj, 4)))[3].dst == "10.244.0.5:8080"
    with pytest.raises(bpfunit.FieldValueError, match="not a whole number of 72-byte contexts"):
        program.run_many(bytes(71))


def test_bulk_on_one_socket_shares_its_storage(obj: Object) -> None:
    with socket.socket() as sock:
        results = obj.programs.redirect4.run_many(["10.96.0.2:80"] * 5, sock=sock)
        assert [run.storage().runs for run in results] == [1, 2, 3, 4, 5]


def test_bulk_reports_each_refused_run(obj: Object) -> None:
    contexts = bulk_contexts(obj, 4)
    contexts[2].user_family = socket.AF_UNSPEC
    results = obj.programs.redirect4.run_many(contexts)
    assert [bool(run.error) for run in results] == [False, False, True, False]
    with pytest.raises(SyscallError, match="run 2 of 4 of redirect4"):
        results.raise_for_errors()


def test_twenty_thousand_runs_in_one_call(obj: Object) -> None:
    route(obj, "10.244.0.5", 8080)
    results = obj.programs.redirect4.run_many(bulk_contexts(obj, 20_000)).raise_for_errors()
    assert list(results.retval) == [1] * 20_000
    assert results[-1].storage().runs == 1
