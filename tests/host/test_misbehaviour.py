"""Whatever a suite does: exit 0 only if every collected test passed or was skipped by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
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
    outcomes = [one for by_kernel in done.outcomes.values() for one in by_kernel.values()]
    assert (done.code != OK) or (outcomes and set(outcomes) <= GOOD)
    for name in way.lacks:
        assert "passed" not in done.outcomes.get(name, {}).values()


def test_junit_names_the_test_that_ctrl_c_cut_off(tmp_path: Path):
    (tmp_path / "test_suite.py").write_text(
        "import pathlib, time\ndef test_before(): pass\n"
        "def test_sleeps():\n    pathlib.Path('runs').touch(); time.sleep(60)\n"
    )
    environment = dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "bpfunit.plugin"]
    command += ["-n1", "--matrix-json=m.json", "--junitxml=junit.xml"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not (tmp_path / "runs").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)  # the report of the set-up is on its way
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == pytest.ExitCode.INTERRUPTED
    cases = {
        case.get("name"): [element.tag for element in case]
        for case in ET.parse(tmp_path / "junit.xml").iter("testcase")
    }
    assert cases == {"test_before": [], "test_sleeps": ["error"]}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["-n1", "--matrix-json=m.json"], "test_suite.py::test_renamed"),
        (["-n1", "--matrix-json=m.json"], "test_moved.py"),
        (["--kernel", "6.12"], "test_moved.py::test_there"),
    ],
    ids=["test", "file", "file, before a guest boots"],
)
def test_what_was_asked_for_and_is_not_there_is_named(
    tmp_path: Path, options: list[str], name: str
):
    (tmp_path / "test_suite.py").write_text("def test_there(): pass\n")
    environment = dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "bpfunit.plugin", *options]
    done = subprocess.run(
        [*command, name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = [one for one in (done.stdout + done.stderr).splitlines() if "not found: " in one]
    assert line.startswith("ERROR: ")
    assert name.rpartition("::")[2] in line or name.partition("::")[0] in line
