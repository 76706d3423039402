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
    report = found.report()
    assert found.reached >= ENOUGH * found.alive, "\n".join(report)
    left = [line for line in report[1:] if "not reached: " in line]
    assert len(left) == found.alive - found.reached, "each has its reason"
