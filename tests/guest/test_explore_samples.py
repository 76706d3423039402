"""explore on a program of five hundred lines that was written for it: an XDP filter."""

from __future__ import annotations

import pytest

import bpfunit
from bpfunit.explorer import Budget

from ..objects import compiled

pytestmark = [pytest.mark.guest, pytest.mark.bpf_plain]

ENOUGH = 0.95


def test_nearly_every_edge_of_the_xdp_sample_is_reached() -> None:
    found = bpfunit.explore(compiled("edge"), "edge", budget=Budget(seconds=180))
    report = found.report()
    assert found.reached >= ENOUGH * found.alive, "\n".join(report)
    left = [line for line in report[1:] if "not reached: " in line]
    assert len(left) == found.alive - found.reached, "each has its reason"
