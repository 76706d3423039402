"""``--guest-env`` of ``bpfunit shell`` and ``bpfunit run``: what is asked for is in the guest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpfunit._paths import cache_dir

pytestmark = pytest.mark.host

HOOK = Path(__file__).parents[2] / "bpf/build/hook.bpf.o"
BOOT_S = 180


def bpfunit(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with one variable that guests have, and one that is withheld."""
    environment = {
        **os.environ,
        "TMPDIR": str(directory),
        "BPFUNIT_CACHE": str(cache_dir()),
        "PASSED": "as it is",
        "TMUX": "session 1",
    }
    return subprocess.run(
        [sys.executable, "-m", "bpfunit.cli", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOOT_S,
        check=False,
    )


def shown(directory: Path, *options: str) -> list[str]:
    """Return what a guest's shell has of the two variables and of a third."""
    script = 'printf "%s\\n" "$PASSED" "${TMUX-unset}" "${GIVEN-unset}"'
    done = bpfunit(directory, "shell", *options, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_shell_has_what_it_is_given_and_no_more(tmp_path: Path) -> None:
    assert shown(tmp_path) == ["as it is", "unset", "unset"]
    options = ["--guest-env", "TMUX", "--guest-env=GIVEN=a=b c"]
    assert shown(tmp_path, *options) == ["as it is", "session 1", "a=b c"]


def test_a_run_has_what_it_is_given(tmp_path: Path) -> None:
    arguments = ["run", str(HOOK), "cgroup_connect4_prog", "--dst=192.0.2.1:80"]
    done = bpfunit(tmp_path, *arguments, "--guest-env=BPFUNIT_LIBBPF=/no/libbpf.so")
    assert (done.returncode, done.stdout) == (3, "")
    assert "/no/libbpf.so" in done.stderr
