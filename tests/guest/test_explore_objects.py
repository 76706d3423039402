"""What the search reaches of objects that were not written for it."""

from __future__ import annotations

import pytest

import bpfunit
from bpfunit.explorer import Budget, Exploration
from bpfunit.explorer.result import MISSED

from ..objects import example, foreign

pytestmark = [pytest.mark.guest, pytest.mark.bpf_plain]

PATIENCE = Budget(seconds=240, runs=30_000)


@pytest.mark.parametrize(
    "program",
    [
        *("cgroup_connect4_prog", "cgroup_connect6_prog"),
        *("bpf_redirect_dns_send", "bpf_restore_dns_recv"),
    ],
)
def test_the_second_hook_is_reached_but_for_a_twentieth(program: str) -> None:
    all_but_a_twentieth(bpfunit.explore(foreign(), program, budget=PATIENCE))


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("xdp_firewall", "firewall"),
        ("cgroup_dns_only", "dns_only"),
        # the kernel's test run of its type
        pytest.param("sk_lookup_range", "steer", marks=pytest.mark.needs(since="5.13")),
    ],
)
def test_the_examples_are_reached_but_for_a_twentieth(name: str, program: str) -> None:
    all_but_a_twentieth(bpfunit.explore(example(name), program, budget=PATIENCE))


def test_an_edge_that_an_array_rules_out_is_told_by_the_arrays_name() -> None:
    found = bpfunit.explore(example("tc_mark"), "mark", budget=PATIENCE)
    (missed,) = (edge for edge in found.edges if edge.state == MISSED)
    assert missed.text == "if (mark && *mark)"
    assert missed.reason == "mark_of_dscp is an array, which has every index that was asked for"


def all_but_a_twentieth(found: Exploration) -> None:
    report = "\n".join(found.report())
    assert found.reached >= 0.95 * found.alive, report
    missed = [edge for edge in found.edges if edge.state == MISSED]
    assert all(edge.reason for edge in missed), report
