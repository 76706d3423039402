"""One run on the oldest and the newest kernel: the report by kernel, and gates for features."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.host

SUITE = """
import os
import pytest

pytestmark = pytest.mark.guest

def test_everywhere():
    pass

def test_new_kernels_only():
    assert not os.uname().release.startswith("5."), "only newer kernels can"

@pytest.mark.needs(since="5.18", helper="bpf_get_retval")
def test_helper_of_5_18():
    pass

@pytest.mark.needs(since="7.0", helper="bpf_xdp_adjust_head")
def test_helper_that_no_connect_program_ever_had():
    raise AssertionError("ran without its helper")
"""


def test_features_and_differences_are_told_kernel_by_kernel(pytester: pytest.Pytester):
    pytester.makepyfile(test_suite=SUITE)
    # More than half of the processors: the machine has one place, and the second kernel waits.
    cpus = len(os.sched_getaffinity(0)) // 2 + 1
    result = pytester.runpytest_subprocess(
        "--kernel=5.10 7.3",
        f"--guest-cpus={cpus}",
        "--matrix-json=out/m.json",
        "--matrix-junit=out",
        timeout=500,
    )

    found: Any = json.loads((pytester.path / "out/m.json").read_text(encoding="utf-8"))
    old, new = (kernel["release"] for kernel in found["kernels"])
    assert [kernel["label"] for kernel in found["kernels"]] == ["5.10", "7.3"]
    assert old.startswith("5.10.")
    assert new.startswith("7.3.")
    outcomes = {test["id"].partition("::")[2]: test["outcomes"] for test in found["tests"]}
    seen = {name: (o[old]["outcome"], o[new]["outcome"]) for name, o in outcomes.items()}
    assert seen == {
        "test_everywhere": ("passed", "passed"),
        "test_new_kernels_only": ("failed", "passed"),
        "test_helper_of_5_18": ("skipped", "passed"),
        "test_helper_that_no_connect_program_ever_had": ("skipped", "error"),
    }
    lacks = f"{old} has no helper bpf_get_retval for cgroup_sock_addr"
    assert lacks in outcomes["test_helper_of_5_18"][old]["reason"]
    gate = outcomes["test_helper_that_no_connect_program_ever_had"]
    assert f"{old} has no helper bpf_xdp_adjust_head" in gate[old]["reason"]
    assert "which kernels from 7.0 on have" in gate[new]["reason"]

    assert found["differing"] == ["test_suite.py::test_new_kernels_only"]
    result.stdout.fnmatch_lines(
        [
            "*= kernels =*",
            f"{old} *",
            f"{new} *",
            "differs by kernel: test_suite.py::test_new_kernels_only",
            f"  passed on {new}",
            f"  failed on {old}",
        ]
    )
    for release in (old, new):
        path: Path = pytester.path / "out" / f"junit-{release}.xml"
        assert next(ET.parse(path).iter("testsuite")).get("tests") == "4"
    assert result.ret == pytest.ExitCode.TESTS_FAILED
