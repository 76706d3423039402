"""Inputs for every branch edge, found by the search alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import bpfunit
from bpfunit.explorer import Budget, Executor, Search, block, compare, explore_and_write
from bpfunit.explorer.result import DEAD, MISSED, REACHED

from ..hook.mesh import MAP_TYPES
from ..objects import HOOK, compiled

pytestmark = [pytest.mark.guest, pytest.mark.bpf_plain]

PATIENCE = Budget(seconds=240)  # a machine under load; the budget of instructions ends it sooner


@pytest.mark.parametrize("program", ["bpf_redirect_dns_send", "bpf_restore_dns_recv"])
def test_every_edge_of_the_dns_programs_is_reached(program: str) -> None:
    found = bpfunit.explore(HOOK, program, budget=PATIENCE)
    assert found.reached == found.alive, "\n".join(found.report())


@pytest.mark.parametrize("program", ["cgroup_connect4_prog", "cgroup_connect6_prog"])
def test_every_edge_of_a_connect_program_is_reached_and_its_inputs_take_it_again(
    program: str,
) -> None:
    found = bpfunit.explore(HOOK, program, budget=PATIENCE)
    assert found.alive > 150
    assert found.reached == found.alive, "\n".join(found.report())
    states = [edge.state for edge in found.edges]
    assert states.count(REACHED) == found.alive
    assert states.count(DEAD) == len(found.facts.dead)
    with Executor(HOOK, program) as executor:
        given = [case.given for case in found.found.cases]
        again = Search(executor.facts, executor.execute).cases_of(given)
    assert {edge for case in again for edge in case.edges} == set(found.found.first)


def test_the_same_seed_finds_the_same_inputs() -> None:
    one, two = (
        bpfunit.explore(HOOK, "bpf_restore_dns_recv", seed=7, budget=PATIENCE) for _ in range(2)
    )
    assert [case.given for case in one.found.cases] == [case.given for case in two.found.cases]


def test_an_edge_that_no_input_takes_is_told_with_what_was_compared() -> None:
    found = bpfunit.explore(compiled("explored"), "stubborn", budget=Budget(240, runs=4000))
    missed = [edge for edge in found.edges if edge.state == MISSED]
    assert len(missed) == 1
    assert "a * 2654435761u" in missed[0].text
    assert missed[0].reason.startswith("compared were ")
    assert found.reached == found.alive - 1


@pytest.mark.parametrize(
    ("program", "out_of_reach"),
    [
        # an array has its first element on every kernel
        ("values", ["if (!rule || !setting)"]),
        ("options", []),
        ("twice", []),
        # kernels run XDP on whole Ethernet headers (5.10 on less)
        ("parser", ["if ((void *)(eth + 1) > end)"]),
        ("marked", []),
    ],
)
def test_ranges_masks_byte_orders_and_second_runs_are_solved(
    program: str, out_of_reach: list[str]
) -> None:
    found = bpfunit.explore(compiled("explored"), program, budget=Budget(240, runs=8000))
    missed = [edge.text for edge in found.edges if edge.state == MISSED]
    assert all(text in out_of_reach for text in missed), "\n".join(found.report())


def test_a_program_whose_every_run_is_refused_is_no_report_but_an_error() -> None:
    with pytest.raises(bpfunit.BpfunitError, match=r"refused every run of this xdp .* EINVAL"):
        bpfunit.explore(compiled("explored"), "redirected", budget=PATIENCE)


def test_what_an_exploration_does_leaves_a_loaded_object_alone() -> None:
    with bpfunit.load(HOOK) as obj:
        obj.maps.km_backend[bytes(4)] = bytes(80)
        bpfunit.explore(obj, "bpf_restore_dns_recv", budget=PATIENCE)
        assert len(obj.maps.km_backend) == 1
        assert len(obj.maps.km_manage) == 0


@pytest.mark.parametrize("program", ["bpf_redirect_dns_send", "bpf_restore_dns_recv"])
def test_what_is_written_is_python_that_passes(
    program: str, bpf_load: Callable[..., bpfunit.Object]
) -> None:
    options: dict[str, Any] = {"map_types": MAP_TYPES}
    written = explore_and_write(HOOK, program, budget=PATIENCE, **options)
    text = block(written.exploration, written.tests, f"Path({str(HOOK)!r})", options)
    module: dict[str, Any] = {}
    exec(compile(text, "explored", "exec"), module)
    assert len(written.tests) >= 10
    # making inputs small is not searching
    found = bpfunit.explore(HOOK, program, budget=PATIENCE, **options)
    assert written.exploration.found.runs == found.found.runs
    for test in written.tests:
        assert test.text.count("] = ") <= 5, test.text
        module[test.name](bpf_load)


def test_a_changed_step_is_told_by_the_smallest_input_and_the_same_code_is_not_run() -> None:
    old, new = compiled("explored"), compiled("explored", "STEP=2")
    found = compare(old, new, "twice", seconds=60)
    assert found.differs
    assert any("rules[" in line for line in found.differences), found.differences
    assert any("run.retval" in line for line in found.test), found.test
    assert compare(old, new, "marked").same_code


def test_two_builds_that_do_the_same_by_other_code_do_not_differ() -> None:
    old, new = compiled("explored"), compiled("explored", flags=["-mcpu=v2"])
    found = compare(old, new, "parser", seconds=5)
    assert not found.differs, found.differences
    assert found.reached[0][0] >= 19
