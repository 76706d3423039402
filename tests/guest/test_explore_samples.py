"""explore on programs of five hundred lines written for it: an XDP filter, a TC gateway."""

from __future__ import annotations

import pytest

import bpfunit
from bpfunit.explorer import Budget

from ..objects import compiled

pytestmark = [pytest.mark.guest, pytest.mark.bpf_plain]

ENOUGH = 0.95


@pytest.mark.parametrize(
    "program", ["edge", pytest.param("gateway", marks=pytest.mark.long)], ids=["xdp", "tc"]
)
def test_nearly_every_edge_of_a_sample_is_reached(program: str) -> None:
    found = bpfunit.explore(compiled(program), program, budget=Budget(seconds=240))
    assert found.reached >= ENOUGH * found.alive, "\n".join(found.report())
    left = [edge for edge in found.edges if edge.state == "not reached"]
    assert len(left) == found.alive - found.reached
    assert all(edge.reason for edge in left)
    assert all(any(edge.where in line for line in found.report()) for edge in left)
