"""What every libbpf and every compiler has to be good for; ``python -m tests.stacks`` varies both.

The objects come from ``build/stacks/objects.json``, one for each compiler; without it from the
clang at hand. ``BPFUNIT_LIBBPF`` chooses the library.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from bpfunit import LoadError, Object, VerifierError, faults, ip, port
from bpfunit._sys import libbpf
from bpfunit.coverage import CoverageRecorder
from bpfunit.coverage.data import CoverageData, payload
from bpfunit.coverage.sites import merge_sources
from bpfunit.coverage.summary import grand_total

from .objects import stack_objects

pytestmark = [pytest.mark.guest, pytest.mark.bpf_plain]

Load = Callable[..., Object]
_OBJECTS = stack_objects()


@pytest.fixture(params=list(_OBJECTS))
def path(request: pytest.FixtureRequest) -> Path:
    """The object of each compiler in turn."""
    return _OBJECTS[request.param]


@pytest.fixture
def load(bpf_load: Load, path: Path) -> Load:
    """Loads the object of one compiler."""

    def load_with(**options: Any) -> Object:
        return bpf_load(path, **options)

    return load_with


@pytest.fixture
def recorder() -> Iterator[CoverageRecorder]:
    """A recorder to which every program is new, as in the first load of a process."""
    with closing(CoverageRecorder()) as recorder:
        yield recorder


def redirect(obj: Object) -> None:
    obj.maps.targets[80] = {"address": ip("10.0.0.1"), "port": port(8080), "weight": 5}


def test_the_library_in_use_is_the_one_that_was_chosen(path: Path) -> None:
    chosen = os.environ.get("BPFUNIT_LIBBPF")
    if chosen:
        assert libbpf.path() == Path(chosen).resolve()
    version = libbpf.lib().libbpf_version_string().decode()
    assert version.startswith("v1."), version
    assert path.is_file()


def test_all_programs_load_that_are_marked_for_it(load: Load) -> None:
    assert sorted(load().programs) == ["decide", "deny", "filter"]


def test_types_and_maps_are_known_by_their_names(load: Load) -> None:
    obj = load()
    redirect(obj)
    assert obj.maps.targets[80] == obj.types.target(
        address=ip("10.0.0.1"), port=port(8080), weight=5
    )
    assert dict(obj.maps.targets.items()).keys() == {80}


def test_a_map_is_made_with_the_size_asked_for(load: Load) -> None:
    assert load(max_entries={"targets": 2}).maps.targets.max_entries == 2


def test_constants_are_set_before_the_load_and_read_after_it(load: Load) -> None:
    assert load().globals.limit == 3
    assert load(globals={"limit": 9}).globals.limit == 9


def test_variables_are_read_and_written_while_the_program_uses_them(load: Load) -> None:
    obj = load(globals={"level": 4})
    assert obj.globals.level == 4
    obj.programs.decide.run("10.9.9.9:443")
    assert obj.globals.runs == 1
    obj.globals.runs = 40
    obj.programs.decide.run("10.9.9.9:443")
    assert obj.globals.runs == 41


def test_a_run_rewrites_the_address_and_writes_the_log(load: Load) -> None:
    obj = load(globals={"limit": 0})
    redirect(obj)
    result = obj.programs.decide.run("10.9.9.9:80")
    assert (result.retval, str(result.dst)) == (1, "10.0.0.1:8080")
    assert [str(line) for line in result.log] == ["over limit"]


def test_an_xdp_program_with_a_function_of_its_own_runs(load: Load) -> None:
    run = load().programs.filter.run
    assert run(data=bytes(64)).retval == 2
    assert run(data=b"\x20" * 64).retval == 1


def test_a_refused_program_is_told_with_the_verifiers_words(load: Load) -> None:
    with pytest.raises(VerifierError) as caught:
        load(programs=["refused"])
    assert caught.value.program == "refused"
    assert "map_value_or_null" in caught.value.reason
    assert len(caught.value.log.splitlines()) > 5


def test_a_refused_program_is_told_the_same_with_tracing_and_coverage(
    load: Load, recorder: CoverageRecorder
) -> None:
    with recorder.recording(), pytest.raises(VerifierError, match="map_value_or_null"):
        load(programs=["refused"], trace_tail_calls=True)


def test_a_file_that_is_no_object_is_told(load: Load, bpf_load: Load, path: Path) -> None:
    assert load().programs
    with pytest.raises(LoadError, match="is it a BPF object"):
        bpf_load(__file__)


def test_a_stub_answers_in_place_of_a_helper(load: Load) -> None:
    with closing(faults.random(42, 1)) as numbers:
        run = load(instrument=[numbers]).programs.decide.run
        assert [run("10.9.9.9:443").retval for _ in range(4)] == [0, 1, 0, 1]
        numbers.active = False
        run("10.9.9.9:443")
        assert numbers.calls == 4


def test_a_stub_finds_its_call_by_the_source_line(load: Load) -> None:
    where = {"line": "bpf_map_lookup_elem(&targets"}
    with closing(faults.stub("bpf_map_lookup_elem", 0, program="decide", **where)) as nothing:
        obj = load(instrument=[nothing], programs=["decide"])
        redirect(obj)
        assert str(obj.programs.decide.run("10.9.9.9:80").dst) == "10.9.9.9:80"


def test_a_spy_sees_the_context_that_its_caller_left(load: Load) -> None:
    obj = load()
    redirect(obj)
    with obj.maps.jumps.spy(1):
        (call,) = obj.programs.decide.run("10.9.9.9:80").tail_calls
    assert (call.map, call.index, call.target) == ("jumps", 1, "spy")
    assert str(call.ctx.user) == "10.0.0.1:8080"


def test_a_traced_tail_call_shows_its_target_and_the_whole_context(load: Load) -> None:
    obj = load(trace_tail_calls=True)
    redirect(obj)
    obj.maps.jumps[1] = obj.programs.deny
    result = obj.programs.decide.run("10.9.9.9:80")
    assert result.retval == 0
    (call,) = result.tail_calls
    assert (call.map, call.index, call.target) == ("jumps", 1, "deny")
    assert str(call.ctx.user) == "10.0.0.1:8080"
    assert obj.globals.last == int.from_bytes(socket.inet_aton("10.0.0.1"), "little")


def test_a_traced_tail_call_into_an_empty_slot_is_an_attempt(load: Load) -> None:
    obj = load(trace_tail_calls=True)
    redirect(obj)
    result = obj.programs.decide.run("10.9.9.9:80")
    assert (result.retval, result.tail_calls) == (1, [])
    assert [call.entered for call in result.tail_call_attempts] == [False]


def test_coverage_reaches_every_program_and_every_reachable_branch(
    load: Load, recorder: CoverageRecorder
) -> None:
    with closing(faults.random(1, 1, 42)) as numbers, recorder.recording():
        obj = load(instrument=[numbers], trace_tail_calls=True, globals={"limit": 1})
        redirect(obj)
        for _ in range(3):
            obj.programs.decide.run("10.9.9.9:80")
        obj.programs.decide.run("10.9.9.9:443")
        obj.maps.jumps[1] = obj.programs.deny
        obj.programs.decide.run("10.9.9.9:80")
        for data in (bytes(64), b"\x20" * 64, bytes(14)):
            obj.programs.filter.run(data=data)
    assert recorder.refused == {}
    assert sorted(model.program for model in recorder.models()) == ["decide", "deny", "filter"]
    gathered = CoverageData()
    taken = payload(recorder.models(), {}, os.uname().release, recorder.take())
    gathered.add_payload("test", taken)
    found = grand_total(merge_sources(gathered).values())
    assert found.outcomes > 6
    # a full ring buffer is the one thing that nothing here brings about
    assert found.outcomes_missed <= 1


@pytest.mark.parametrize("program", ["decide", "filter"])
def test_probes_and_records_leave_the_results_as_they_are(
    program: str, load: Load, recorder: CoverageRecorder
) -> None:
    def results(obj: Object) -> list[object]:
        redirect(obj)
        if program == "filter":
            data = [bytes(n) + b"\x07" * n for n in range(14, 40)]
            return [obj.programs.filter.run(data=one).retval for one in data]
        runs = [obj.programs.decide.run(f"10.9.9.9:{number}") for number in (80, 81, 443)]
        return [(run.retval, str(run.dst)) for run in runs]

    plain = results(load())
    with ExitStack() as stack:
        stack.enter_context(recorder.recording())
        assert results(load(trace_tail_calls=True)) == plain
