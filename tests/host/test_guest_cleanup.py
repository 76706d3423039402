"""What a supervisor removes when its controller is gone: the run's own files, never others."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpfunit.guest import spec as guest_spec

pytestmark = pytest.mark.host

SUPERVISOR = Path(guest_spec.__file__).with_name("supervisor")

# Starts a supervisor and dies when that is up, as a controller that is killed does.
ORPHAN = """
import os, subprocess, sys
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
supervisor = subprocess.Popen([sys.executable, "-I", "-S", *sys.argv[1:]], **pipes)
supervisor.stdout.read(1)  # the answer to the handshake
os.kill(os.getpid(), 9)
"""


def lose_controller(run: Path, directory: Path) -> None:
    """Let a supervisor lose its controller, and wait until it has cleaned up."""
    directory.mkdir(exist_ok=True)
    description = {
        "argv": ["sleep", "600"],
        "boot_timeout": 60,
        "silence_timeout": 60,
        "run": str(run),
        "slots": {"count": 1, "group": "test"},
    }
    (directory / "guest.json").write_text(json.dumps(description))
    command = [sys.executable, "-c", ORPHAN, str(SUPERVISOR), str(directory / "guest.json")]
    done = subprocess.run(command, check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _supervisors(directory):
        time.sleep(0.1)
    assert not _supervisors(directory)


def _supervisors(directory: Path) -> list[str]:
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_text()
        except OSError:
            continue
        if str(directory / "guest.json") in words and "supervisor" in words:
            found.append(words)
    return found


def test_the_directory_of_a_lost_run_is_removed(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / guest_spec.OWNED).touch()

    lose_controller(run, run / "0")

    assert not run.exists()


def test_a_directory_that_held_other_files_is_left_alone(tmp_path: Path):
    (tmp_path / "precious").write_text("mine")

    lose_controller(tmp_path, tmp_path / "0")

    assert (tmp_path / "precious").read_text() == "mine"
