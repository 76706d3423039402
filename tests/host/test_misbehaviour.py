"""Whatever a suite does: exit 0 only if every collected test passed or was skipped by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from matrix_runs import run
from misbehaviours import OK, WAYS, Way

pytestmark = pytest.mark.host

GOOD = {"passed", "skipped", "xfailed", "not-applicable"}


@pytest.mark.parametrize("way", WAYS.values(), ids=[name.replace(" ", "-") for name in WAYS])
def test_no_run_is_green_that_is_not(tmp_path: Path, way: Way):
    done = run(tmp_path, way.suite, *way.args, labels=("7.3",), conftest=way.conftest, limit=120)

    assert done.code == way.code, done.text
    assert done.json["exit_code"] == done.code
    outcomes = [kind for kinds in done.outcomes.values() for kind in kinds.values()]
    assert (done.code != OK) or (outcomes and set(outcomes) <= GOOD)
    for name in way.lacks:
        assert "passed" not in done.outcomes.get(name, {}).values()
