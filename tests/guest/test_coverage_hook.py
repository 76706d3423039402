"""Probes in the connect hook: the same results, exact counts, the path of one run."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from bpfunit import BpfSockAddr, Object, faults, ip, port
from bpfunit.coverage import CoverageRecorder, Mode
from bpfunit.coverage.counts import conservation_errors
from bpfunit.coverage.data import CoverageData
from bpfunit.coverage.path import Step
from bpfunit.coverage.sites import merge_sources

from ..hook.mesh import MAP_TYPES

pytestmark = [pytest.mark.guest, pytest.mark.bpf_plain]

CONTEXTS = 3000
_ADDRESSES = 60  # what is in front of the socket in struct bpf_sock_addr
Load = Callable[..., Object]


def fill(obj: Object, seed: int) -> None:
    """Put services, endpoints and backends of every kind into the maps, the same for each seed."""
    rng, maps = random.Random(seed), obj.maps
    obj.programs.cgroup_connect4_prog.run("0.0.0.2:929")
    for n in range(12):
        # Some frontends name a backend, some nothing at all.
        maps.km_frontend[{"addr": ip(f"10.96.0.{n}")}] = {"upstream_id": n + 1}
        maps.km_frontend[{"addr": ip(f"fd00::{n:x}")}] = {"upstream_id": n + 1}
    for service in range(1, 9):
        maps.km_service[{"service_id": service}] = {
            "prio_endpoint_count": [rng.randrange(3) for _ in range(7)],
            "lb_policy": rng.randrange(4),
            "service_port": [port(rng.choice((80, 443))) for _ in range(2)],
            "target_port": [port(8080), port(8443)],
            "wp_addr": ip(rng.choice(("0.0.0.0", "10.9.9.9"))),
            "waypoint_port": port(rng.choice((0, 0, 15008))),
        }
        for prio in range(7):
            for index in (1, 2):
                key = {"service_id": service, "prio": prio, "backend_index": index}
                maps.km_endpoint[key] = {"backend_uid": rng.randrange(1, 14)}
    for uid in (0, *range(4, 12)):
        maps.km_backend[{"backend_uid": uid}] = {
            "addr": ip(f"10.244.0.{uid}"),
            "wp_addr": ip("10.9.9.8"),
            "waypoint_port": port(rng.choice((0, 0, 15008))),
        }


def contexts(seed: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Programs and destinations, of which most meet a frontend."""
    rng = random.Random(seed)
    for _ in range(CONTEXTS):
        last, number = rng.randrange(14), rng.choice((80, 443, 53, 929, 8080))
        sock_type = rng.choice((socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_DGRAM))
        if rng.random() < 0.5:
            yield "cgroup_connect4_prog", f"10.96.0.{last}:{number}", {"type": sock_type}
        else:
            host = rng.choice((f"fd00::{last:x}", f"::ffff:10.96.0.{last}"))
            yield "cgroup_connect6_prog", f"[{host}]:{number}", {"type": sock_type}


