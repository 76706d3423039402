"""A long test is named while it runs, on a terminal, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import Terminal

pytestmark = pytest.mark.host

SUITE = """
import time
def test_quick(): pass
def test_long(): time.sleep(20)
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    plugins = ["-p", "xdist", "-p", "bpfunit.plugin"]
    return [sys.executable, "-m", "pytest", *plugins, "-n1", "--matrix-json=m.json"]


def test_a_terminal_is_told_which_test_runs_where_and_for_how_long(command: list[str]) -> None:
    terminal = Terminal(command, dict(os.environ), columns=120)
    try:
        said = terminal.read_until(r"bpfunit: .*, for \d+ s", 120)
        while "test_long runs" not in said:  # a worker may have been slow to start
            said = terminal.read_until(r"bpfunit: .*, for \d+ s", 120)
        assert "bpfunit: test_suite.py::test_long runs (gw0), for 1" in said
        assert "test_quick runs" not in said
        terminal.read_until("2 passed", 60)
    finally:
        terminal.process.kill()


def test_a_file_is_not(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "2 passed" in done.stdout
    assert "test_long runs" not in done.stdout
