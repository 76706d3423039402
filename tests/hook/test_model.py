"""The hook against its model: random meshes and calls, a difference shrunk to a readable case."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from .arena import Arena
from .families import IPV4, over
from .mesh import Mesh
from .scenarios import Scenario, scenarios

CASES = int(os.environ.get("BPFUNIT_MODEL_CASES", "20000"))
_SCENARIOS = 150  # in one pass, of 1 to 240 calls, 34 on average


@pytest.mark.slow
@over(IPV4)  # the scenarios mix the families themselves
def test_hook_and_model_agree(load_mesh: Callable[..., Mesh]):
    arena = Arena(load_mesh().obj)

    @settings(
        max_examples=_SCENARIOS,
        deadline=None,
        database=None,  # the guest's disk is gone after the run
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(scenario=scenarios())
    def agree(scenario: Scenario) -> None:
        arena.play(scenario)

    while arena.cases < CASES:
        agree()
