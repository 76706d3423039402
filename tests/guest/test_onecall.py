"""Runs in one call of C, the usual way, say what runs step by step in Python say."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from bpfunit import BpfSockAddr, BpfunitError, Object, Program, SyscallError, _native, ip, port
from tests.hook import families
from tests.hook.mesh import MAP_TYPES, Mesh

from ..objects import compiled

pytestmark = pytest.mark.guest

CLOCKS = ("first_ns", "connect_ns")
Load = Callable[..., Object]
ROUTES = {"routes": ("route_key", "route_value")}
ASKED = (
    *("program", "engine", "retval", "retval_note", "errno", "verdict"),
    *("log", "events", "printk", "blind_spots", "storages", "traced", "untouched"),
)


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("api"), map_types=ROUTES, engine="testrun", globals={"level": 3})


def facts(result: Any) -> dict[str, Any]:
    found = {name: getattr(result, name) for name in ASKED}
    if result.storages is not None:
        found["storages"] = {
            name: None if one is None else {**one.asdict(), **dict.fromkeys(CLOCKS)}
            for name, one in result.storages.items()
        }
    found["ctx_in"] = bytes(result.ctx_in) if result.ctx_in is not None else None
    found["raw_ctx"] = result.raw_ctx[:64]  # what is behind is the socket's descriptor
    found["described"] = result.describe()
    found["path"] = str(result.path)
    found["log_lines"] = [(line.ret, line.map) for line in result.log]
    for name in ("dst", "src", "data", "tail_calls", "tail_call_attempts"):
        try:
            found[name] = getattr(result, name)
        except (AttributeError, BpfunitError) as error:
            found[name] = str(error)
    return found


def both_ways(
    program: Program, *args: Any, instead: dict[str, Any] | None = None, **options: Any
) -> Any:
    """Run in one call and the long way; return the result of the first when they are equal.

    Args:
        program: what runs.
        args: with what.
        instead: other options of the long way.
        options: of both.
    """
    prepared = program.observation.prepared
    assert program.one_call() is not None
    short = program.run(*args, **options)
    told = facts(short)
    assert short._one is not None
    prepared[program.descriptor] = None
    long = program.run(*args, **{**options, **(instead or {})})
    del prepared[program.descriptor]
    assert long._one is None
    assert told == facts(long)
    return short


def test_an_address_its_storage_and_the_records(obj: Object) -> None:
    obj.maps.routes[{"addr": ip("10.96.0.1")}] = {"addr": ip("10.244.0.5"), "port": port(8080)}
    redirect = obj.programs.redirect4
    assert both_ways(redirect, "10.96.0.1:80").dst == "10.244.0.5:8080"
    assert both_ways(redirect, "10.96.0.9:80").untouched
    assert both_ways(redirect, "10.96.0.9:80").log == ["no route"]
    both_ways(redirect, "10.96.0.1:80", type=socket.SOCK_DGRAM)
    both_ways(redirect, "10.96.0.1:80", repeat=3)
    both_ways(redirect, ctx=redirect.craft("10.96.0.1:80"))
    both_ways(redirect, ctx=bytes(redirect.craft("10.96.0.1:80")))
    both_ways(obj.programs.redirect6, "[fd00::1]:443")
    printing = next(p for p in obj.programs.values() if p.section == "cgroup/sendmsg4")
    assert both_ways(printing, "10.96.0.1:53").printk == ["sendmsg to port 53"]
    for family, runs in ((socket.AF_INET, redirect), (socket.AF_INET6, obj.programs.redirect6)):
        to = "10.96.0.1:80" if family == socket.AF_INET else "[fd00::1]:80"
        with socket.socket(family) as one, socket.socket(family) as other:
            both_ways(runs, to, sock=one, instead={"sock": other})


def test_every_path_of_a_real_program(bpf_load: Load, bpf_object_path: Any) -> None:
    family = families.ALL[0]
    mesh = Mesh(bpf_load(bpf_object_path, map_types=MAP_TYPES, engine="testrun"), family)
    program = mesh.obj.programs.cgroup_connect4_prog
    both_ways(program, "10.96.0.1:80")
    mesh.manage()
    maps = mesh.obj.maps
    maps.km_backend[7] = {"addr": {"ip4": 0x0500F40A}}
    maps.km_frontend[{"addr": {"ip4": 0x0100600A}}] = {"upstream_id": 7}
    told = both_ways(program, "10.96.0.1:80")
    assert told.storages
    assert told.path
    mesh.close()


@pytest.mark.parametrize("traced", [False, True])
def test_tail_calls_name_what_the_slots_held_then(bpf_load: Load, traced: bool) -> None:
    obj = bpf_load(compiled("api"), map_types=ROUTES, engine="testrun", trace_tail_calls=traced)
    chain = {"addr": ip("10.244.0.5"), "port": port(8080), "chain": True}
    obj.maps.routes[{"addr": ip("10.96.0.1")}] = chain
    program = obj.programs.redirect4
    both_ways(program, "10.96.0.1:80")  # into an empty slot
    empty = program.run("10.96.0.1:80")
    spy = obj.maps.next4.spy(0)
    spied = program.run("10.96.0.1:80")
    both_ways(program, "10.96.0.1:80")
    spy.close()
    real = next(p for p in obj.programs.values() if p.name == "redirect4")
    obj.maps.next4[0] = real
    found = both_ways(program, "10.96.0.1:80")
    assert bool(found.blind_spots) is not traced
    assert [call.target for call in spied.tail_calls] == ["spy"]
    if traced:
        assert [(call.target, call.entered) for call in empty.tail_call_attempts] == [(None, False)]


def test_packets_and_contexts_of_other_types(bpf_load: Load) -> None:
    obj = bpf_load(compiled("packets"), engine="testrun")
    for program in obj.programs.values():
        if program.one_call() is None or program.type not in (3, 6):  # tc, xdp
            continue
        both_ways(program)
        both_ways(program, bytes(range(100)))


def test_errors_are_the_same_and_are_remembered(obj: Object) -> None:
    program = obj.programs.redirect4
    crafted = program.craft("10.96.0.1:80")
    refused: list[dict[str, Any]] = [
        {"ctx": None},
        {"ctx": bytes(crafted) + b"\1" * 8},
        {"dst": "10.96.0.1:80", "family": socket.AF_INET6},
        {"dst": "10.96.0.1:80", "proto": 77},  # no socket is like that
    ]
    said: list[Any] = []
    for short in (True, False):
        program.observation.forget()
        for options in refused:
            if not short:
                program.observation.prepared[program.descriptor] = None
            with pytest.raises(SyscallError) as caught:
                program.run(**options)
            said.append((str(caught.value), caught.value.errno))
        said.append(list(map(str, program.observation.journal)))
    assert said[:5] == said[5:]
    assert len(said[4]) == len(refused)


def test_the_engine_that_is_chosen_runs(obj: Object, monkeypatch: pytest.MonkeyPatch) -> None:
    program = obj.programs.redirect4
    program.observation.engine = None
    monkeypatch.delenv("BPFUNIT_ENGINE", raising=False)
    assert program.run("10.96.0.1:80")._one is not None
    one, raw = program.one_call(), bytes(program.craft("10.96.0.1:80"))
    assert one is not None
    for engine, runs in (("live", False), ("connect", False), ("testrun", True), ("", True)):
        monkeypatch.setenv("BPFUNIT_ENGINE", engine)
        assert (one.run(raw, None, len(raw), 4, 1, None) is not None) is runs
    program.observation.engine = "both"
    assert program.one_call() is None


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "extension", lambda: None)


def test_without_a_compiler_all_goes_the_long_way(without_extension: None, bpf_load: Load) -> None:
    obj = bpf_load(compiled("api"), map_types=ROUTES, max_entries={"routes": 9})
    obj.maps.routes[{"addr": ip("10.96.0.1")}] = {"addr": ip("10.244.0.5"), "port": port(8080)}
    assert len(obj.maps.routes) == 1
    assert obj.maps.routes[{"addr": ip("10.96.0.1")}].port == port(8080)
    result = obj.programs.redirect4.run("10.96.0.1:80")
    assert (result._one, result.dst) == (None, "10.244.0.5:8080")


def test_a_run_on_a_structure_keeps_it(obj: Object) -> None:
    crafted = obj.programs.redirect4.craft("10.96.0.1:80")
    result = obj.programs.redirect4.run(ctx=crafted)
    assert result.ctx_in is crafted
    assert isinstance(result.ctx, BpfSockAddr)