def run_all(obj: Object, seed: int) -> list[tuple[Any, ...]]:
    """Run every context, in bulk, and return all that can be seen of each run."""
    seen: dict[str, list[BpfSockAddr]] = {}
    for name, to, options in contexts(seed):
        seen.setdefault(name, []).append(obj.programs[name].craft(to, **options))
    found = []
    for name, crafted in seen.items():
        for run in obj.programs[name].run_many(crafted):
            storage = run.storage("km_sockstorage")
            found.append((name, run.error, run.retval, bytes(run.ctx)[:_ADDRESSES], repr(storage)))
    return found


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
def test_thousands_of_connects_end_the_same_with_probes(
    mode: Mode, bpf_load: Load, bpf_object_path: Path
) -> None:
    """The random numbers and the clock are chosen, so that both see the same."""
    recorder = CoverageRecorder(mode)
    outcomes = []
    for probed in (False, True):
        stubs = [faults.random(5, 0, 3, 2, 7), faults.clock(1000, step=1)]
        with recorder.recording() if probed else nullcontext():
            obj = bpf_load(
                bpf_object_path,
                map_types=MAP_TYPES,
                globals={"bpf_log_level": 0},
                instrument=stubs,
            )
        fill(obj, seed=1)
        for stub in stubs:
            stub.reset()
        outcomes.append(run_all(obj, seed=2))
        for stub in stubs:
            stub.close()
    plain, with_probes = outcomes
    assert len(plain) == CONTEXTS
    assert len({outcome[3:] for outcome in plain}) > 30, "the contexts hardly differ in outcome"
    assert plain == with_probes
    if mode is Mode.COUNTERS:
        hits = recorder.take()
        for model in recorder.models():
            counts = [hits.get(model.key, {}).get(n, 0) for n in range(len(model.probes))]
            assert conservation_errors(model, counts) == []
    recorder.close()


@pytest.fixture
def recorded(bpf_load: Load, bpf_object_path: Path) -> Iterator[tuple[CoverageRecorder, Object]]:
    """A recorder that counts, and the hook loaded under it."""
    recorder = CoverageRecorder(Mode.COUNTERS)
    with recorder.recording():
        yield recorder, bpf_load(bpf_object_path, map_types=MAP_TYPES)
    recorder.close()


def test_the_path_of_a_run_is_of_that_run_alone(
    recorded: tuple[CoverageRecorder, Object],
) -> None:
    _, obj = recorded
    program = obj.programs.cgroup_connect4_prog
    unmanaged = program.run("10.96.0.1:80").path
    joining = program.run("0.0.0.2:929").path
    assert {step.program for step in unmanaged} == {"cgroup_connect4_prog"}
    assert "is_managed" in unmanaged[-1].text
    assert str(joining) != str(unmanaged)
    assert str(program.run("10.96.0.1:443").path) != str(unmanaged), "it is managed now"
    assert all(isinstance(step, Step) and step.at.file.endswith((".c", ".h")) for step in joining)


def test_counts_of_all_runs_arrive_although_paths_were_read(
    recorded: tuple[CoverageRecorder, Object],
) -> None:
    recorder, obj = recorded
    for _ in range(3):
        obj.programs.cgroup_connect4_prog.run("10.96.0.1:80", repeat=5)
    (hits,) = recorder.take().values()
    assert hits[0] == 15
    assert recorder.take() == {}


def test_loads_of_the_same_object_count_together(bpf_load: Load, bpf_object_path: Path) -> None:
    recorder = CoverageRecorder(Mode.COUNTERS)
    with recorder.recording():
        for _ in range(2):
            with bpf_load(bpf_object_path, map_types=MAP_TYPES) as obj:
                obj.programs.cgroup_connect6_prog.run("[fd00::1]:80")
    names = [model.program for model in recorder.models()]
    assert len(names) == len(set(names))
    (hits,) = recorder.take().values()
    assert hits[0] == 2
    recorder.close()


def test_inlined_copies_meet_on_their_source_lines(
    recorded: tuple[CoverageRecorder, Object],
) -> None:
    """The control addresses are looked at in every program, and in one place of the source."""
    recorder, obj = recorded
    obj.programs.cgroup_connect4_prog.run("10.96.0.1:80")
    obj.programs.cgroup_connect6_prog.run("[fd00::1]:80")
    data = CoverageData()
    for model in recorder.models():
        data.add_model(model)
    kernel = recorder.models()[0].kernel
    hits = {key: list(found.items()) for key, found in recorder.take().items()}
    data.add_hits("test", kernel, hits)
    files = merge_sources(data)
    shared = [
        branch
        for file in files.values()
        for branch in file.branches
        if "is_control_address(" in file.lines[branch.at.line].text and branch.copies >= 3
    ]
    assert shared
    assert all(len(branch.outcomes) == 2 for branch in shared)
