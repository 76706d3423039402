"""``bpfunit diff`` as it is typed: two builds, two compilers, two kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.objects import compiled

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[2]


def diff(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("bpfunit"), "diff", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_builds_are_told_apart_by_a_test_that_passes_on_the_old_one() -> None:
    run = diff(compiled("explored"), compiled("explored", "STEP=2"), "twice", "--seconds", "60")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "twice: they differ" in run.stdout
    assert "# passes on the old build" in run.stdout
    assert "assert run.retval == " in run.stdout


def test_code_of_two_compilers_does_the_same() -> None:
    optimised_less = compiled("explored", flags=["-O1", "-mcpu=v1"])
    run = diff(compiled("explored"), optimised_less, "values", "--seconds", "12")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "values: no difference found" in run.stdout


def test_one_object_in_two_kernels_does_the_same_unless_it_asks_which_it_is() -> None:
    object_ = compiled("kernel_says")
    kernels = ("--kernel", "5.10", "--new-kernel", "6.12", "--seconds", "6")
    same = diff(object_, object_, "any_kernel", *kernels)
    assert same.returncode == 0, same.stdout + same.stderr
    assert "any_kernel: no difference found" in same.stdout
    other = diff(object_, object_, "new_kernel", *kernels)
    assert other.returncode == 1, other.stdout + other.stderr
    assert "return value: 0 before, 1 now" in other.stdout
