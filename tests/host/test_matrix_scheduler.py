"""Each kernel runs all tests, its guests share them, and no kernel waits for another."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest
from matrix_runs import run
from xdist.scheduler import Scheduling

from bpfunit.plugin.scheduler import MatrixScheduling

pytestmark = pytest.mark.host

SCHEDULER = """
from pathlib import Path
from bpfunit.plugin.scheduler import MatrixScheduling

@pytest.hookimpl(tryfirst=True)
def pytest_xdist_make_scheduler(config, log):
    return MatrixScheduling(config, log, ["busy", "idle"], 2, lambda n: n.gateway.spec.env["LABEL"])

@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session):
    if LABEL == "idle":
        session.items.clear()

def pytest_unconfigure(config):
    if LABEL == "idle":
        Path(f"gone-{os.environ['PYTEST_XDIST_WORKER']}").touch()
"""
SUITE = """
import os, time, pytest
from pathlib import Path

@pytest.mark.parametrize("number", range(20))
def test_shared(number):
    with open("ran", "a") as ran:
        ran.write(f"{number} {os.environ['PYTEST_XDIST_WORKER']}\\n")
    time.sleep(0.05)

def test_idle_workers_are_let_go_while_others_run():
    deadline = time.monotonic() + 60
    while len(list(Path().glob("gone-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
"""


def test_guests_of_a_kernel_share_its_tests_and_those_without_any_are_let_go(tmp_path: Path):
    done = run(
        tmp_path,
        SUITE,
        "--dist=load",
        labels=("busy", "busy", "idle", "idle"),
        conftest=SCHEDULER,
    )

    assert {by_kernel["busy"] for by_kernel in done.outcomes.values()} == {"passed"}, done.text
    lines = [line.split() for line in (tmp_path / "ran").read_text(encoding="ascii").splitlines()]
    assert sorted(int(number) for number, _ in lines) == list(range(20))  # each of them once
    assert len({worker for _, worker in lines}) == 2


DIFFERS = """
from bpfunit.plugin.scheduler import MatrixScheduling

@pytest.hookimpl(tryfirst=True)
def pytest_xdist_make_scheduler(config, log):
    return MatrixScheduling(config, log, ["one"], 1, lambda node: "one")

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw1":
        items.reverse()
"""
DIES = """
import os
def test_first(): pass
def test_dies(): os._exit(0)
def test_left(): pass
def test_last(): pass
"""


def test_a_guest_that_replaces_another_and_collects_differently_runs_no_wrong_tests(
    tmp_path: Path,
):
    done = run(tmp_path, DIES, "--dist=load", labels=("one",), conftest=DIFFERS, limit=100)

    assert done.code == 71, done.text  # a death, and a collection that failed
    assert {name: next(iter(by_kernel.values())) for name, by_kernel in done.outcomes.items()} == {
        "test_first": "passed",
        "test_dies": "crashed",
        "test_left": "missing",
        "test_last": "missing",
    }


def test_all_that_xdist_asks_of_a_scheduler_is_there_with_its_parameters():
    """The protocol's own methods would answer None; a member that a new xdist adds is seen here."""
    asked = [name for name in vars(Scheduling) if not name.startswith("_")]
    assert "schedule" in asked
    for name in asked:
        ours, theirs = vars(MatrixScheduling)[name], vars(Scheduling)[name]
        assert isinstance(ours, property) == isinstance(theirs, property), name
        if not isinstance(ours, property):
            assert list(signature(ours).parameters) == list(signature(theirs).parameters), name
