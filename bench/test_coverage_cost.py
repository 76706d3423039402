"""What probes cost the hook, per run: the same connection without, with flags and with counters.

In exact mode (``--guest-accel icount``) the figures are guest instructions, and the hook's longest
path with flags must stay below 1.10 times the plain one. ``-rP`` shows the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bpfunit.bench.clock import Mode as ClockMode
from bpfunit.bench.clock import mode_of_guest
from bpfunit.coverage import CoverageRecorder, Mode
from tests.hook import families
from tests.hook.mesh import MAP_TYPES, Mesh

from .test_paths import failover_last_priority, frontend_miss, random_endpoint, tenth_port

pytestmark = pytest.mark.bpf_plain

RUNS = 2_000
ROUNDS = 5
LIMIT = 1.10
PATHS = (failover_last_priority, tenth_port, random_endpoint, frontend_miss)
# The longest paths: every port slot compared, and every priority looked at.
LONGEST = (failover_last_priority, tenth_port)


def cost(obj: Any, path: Callable[[Mesh], tuple[str, int]], family: families.Family) -> int:
    """Return the least duration of one run, in nanoseconds; in exact mode that is instructions."""
    mesh = Mesh(obj, family)
    mesh.manage()
    address, number = path(mesh)
    sock = mesh.new_socket()
    destination = (family.seen(address), number)
    figures = [
        mesh.program.run(dst=destination, sock=sock, repeat=RUNS).duration_ns for _ in range(ROUNDS)
    ]
    mesh.close()
    return min(figures)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
@pytest.mark.parametrize("family", families.ALL, ids=str)
def test_probes_cost_little(
    family: families.Family,
    path: Callable[[Mesh], tuple[str, int]],
    bpf_load: Any,
    bpf_object_path: Any,
) -> None:
    figures: dict[str, int] = {}
    options = {"map_types": MAP_TYPES, "globals": {"bpf_log_level": 0}}
    figures["plain"] = cost(bpf_load(bpf_object_path, **options), path, family)
    shape = ""
    for mode in Mode:
        recorder = CoverageRecorder(mode)
        with recorder.recording():
            obj = bpf_load(bpf_object_path, **options)
        assert recorder.refused == {}
        figures[mode.value] = cost(obj, path, family)
        models = recorder.models()
        probes = sum(len(model.probes) for model in models)
        added = sum(model.sizes[1] - model.sizes[0] for model in models)
        spills = sum(model.spills for model in models)
        shape += f", {mode.value}: {added / probes:.2f} slots a probe, {spills} of {probes} spill"
        recorder.close()
    unit = mode_of_guest().unit
    ratios = {mode: figures[mode.value] / figures["plain"] for mode in Mode}
    shown = ", ".join(f"{mode.value} ×{ratio:.3f}" for mode, ratio in ratios.items())
    print(f"{path.__name__} {family}: {figures} {unit}, {shown}{shape}")
    if mode_of_guest() is ClockMode.EXACT and path in LONGEST:
        assert ratios[Mode.FLAGS] <= LIMIT
