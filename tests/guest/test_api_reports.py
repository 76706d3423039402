"""What the report of a failing test says about the runs in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import bpfunit
from bpfunit import Object, ip, port
from bpfunit.runs import explain, observation

from ..objects import compiled

pytestmark = pytest.mark.guest

ROUTES = {"routes": ("route_key", "route_value")}


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Callable[..., Object]) -> Object:
    return bpf_load(compiled("api"), map_types=ROUTES, globals={"level": 3}, trace_tail_calls=True)


def route(obj: Object) -> None:
    obj.maps.routes[{"addr": ip("10.96.0.1")}] = {
        "addr": ip("10.244.0.5"),
        "port": port(8080),
        "chain": True,
    }


def test_report_tells_maps_contexts_storage_calls_and_log(obj: Object) -> None:
    route(obj)
    obj.programs.redirect4.run("10.96.0.1:80")
    text = explain.describe(obj.observation)
    assert 'routes[route_key(addr=ip("10.96.0.1"))] = route_value(addr=ip("10.244.0.5")' in text
    assert "context in:  BpfSockAddr(user=10.96.0.1:80" in text
    assert "context out: BpfSockAddr(user=10.244.0.5:8080" in text
    assert "(rewritten)" in text
    assert "storage seen_storage: seen(" in text
    assert "tail call next4[0] with 10.244.0.5:8080: came back: empty slot or 33 calls" in text
    assert "log event_log (9): no route" in text


def test_report_names_runs_that_were_refused(obj: Object) -> None:
    with pytest.raises(bpfunit.SyscallError):
        obj.programs.redirect4.run(ctx=None)
    assert "refused: redirect4(None): run redirect4: EINVAL" in explain.describe(obj.observation)


def test_report_keeps_the_last_runs_and_says_how_many_there_were(obj: Object) -> None:
    for number in range(1, 31):
        obj.programs.redirect4.run(f"10.96.0.9:{number}")
    text = explain.describe(obj.observation)
    assert "runs (the last 5 of 30):" in text
    assert "user=10.96.0.9:30" in text
    assert "user=10.96.0.9:25" not in text


def test_what_an_earlier_test_did_is_forgotten(obj: Object) -> None:
    route(obj)
    obj.programs.redirect4.run("10.96.0.1:80")
    assert obj.observation in observation.live()
    obj.observation.forget()
    assert explain.describe(obj.observation) == ""


def test_result_prints_what_matters(obj: Object) -> None:
    text = repr(obj.programs.redirect4.run("10.96.0.9:80"))
    assert "retval=1" in text
    assert "user=10.96.0.9:80" in text
    assert "no route" in text
