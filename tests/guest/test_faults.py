"""Faults strike where they are told to, can be switched, and are undone whatever happens."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import bpfunit
from bpfunit import Object, Result, faults, ip, port

from ..hook.mesh import MAP_TYPES

pytestmark = pytest.mark.guest

OPTMEM_MAX = Path("/proc/sys/net/core/optmem_max")
ENDPOINTS = 4
Load = Callable[..., Object]


@pytest.fixture
def stubs() -> Iterator[ExitStack]:
    """Closes the stubs that a test makes."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def load(bpf_load: Load, bpf_object_path: Path) -> Load:
    """Loads the hook with one random service of `ENDPOINTS` endpoints, in a managed namespace."""

    def load_with(*passes: Any, **options: Any) -> Object:
        obj = bpf_load(bpf_object_path, map_types=MAP_TYPES, instrument=passes, **options)
        connect(obj, "0.0.0.2:929")
        maps = obj.maps
        maps.km_frontend[{"addr": ip("10.96.0.1")}] = {"upstream_id": 7}
        maps.km_service[{"service_id": 7}] = {
            "prio_endpoint_count": [ENDPOINTS],
            "service_port": [port(80)],
            "target_port": [port(8080)],
        }
        for n in range(1, ENDPOINTS + 1):
            maps.km_endpoint[{"service_id": 7, "prio": 0, "backend_index": n}] = {"backend_uid": n}
            maps.km_backend[{"backend_uid": n}] = {"addr": ip(f"10.244.0.{n}")}
        return obj

    return load_with


def connect(obj: Object, to: str = "10.96.0.1:80", sock: socket.socket | None = None) -> Result:
    return obj.programs.cgroup_connect4_prog.run(to, sock=sock)


def chosen(obj: Object) -> int:
    return int(str(connect(obj).dst).split(":")[0].rsplit(".", 1)[1])


def test_random_gives_the_chosen_numbers_and_starts_over(load: Load, stubs: ExitStack) -> None:
    numbers = faults.random(2, 0, 3, 5)
    stubs.callback(numbers.close)
    obj = load(numbers)
    assert [chosen(obj) for _ in range(6)] == [3, 1, 4, 2, 3, 1]
    assert numbers.calls == 6


def test_one_load_serves_several_sequences(load: Load, stubs: ExitStack) -> None:
    numbers = faults.random(0)
    stubs.callback(numbers.close)
    obj = load(numbers)
    assert [chosen(obj), chosen(obj)] == [1, 1]
    numbers.set([3, 2, 1])
    assert [chosen(obj) for _ in range(4)] == [4, 3, 2, 4]
    numbers.reset()
    assert chosen(obj) == 4
    numbers.active = False
    before = numbers.calls
    assert {chosen(obj) for _ in range(40)} <= {1, 2, 3, 4}
    assert numbers.calls == before, "the real helper answers"


def test_clock_says_what_it_is_told(load: Load, stubs: ExitStack) -> None:
    clock = faults.clock(1_000_000, step=7)
    stubs.callback(clock.close)
    obj = load(clock)
    times = [connect(obj).storage("km_sockstorage").connect_ns for _ in range(3)]
    assert times == [1_000_000, 1_000_007, 1_000_014]
    clock.set(5)
    assert connect(obj).storage("km_sockstorage").connect_ns == 5


def test_a_stub_can_be_switched_off_between_runs(load: Load, stubs: ExitStack) -> None:
    missing = faults.no_storage()
    stubs.callback(missing.close)
    obj = load(missing)
    assert connect(obj).storage("km_sockstorage") is None
    missing.active = False
    assert connect(obj).storage("km_sockstorage").connect_ns > 0
    missing.active = True
    assert connect(obj).storage("km_sockstorage") is None
    assert missing.calls == 4, "two calls in each of the two runs that it answered"


def test_a_stub_strikes_the_one_call_it_is_told(load: Load, stubs: ExitStack) -> None:
    """Of the three call sites one is for DNS; the others record time and original destination."""
    seen = []
    for site in range(3):
        missing = faults.no_storage(site=site, program="cgroup_connect4_prog")
        stubs.callback(missing.close)
        storage = connect(load(missing)).storage("km_sockstorage")
        seen.append((storage.connect_ns > 0, storage.has_set_ip))
    assert sorted(seen) == [(False, True), (True, False), (True, True)]


def test_an_argument_selects_the_calls_at_run_time(load: Load, stubs: ExitStack) -> None:
    """Every call of the hook creates: one that must not is not struck."""
    creating = faults.no_storage(creating_only=True)
    looking = faults.stub("bpf_sk_storage_get", argument=faults.Argument(4, 0))
    for one in (creating, looking):
        stubs.callback(one.close)
    assert connect(load(looking)).storage("km_sockstorage") is not None
    assert looking.calls == 0
    assert connect(load(creating)).storage("km_sockstorage") is None
    assert creating.calls == 2


