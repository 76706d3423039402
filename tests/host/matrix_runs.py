"""Runs of pytest whose workers are processes that put a label into their ids, as guests do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKER = """
import os, sys, pytest
from bpfunit.plugin.worker import _rename

LABEL = os.environ.get("LABEL", "")

def pytest_collection_modifyitems(items):
    if LABEL:
        for item in items:
            _rename(item, f"{item.nodeid}@{LABEL}")

@pytest.fixture
def label():
    return LABEL
"""


@dataclass(frozen=True)
class Finished:
    """A run of pytest that is over."""

    code: int
    text: str
    directory: Path

    @property
    def json(self) -> Any:
        return json.loads((self.directory / "out/m.json").read_text(encoding="utf-8"))

    @property
    def kernels(self) -> dict[str, Any]:
        """The kernels by release; workers tell theirs as they come."""
        return {kernel["release"]: kernel for kernel in self.json["kernels"]}

    @property
    def page(self) -> str:
        return (self.directory / "out/m.md").read_text(encoding="utf-8")

    @property
    def outcomes(self) -> dict[str, dict[str, str]]:
        """Outcomes by test and kernel."""
        return {
            test["id"].partition("::")[2]: {k: o["outcome"] for k, o in test["outcomes"].items()}
            for test in self.json["tests"]
        }

    def suite(self, name: str) -> ET.Element:
        """One JUnit suite."""
        return next(ET.parse(self.directory / "out" / name).iter("testsuite"))


def run(
    directory: Path,
    suite: str,
    *args: str,
    labels: tuple[str, ...] = (),
    conftest: str = "",
    limit: float = 300,
) -> Finished:
    """Run a suite once for each label, side by side, with all reports in ``out``.

    Args:
        directory: an empty one.
        suite: source of the tests.
        args: for pytest.
        labels: one for each worker.
        conftest: source that is put behind that of the workers.
        limit: seconds for the run.
    """
    (directory / "conftest.py").write_text(WORKER + conftest, encoding="utf-8")
    (directory / "test_suite.py").write_text(suite, encoding="utf-8")
    workers = [f"--tx=popen//env:LABEL={label}" for label in labels]
    reports = ["--matrix-json=out/m.json", "--matrix-markdown=out/m.md", "--matrix-junit=out"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the others only take time
    plugins = ["-p", "xdist", "-p", "bpfunit.plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "--dist=each", *workers, *reports, *args],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit,
        check=False,
    )
    return Finished(done.returncode, done.stdout, directory)
