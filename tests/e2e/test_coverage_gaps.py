"""Coverage that was asked for and reached nothing, or not everything, turns a run red."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.objects import compiled

pytestmark = pytest.mark.host

TESTS = """
import pytest

pytestmark = pytest.mark.guest


def test_whole(bpf_load):
    bpf_load({cover!r}, programs=["mark"]).programs.mark.run(data=bytes(64))


def test_crowded(bpf_load):
    bpf_load({cover!r}, programs=["mark", "overcrowded"])


def test_beyond(bpf_load):
    bpf_load({tied!r}, programs=["on_usdt"])


def test_without():
    pass
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose tests differ in what they leave to measure."""
    home = tmp_path_factory.mktemp("gaps")
    (home / "pytest.ini").write_text("[pytest]\n")
    text = TESTS.format(cover=str(compiled("cover")), tied=str(compiled("tied")))
    (home / "test_gaps.py").write_text(text)
    return home


def run(home: Path, *arguments: str) -> tuple[int, str]:
    """Run tests of the project in a guest; return the exit code and the output."""
    command = [sys.executable, "-m", "pytest", "-q", "--color=yes", "--kernel", "6.12"]
    done = subprocess.run(
        [*command, *arguments], cwd=home, capture_output=True, text=True, timeout=600, check=False
    )
    return done.returncode, done.stdout + done.stderr


def red_line(out: str) -> str:
    """Return the line that is said in red."""
    return next(line for line in out.splitlines() if "\x1b[31m" in line and "FAIL " in line)


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("crowded", "BPF coverage lacks overcrowded on 6.12."),
        ("beyond", "reached nothing: nothing recorded; not instrumentable: on_usdt on 6.12."),
        ("without", "reached nothing: nothing recorded: no test loaded a BPF program"),
    ],
)
def test_a_gap_is_said_in_red_and_ends_the_run_with_1(home: Path, test: str, said: str) -> None:
    code, out = run(home, "--bpf-cov", "-k", test)
    assert code == 1, out
    assert "1 passed" in out
    assert said in red_line(out)
    assert "--bpf-cov-partial allows it" in red_line(out)


def test_what_is_allowed_to_be_partial_ends_with_0(home: Path) -> None:
    code, out = run(home, "--bpf-cov", "--bpf-cov-partial")
    assert code == 0, out
    assert "4 passed" in out
    assert "FAIL" not in out


def test_too_little_coverage_ends_with_1(home: Path) -> None:
    code, out = run(home, "--bpf-cov", "--bpf-cov-fail-under=100", "-k", "whole")
    assert code == 1, out
    assert "required BPF coverage of 100% not reached" in red_line(out)
