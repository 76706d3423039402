"""The outcome of a run that an engine cannot produce, as people see it."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

SUITE = """
import bpfunit
import pytest

def test_run():
    raise bpfunit.NotApplicableError("no real call leads here")

def test_other():
    pass

@pytest.fixture
def arranged():
    raise bpfunit.NotApplicableError("nor here")

def test_arranged(arranged):
    pass
"""


def test_run_that_the_engine_cannot_produce_is_neither_passed_nor_skipped(
    pytester: pytest.Pytester,
):
    pytester.makepyfile(SUITE)

    result = pytester.runpytest_subprocess("-v", timeout=120)

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*test_run NOT APPLICABLE*",
            "*test_other PASSED*",
            "*test_arranged NOT APPLICABLE*",
            "*= not applicable on this engine =*",
            "*test_run: no real call leads here",
            "*test_arranged: nor here",
            "*= 1 passed, 2 not applicable in *",
        ]
    )


def test_unknown_engine_is_a_usage_error(pytester: pytest.Pytester):
    result = pytester.runpytest_subprocess("--bpf-engine", "steam", timeout=120)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--bpf-engine: invalid choice: 'steam'*"])