def test_stubs_combine(load: Load, stubs: ExitStack) -> None:
    numbers, clock = faults.random(1), faults.clock(9)
    for one in (numbers, clock):
        stubs.callback(one.close)
    result = connect(load(numbers, clock, trace_tail_calls=True))
    assert result.dst == "10.244.0.2:8080"
    assert result.storage("km_sockstorage").connect_ns == 9


def test_a_stub_that_strikes_nowhere_is_refused_with_the_calls_there_are(
    load: Load, stubs: ExitStack
) -> None:
    missing = faults.no_storage(line="no such line")
    stubs.callback(missing.close)
    with pytest.raises(faults.FaultError) as caught:
        load(missing)
    assert "cgroup_connect4_prog site 0: return bpf_sk_storage_get(&km_sock" in str(caught.value)


def test_an_unknown_helper_is_refused_with_similar_names() -> None:
    with pytest.raises(bpfunit.NotFoundError, match="bpf_sk_storage_get"):
        faults.stub("sk_storage_get")


def test_the_verifier_sees_the_stub(load: Load, stubs: ExitStack) -> None:
    """A pointer cannot be made up."""
    made_up = faults.stub("bpf_map_lookup_elem", returns=0x1234)
    stubs.callback(made_up.close)
    with pytest.raises(bpfunit.VerifierError):
        load(made_up)
    assert connect(load()).path, "a load that came to nothing takes no path from later ones"


def test_socket_memory_is_exhausted_for_real_and_given_back(load: Load) -> None:
    obj = load()
    before = OPTMEM_MAX.read_text()
    with faults.no_socket_memory():
        result = connect(obj)
    assert result.storage("km_sockstorage") is None
    assert result.dst != "10.96.0.1:80", "the connection goes on"
    assert any("no socket storage" in line for line in result.log)
    assert OPTMEM_MAX.read_text() == before
    assert connect(obj).storage("km_sockstorage").connect_ns > 0


def test_a_fault_is_undone_when_the_test_fails_in_it() -> None:
    before = OPTMEM_MAX.read_text()

    def fail() -> None:
        with faults.no_socket_memory():
            assert OPTMEM_MAX.read_text() != before
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert OPTMEM_MAX.read_text() == before


def test_one_sockets_memory_is_exhausted_and_others_are_not(load: Load) -> None:
    obj = load()
    with socket.socket() as full, socket.socket() as other:
        with faults.filled_socket_storage(full) as pieces:
            assert pieces > 0
            assert connect(obj, sock=full).storage("km_sockstorage") is None
            assert connect(obj, sock=other).storage("km_sockstorage") is not None
        assert connect(obj, sock=full).storage("km_sockstorage").connect_ns > 0


def test_a_full_map_takes_no_more_and_is_emptied_again(load: Load) -> None:
    obj = load(max_entries={"km_manage": 64})
    connect(obj, "0.0.0.2:930")
    assert len(obj.maps.km_manage) == 0
    with faults.full_map(obj.maps.km_manage) as added:
        assert added == 64
        connect(obj, "0.0.0.2:929")
        assert connect(obj).untouched, "the namespace could not join"
    assert len(obj.maps.km_manage) == 0
    connect(obj, "0.0.0.2:929")
    assert not connect(obj).untouched


def test_a_full_map_keeps_what_it_holds(load: Load) -> None:
    obj = load(max_entries={"km_backend": 16})
    before = obj.maps.km_backend.snapshot()
    with faults.full_map(obj.maps.km_backend) as added:
        assert added == 16 - ENDPOINTS
        assert connect(obj).dst != "10.96.0.1:80"
    assert obj.maps.km_backend.snapshot() == before


def test_a_missing_target_is_put_back(load: Load) -> None:
    obj = load()
    obj.maps.km_service[{"service_id": 7}] = {
        "wp_addr": ip("10.244.9.9"),
        "waypoint_port": port(15008),
    }
    array = obj.maps.km_cgr_tailcall
    array.spy(0)
    assert [call.index for call in connect(obj).tail_calls] == [0]
    with faults.missing_target(array, 0):
        result = connect(obj)
        assert result.tail_calls == []
        assert any("no program to go on with" in line for line in result.log)
    assert [call.index for call in connect(obj).tail_calls] == [0]


def test_a_parameter_that_does_not_exist_is_refused() -> None:
    with pytest.raises(faults.FaultError, match="no_such"), faults.sysctl("net.core.no_such", 1):
        pytest.fail("entered the block")


def test_stubs_leave_no_descriptors_behind(bpf_object_path: Path) -> None:
    """Each answer makes other programs of the object, whose paths are recorded as well."""

    def descriptors() -> int:
        gc.collect()
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def stubbed(answer: int) -> None:
        stub = faults.stub("bpf_get_prandom_u32", returns=answer)
        with bpfunit.load(bpf_object_path, map_types=MAP_TYPES, instrument=[stub]) as obj:
            assert connect(obj).verdict == "allow"

    stubbed(0)  # what is opened once is open then
    before = descriptors()
    for answer in range(1, 5):
        stubbed(answer)
    assert descriptors() == before
