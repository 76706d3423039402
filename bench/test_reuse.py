"""What a whole test costs: from one test's first line to the next one's, beside a C program.

All of it in one guest; in exact mode the figures are guest instructions. The tests of each class
are alike: each notes when its first line runs, and the last records what lay between the others.
Coverage's probes are left out, as the C program has none, and objects serve again, as with
``--bpf-reuse=yes``.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bpfunit import port
from bpfunit.reuse import Pool
from tests.hook import families
from tests.hook.mesh import MAP_TYPES, Mesh

TESTS = range(8)
ENTRIES = 50
RUNS = 50

pytestmark = [pytest.mark.bpf_plain]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """The objects that wait for the next test of this file."""
    made = Pool()
    yield made
    made.close()


@pytest.fixture
def bpf_load(pool: Pool) -> Iterator[Callable[..., Any]]:
    """Load as the plugin's fixture does with ``--bpf-reuse=yes``, whatever the session has."""
    with ExitStack() as stack:

        def load(path: Path, **options: Any) -> Any:
            obj = pool.load(path, **options)
            stack.callback(pool.give_back, obj)
            return obj

        yield load


def c_program(built: Path, obj: Path, program: str, times: int) -> int:
    """Return what the C program takes to open, load, run once and close."""
    command = [built / "test_with_load", obj, program, str(times)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


class Between:
    """When the tests of a class began."""

    begun: ClassVar[list[int]]

    @pytest.fixture
    def end(self, bpf_benchmark: Any) -> Callable[[int], None]:
        """Return what the last test calls with the C program's figure, to record all."""

        def record(yardstick: int) -> None:
            figures = [after - before for before, after in pairwise(self.begun)]
            settled = figures[2:]  # the first load is fresh, and what comes first is imported
            bpf_benchmark.fixture.extra_info.update(
                c_program=yardstick, ratio_of_c_program=round(min(settled) / yardstick, 3)
            )
            bpf_benchmark.record(settled)

        return record


@pytest.mark.benchmark(group="a whole test, from its first line to the next one's")
class TestEmpty(Between):
    begun: ClassVar[list[int]] = []

    @pytest.mark.parametrize("number", TESTS)
    def test_nothing(self, number: int):
        self.begun.append(time.perf_counter_ns())

    def test_of_nothing(self, end: Any, built: Path, bpf_object_path: Path):
        end(c_program(built, bpf_object_path, "cgroup_connect4_prog", 5))


@pytest.mark.benchmark(group="a whole test, from its first line to the next one's")
class TestHook(Between):
    begun: ClassVar[list[int]] = []

    @pytest.fixture
    def mesh(self, bpf_load: Any, bpf_object_path: Path) -> Iterator[Mesh]:
        mesh = Mesh(bpf_load(bpf_object_path, map_types=MAP_TYPES), families.ALL[0])
        yield mesh
        mesh.close()

    @pytest.mark.parametrize("number", TESTS)
    def test_one_connection(self, mesh: Mesh, number: int):
        self.begun.append(time.perf_counter_ns())
        mesh.manage()
        maps = mesh.obj.maps
        maps.km_backend[7] = {"addr": {"ip4": 0x0500F40A}}
        maps.km_frontend[{"addr": {"ip4": 0x0100600A}}] = {"upstream_id": 7}
        with_backend = mesh.obj.programs.cgroup_connect4_prog.run("10.96.0.1:80")
        assert with_backend.retval == 1
        assert with_backend.raw_ctx[4:8]

    def test_of_the_hook(self, end: Any, built: Path, bpf_object_path: Path):
        end(c_program(built, bpf_object_path, "cgroup_connect4_prog", 5))


@pytest.mark.benchmark(group="a whole test, from its first line to the next one's")
class TestCostly(Between):
    begun: ClassVar[list[int]] = []

    @pytest.mark.parametrize("number", TESTS)
    def test_one_run(self, bpf_load: Any, built: Path, number: int):
        self.begun.append(time.perf_counter_ns())
        obj = bpf_load(built / "costly.bpf.o")
        assert obj.programs.costly.run("10.96.0.1:80").retval == 1
        assert obj.maps.costly_seen.keys() == {1}

    def test_of_a_costly_program(self, end: Any, built: Path):
        end(c_program(built, built / "costly.bpf.o", "costly", 1))


@pytest.mark.benchmark(group="one crafted run of the hook")
@pytest.mark.parametrize("read", [False, True], ids=["run", "run_and_what_it_did"])
def test_crafted_run(bpf_benchmark: Any, bpf_load: Any, bpf_object_path: Path, read: bool):
    mesh = Mesh(bpf_load(bpf_object_path, map_types=MAP_TYPES), families.ALL[0])
    mesh.manage()
    maps = mesh.obj.maps
    maps.km_backend[7] = {"addr": {"ip4": 0x0500F40A}}
    maps.km_frontend[{"addr": {"ip4": 0x0100600A}}] = {"upstream_id": 7}
    run = mesh.obj.programs.cgroup_connect4_prog.run
    figures = []
    for _ in range(RUNS):
        start = time.perf_counter_ns()
        result = run("10.96.0.1:80")
        if read:
            told = result.retval, result.dst, result.untouched, result.log, result.storage()
        figures.append(time.perf_counter_ns() - start)
    assert result.storage() is not None
    if read:
        assert told[:2] == (1, "10.96.0.1:80")
    mesh.close()
    bpf_benchmark.record(figures[5:])


@pytest.mark.benchmark(group="one map entry from a Python dict")
def test_map_entry(bpf_benchmark: Any, bpf_load: Any, bpf_object_path: Path):
    table = bpf_load(bpf_object_path, map_types=MAP_TYPES).maps.km_service
    value = {"lb_policy": 1, "service_port": [port(80)], "target_port": [port(8080)]}
    figures = []
    for number in range(ENTRIES):
        start = time.perf_counter_ns()
        table[{"service_id": number}] = value
        figures.append(time.perf_counter_ns() - start)
    bpf_benchmark.record(figures[5:])
