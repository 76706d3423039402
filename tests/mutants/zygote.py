"""In the guest: runs tests against one object after another, a forked process each.

Everything is imported once before the first fork: under software emulation that is most of the time
that a small test run takes.

Reads jobs from standard input, one JSON object a line {"name", "object", "tests"}, ``object`` being
the option that names it and the path; answers each with a line {"name", "failed", "reason", "ran"}
on standard output, ``failed`` naming the first failing test.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

_LIMIT = 1700  # seconds for one job, then the kernel ends its process
_WARM = ("hypothesis", "hypothesis.strategies", "bpfunit.faults", "bpfunit.plugin.fixtures")


class Recorder:
    """A pytest plugin that keeps the first failure and counts the tests."""

    def __init__(self) -> None:
        self.failed, self.reason, self.ran, self.current = "", "", 0, ""

    def pytest_configure(self, config: pytest.Config) -> None:
        """Take the place of xdist's worker, to which the guest's half of the plugin reports."""
        config.workeroutput = {}  # type: ignore[attr-defined]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure, in whatever phase."""
        self.ran += report.when == "call"
        if report.failed and not self.failed:
            self.failed = report.nodeid.partition("@")[0]
            crash = getattr(report.longrepr, "reprcrash", None)
            self.reason = str(crash.message if crash else report.longrepr)[:400]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be collected is a mistake of ours, not of the mutant's."""
        if report.failed:
            raise RuntimeError(f"collect {report.nodeid}: {report.longrepr}")


def run_tests(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job's tests in this process and return the answer."""
    recorder = Recorder()
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    options += ["-p", "no:hypothesispytest"]  # its plugin; the tests of no mutant are its own
    status = pytest.main([*options, *job["object"], *job["tests"]], plugins=[recorder])
    if status not in (0, 1) or (status == 1) != bool(recorder.failed):
        raise RuntimeError(f"pytest ended with status {status} for {job['name']}")
    return {
        "name": job["name"],
        "failed": recorder.failed,
        "reason": recorder.reason,
        "ran": recorder.ran,
    }


def in_child(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a forked process, so that nothing of one object reaches the next."""
    with tempfile.TemporaryDirectory() as directory:
        answer, output = Path(directory, "answer"), Path(directory, "output")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with output.open("wb") as sink:
                    os.dup2(sink.fileno(), 1)
                    os.dup2(sink.fileno(), 2)
                signal.alarm(_LIMIT)
                answer.write_text(json.dumps(run_tests(job)))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        if answer.exists():
            found: dict[str, Any] = json.loads(answer.read_text())
            return found
        tail = output.read_text(errors="replace")[-2000:]
        return {"name": job["name"], "error": f"status {status}\n{tail}"}


def main() -> None:
    """Answer jobs until the input ends."""
    os.environ.pop("BPFUNIT_MODULE", None)  # it is loaded already
    for module in _WARM:
        with suppress(ImportError):  # of a guest of another architecture, whose code it lacks
            importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(in_child(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
