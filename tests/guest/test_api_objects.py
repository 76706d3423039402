"""Loading objects: maps as mappings, globals, tail calls, and errors that help."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

import bpfunit
from bpfunit import LoadError, NotFoundError, Object, SyscallError, VerifierError, ip, port

from ..objects import compiled

pytestmark = pytest.mark.guest

ROUTES = {"routes": ("route_key", "route_value")}
Load = Callable[..., Object]


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(compiled("api"), map_types=ROUTES)


def chained(obj: Object) -> bpfunit.Program:
    obj.maps.routes[ip("10.96.0.1")] = {"addr": ip("10.96.0.1"), "port": port(80), "chain": True}
    return obj.programs.redirect4


# -- maps


def test_map_is_a_mapping_of_typed_keys_and_values(obj: Object) -> None:
    routes, types = obj.maps.routes, obj.types
    key = types.route_key(addr=ip("10.96.0.1"))
    routes[key] = types.route_value(addr=ip("10.0.0.1"), port=port(80), weights=[1, 2])
    assert routes[key].addr == ip("10.0.0.1")
    assert routes[{"addr": ip("10.96.0.1")}].weights == [1, 2, 0, 0, 0]
    assert key in routes
    assert {"addr": ip("10.96.0.2")} not in routes
    assert (list(routes), len(routes)) == ([key], 1)
    assert routes.get(ip("10.96.0.9")) is None
    del routes[key]
    assert not routes
    with pytest.raises(KeyError):
        routes[key]
    with pytest.raises(KeyError):
        del routes[key]


def test_hundred_thousand_entries_go_in_and_out_in_bulk(obj: Object) -> None:
    count = 100_000
    keys = (obj.types.route_key * count)()
    values = (obj.types.route_value * count)()
    words = memoryview(keys).cast("B").cast("I")
    for n in range(count):
        words[4 * n] = n + 1
    values[7].port = port(77)
    obj.maps.routes.update_raw(keys, values)
    read_keys, read_values = obj.maps.routes.snapshot_raw()
    assert len(read_keys) == count * 16
    assert len(read_values) == count * len(bytes(values[0]))
    assert sorted(memoryview(read_keys).cast("I")[::4]) == list(range(1, count + 1))
    assert obj.maps.routes[bytes(keys[7])].port == port(77)


def test_update_takes_a_mapping_and_snapshot_gives_it_back(obj: Object) -> None:
    types = obj.types
    entries = {
        types.route_key(addr=ip(f"10.0.{n}.1")): types.route_value(port=port(n + 1))
        for n in range(50)
    }
    obj.maps.routes.update(entries)
    assert obj.maps.routes.snapshot() == entries
    assert obj.maps.routes == entries
    obj.maps.routes.clear()
    assert obj.maps.routes.snapshot() == {}


def test_full_map_says_how_many_entries_it_has(bpf_load: Load) -> None:
    obj = bpf_load(compiled("api"), map_types=ROUTES, max_entries={"routes": 1})
    obj.maps.routes[ip("10.0.0.1")] = {}
    with pytest.raises(SyscallError, match="the map is full: max_entries is 1") as full:
        obj.maps.routes[ip("10.0.0.2")] = {}
    assert full.value.errno == errno.E2BIG
    with pytest.raises(SyscallError):
        obj.maps.routes.update({obj.types.route_key(ip(f"10.0.0.{n}")): {} for n in range(2, 5)})


def test_per_cpu_map_has_a_value_for_each_cpu(obj: Object) -> None:
    assert set(obj.maps.counters) == {0, 1}
    obj.maps.counters[1] = 7
    assert set(obj.maps.counters[1]) == {7}
    assert set(obj.maps.counters.snapshot()[1]) == {7}
    obj.maps.counters.clear()
    assert not any(obj.maps.counters[1])


def test_map_without_types_takes_bytes_and_says_how_to_give_types(bpf_load: Load) -> None:
    routes = bpf_load(compiled("api")).maps.routes
    routes[bytes(16)] = bytes(routes.value_size)
    assert list(routes) == [bytes(16)]
    with pytest.raises(bpfunit.FieldValueError, match=r"map_types=\{'routes': \(key type, value"):
        routes[{"addr": 1}] = bytes(routes.value_size)


def test_type_of_another_size_is_refused(bpf_load: Load) -> None:
    with pytest.raises(bpfunit.FieldValueError, match="its key has 16 bytes, c_uint has 4"):
        bpf_load(compiled("api"), map_types={"routes": ("__u32", "route_value")})


def test_map_of_someone_else_is_wrapped_by_its_descriptor(obj: Object) -> None:
    obj.maps.routes[ip("10.0.0.1")] = {"port": 5}
    theirs = bpfunit.Map.from_fd(obj.maps.routes.fd, obj.types.route_key, obj.types.route_value)
    assert theirs[ip("10.0.0.1")].port == 5
    assert theirs.name == "routes"
    with pytest.raises(SyscallError, match="expected a BPF map"):
        bpfunit.Map.from_fd(obj.programs.redirect4.fd)


def test_unknown_names_list_what_there_is(obj: Object) -> None:
    with pytest.raises(NotFoundError, match="no 'route'; there is: counters, event_log, next4"):
        _ = obj.maps.route
    with pytest.raises(NotFoundError, match="there is: redirect4, redirect6, refuse4, source4"):
        _ = obj.programs.redirect
    with pytest.raises(NotFoundError, match=r"there is: .*level.*step"):
        _ = obj.globals.lvl
    with pytest.raises(NotFoundError, match="there is: counters"):
        bpfunit.load(obj.path, map_types={"rout": ("route_key", "route_value")})
    with pytest.raises(NotFoundError, match="there is: redirect4"):
        bpfunit.load(obj.path, programs=["redirect"])


def test_programs_that_an_array_is_declared_with_are_loaded_with_those_chosen(
    bpf_load: Load,
) -> None:
    obj = bpf_load(compiled("slots"), programs=["enter"])
    assert set(obj.programs) == {"enter", "leave"}
    assert obj.programs.enter.run("10.1.1.1:80").dst == "10.1.1.1:0"


# -- globals


def test_constant_is_set_before_the_load_only(bpf_load: Load) -> None:
    obj = bpf_load(compiled("api"), map_types=ROUTES, globals={"step": 5, "level": 3})
    assert (obj.globals.step, obj.globals.level) == (5, 3)
    assert obj.programs.redirect4.run("10.96.0.1:80").storage().runs == 5
    with pytest.raises(bpfunit.BpfunitError, match=r"load\(globals=\{'step': …\}\)"):
        obj.globals.step = 6
    obj.globals.level = 1
    assert obj.globals.level == 1
    with pytest.raises(bpfunit.FieldValueError, match=r"out of range 0\.\.4294967295"):
        obj.globals.level = -1


def test_every_load_has_maps_of_its_own(bpf_load: Load) -> None:
    one, other = (bpf_load(compiled("api"), map_types=ROUTES) for _ in range(2))
    one.maps.routes[ip("10.0.0.1")] = {}
    assert not other.maps.routes


def test_objects_may_share_a_map(bpf_load: Load) -> None:
    one = bpf_load(compiled("api"), map_types=ROUTES)
    other = bpf_load(compiled("api"), map_types=ROUTES, maps={"routes": one.maps.routes})
    one.maps.routes[ip("10.0.0.1")] = {}
    assert len(other.maps.routes) == 1
    assert other.maps.counters.id != one.maps.counters.id
    with pytest.raises(bpfunit.BpfunitError, match=r"share map routes with api-.*declares type"):
        bpf_load(compiled("api"), maps={"routes": one.maps.counters})
    with pytest.raises(NotFoundError, match="share map with api-"):
        bpf_load(compiled("api"), maps={"roads": one.maps.routes})


def test_only_the_chosen_programs_are_loaded(bpf_load: Load) -> None:
    obj = bpf_load(compiled("api"), programs=["redirect4"])
    assert list(obj.programs) == ["redirect4"]


# -- tail calls


def test_spy_records_index_and_context(obj: Object) -> None:
    program = chained(obj)
    with obj.maps.next4.spy(0):
        calls = program.run("10.96.0.1:81").tail_calls
        assert [(call.map, call.index, call.target) for call in calls] == [("next4", 0, "spy")]
        assert calls[0].ctx.user == "10.96.0.1:80"
        assert calls[0].ctx.protocol == 6
        assert program.run("10.96.0.2:81").tail_calls == []
    assert program.run("10.96.0.1:81").tail_calls == []
    assert len(obj.maps.next4.names()) == 0


def test_spies_of_both_families_see_their_own_addresses(obj: Object) -> None:
    obj.maps.routes[ip("fd00::1")] = {"addr": ip("fd00::2"), "port": port(90)}
    chained(obj)
    obj.maps.next4.spy(0)
    obj.maps.next6.spy(1)
    calls = obj.programs.redirect6.run("[fd00::1]:80").tail_calls
    assert [(call.map, call.index, str(call.ctx.user)) for call in calls] == [
        ("next6", 1, "[fd00::2]:90")
    ]


def test_spy_decides_what_the_caller_returns(obj: Object) -> None:
    obj.maps.next4.spy(0, returns=0)
    result = chained(obj).run("10.96.0.1:80")
    assert (result.retval, result.errno) == (0, errno.EPERM)


def test_real_target_without_tracing_is_not_silently_unseen(obj: Object) -> None:
    program = chained(obj)
    obj.maps.next4[0] = program
    result = program.run("10.96.0.1:80")
    with pytest.raises(bpfunit.BpfunitError, match=r"next4\[0\] held a real program; load with"):
        _ = result.tail_calls
    del obj.maps.next4[0]
    assert program.run("10.96.0.1:80").tail_calls == []


def test_traced_self_reference_is_a_chain_bounded_by_the_kernel(bpf_load: Load) -> None:
    obj = bpf_load(compiled("api"), map_types=ROUTES, trace_tail_calls=True)
    program = chained(obj)
    obj.maps.next4[0] = program
    result = program.run("10.96.0.1:80")
    assert {(call.map, call.index, call.target) for call in result.tail_calls} == {
        ("next4", 0, "redirect4")
    }
    # MAX_TAIL_CALL_CNT: 33 calls are made; before 5.16 the x86-64 JIT allowed 32 in some forms
    assert len(result.tail_calls) in (32, 33)
    assert len(result.tail_call_attempts) == len(result.tail_calls) + 1
    assert not result.tail_call_attempts[-1].entered


def test_traced_call_into_an_empty_slot_is_an_attempt(bpf_load: Load) -> None:
    obj = bpf_load(compiled("api"), map_types=ROUTES, trace_tail_calls=True)
    result = chained(obj).run("10.96.0.1:80")
    assert result.tail_calls == []
    (attempt,) = result.tail_call_attempts
    assert (attempt.map, attempt.index, attempt.target) == ("next4", 0, None)
    obj.maps.next4.spy(0)
    (call,) = chained(obj).run("10.96.0.1:80").tail_calls
    assert call.target == "spy"


def test_attempts_without_tracing_are_refused(obj: Object) -> None:
    with pytest.raises(bpfunit.BpfunitError, match="trace_tail_calls=True"):
        _ = chained(obj).run("10.96.0.1:80").tail_call_attempts


# -- errors


def test_verifier_rejection_has_the_deciding_lines_on_top() -> None:
    with pytest.raises(VerifierError) as rejected:
        bpfunit.load(compiled("rejected"))
    error = rejected.value
    first, *rest = str(error).splitlines()
    assert first.startswith("load program bad_access: EACCES: ")
    assert error.reason in first
    assert "invalid" in error.reason
    assert any("invalid bpf_context access" in line for line in rest) or len(rest) > 2
    assert len(error.log.splitlines()) > 3
    assert (error.program, error.errno) == ("bad_access", errno.EACCES)


def test_file_that_is_no_object_says_so(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(LoadError, match="is it a BPF object"):
        bpfunit.load(text)
    with pytest.raises(LoadError, match="ENOENT"):
        bpfunit.load(tmp_path / "absent.o")


def test_failed_load_leaves_nothing_open(no_bpf_leaks: None) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(VerifierError):
        bpfunit.load(compiled("rejected"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_closed_object_does_not_touch_descriptors_of_others(obj: Object) -> None:
    with bpfunit.load(compiled("api"), map_types=ROUTES) as other:
        routes, program = other.maps.routes, other.programs.redirect4
    with pytest.raises(SyscallError):
        program.run("10.96.0.1:80")
    with pytest.raises(SyscallError):
        routes[ip("10.0.0.1")] = {}
