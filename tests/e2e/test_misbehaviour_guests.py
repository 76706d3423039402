"""Exit codes of runs in real guests that are not green, several ways to misbehave in each."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.objects import compiled

pytestmark = pytest.mark.host
pytest_plugins = ["pytester"]

KERNEL = os.environ.get("BPFUNIT_E2E_KERNEL", "6.12")
OTHER = "6.1" if KERNEL != "6.1" else "6.12"
LIMIT = 900  # seconds


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    reports = ("--matrix-json=m.json", "--junitxml=junit.xml", "--bpf-html=run.html")
    return pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--kernel", KERNEL, *reports, *arguments, timeout=LIMIT
    )


def outcomes(pytester: pytest.Pytester) -> dict[str, str]:
    """The outcome of each test, by name and the label of its kernel where there are two."""
    data = json.loads((pytester.path / "m.json").read_text())
    labels = {kernel["release"]: kernel["label"] for kernel in data["kernels"]}
    found = {}
    for test in data["tests"]:
        for release, cell in test["outcomes"].items():
            name = test["id"].rpartition("::")[2]
            found[f"{name}@{labels[release]}" if len(labels) > 1 else name] = cell["outcome"]
    return found


def test_what_the_channel_cannot_carry_fails_its_test_and_ends_no_worker(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import enum, logging, os, sys, warnings
        from pathlib import Path

        class Number(enum.IntEnum):
            THREE = 3

        class Own(UserWarning):
            def __init__(self, a, b): super().__init__(a, b)

        def test_before(): pass

        def test_odd_everything():
            warnings.warn(Own(object(), -2**40))
            logging.error("%s", "\\udc80")
            raise ValueError("\\udc80")

        def test_forks_and_the_child_returns():
            if os.fork():
                os.wait()

        def test_forks_and_the_child_fails():
            if os.fork() == 0:
                assert "in the child" == ""
            os.wait()

        def test_closes_its_standard_descriptors():
            os.close(0); os.close(1)

        def test_current_directory_is_gone(tmp_path):
            os.chdir(tmp_path); os.rmdir(tmp_path)

        def test_environment(): assert os.environ["MYPROJECT_OBJ"] == "x"

        def test_given(): assert os.environ["GIVEN"] == "a=b c" and os.environ["TMUX"] == "t"

        def test_names_that_the_guests_shell_might_use():
            assert (os.environ["line"], os.environ["bb"]) == ("one\\ntwo", "/nowhere")

        def test_withheld(): assert "SSH_AUTH_SOCK" not in os.environ

        def test_last_and_failing(record_property):
            record_property("policy", Number.THREE)
            record_property("path", Path("/a/b"))
            record_property("low", -2**31 - 1)
            assert False
        """
    )
    for name, value in {
        "MYPROJECT_OBJ": "x",
        "TMUX": "t",
        "SSH_AUTH_SOCK": "/nowhere",
        "line": "one\ntwo",
        "warm": "1",
        "bb": "/nowhere",
    }.items():
        pytester._monkeypatch.setenv(name, value)
    result = run(pytester, "--guest-env=GIVEN=a=b c", "--guest-env", "TMUX")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    failed = {
        "test_odd_everything",
        "test_forks_and_the_child_fails",
        "test_last_and_failing",
    }
    found = outcomes(pytester)
    assert {name for name, outcome in found.items() if outcome == "failed"} == failed
    assert {outcome for name, outcome in found.items() if name not in failed} == {"passed"}
    cases = list(ET.parse(pytester.path / "junit.xml").iter("testcase"))
    assert len(cases) == len(found)
    properties = {p.get("name"): p.get("value") for p in cases[-1].iter("property")}
    three = "3" if sys.version_info >= (3, 11) else "Number.THREE"
    assert properties == {"policy": three, "path": "/a/b", "low": "-2147483649"}
    result.stdout.fnmatch_lines(["bpfunit: not set in guests: *SSH_AUTH_SOCK*"])
    assert "TMUX" not in result.stdout.str().partition("not set in guests")[2].partition("\n")[0]


def test_deaths_and_internal_errors_leave_no_test_without_an_outcome(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeconftest(
        """
        import os
        def pytest_runtest_logreport(report):
            if os.environ.get("BPFUNIT_GUEST") and "breaks_pytest" in report.nodeid:
                raise RuntimeError("in a plugin")
        """
    )
    pytester.makepyfile(
        """
        import os, threading, time
        from pathlib import Path

        def test_before(): pass
        def test_exits(): os._exit(0)
        def test_breaks_pytest(): pass
        def test_between(): pass
        def test_thread_kills():
            threading.Timer(0.2, os._exit, (0,)).start(); time.sleep(50)
        def test_panics_last(): Path("/proc/sysrq-trigger").write_text("c")
        """
    )
    result = run(pytester, "--guest-restarts=5")
    assert result.ret == 70
    assert outcomes(pytester) == {
        "test_before": "passed",
        "test_exits": "crashed",
        "test_breaks_pytest": "crashed",
        "test_between": "passed",
        "test_thread_kills": "crashed",
        "test_panics_last": "crashed",
    }
    result.stdout.fnmatch_lines(["*internal error: RuntimeError: in a plugin*"])


def test_kernels_that_collect_differently_and_one_that_cannot_are_not_green(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        test_differs=f"""
        import os, pytest
        new = not os.uname().release.startswith("{OTHER}.")
        @pytest.mark.parametrize("value", [1, 2] if new else [1])
        def test_value(value): pass
        """,
        test_breaks=f"""
        import os
        if os.uname().release.startswith("{OTHER}."):
            raise RuntimeError("only here")
        def test_elsewhere(): pass
        """,
    )
    result = run(pytester, "--kernel", OTHER)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert outcomes(pytester) == {
        f"test_value[1]@{KERNEL}": "passed",
        f"test_value[2]@{KERNEL}": "passed",
        f"test_value[1]@{OTHER}": "passed",
        f"test_elsewhere@{KERNEL}": "passed",
    }


@pytest.mark.parametrize("reason", ["too little", "wrong entry"])
def test_coverage_that_fails_fails_the_run(pytester: pytest.Pytester, reason: str) -> None:
    pytester.makepyfile(
        f"""
        import bpfunit
        def test_runs_one_path():
            with bpfunit.load({str(compiled("cover"))!r}, programs=["mark"]) as obj:
                assert obj.programs.mark.run(data=bytes(300)).retval == 2
        """
    )
    options = ["--bpf-cov-fail-under=99"]
    if reason == "wrong entry":
        options = ["--bpf-cov-exclude=bpf-coverage.toml"]
        entry = '[[unreachable]]\nfile = "nowhere.c"\nline = "none"\nreason = "x"\n'
        (pytester.path / "bpf-coverage.toml").write_text(entry)
    result = run(pytester, "--bpf-cov", *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["FAIL *"])


def test_another_libbpf_by_the_loaders_path_is_the_one_in_guests(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctypes.CDLL("libbpf.so.1")
    (theirs,) = {
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "/libbpf.so.1" in line
    }
    mine = pytester.mkdir("mine") / "libbpf.so.1"
    shutil.copy(theirs, mine)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(mine.parent))
    monkeypatch.delenv("BPFUNIT_SNAPSHOT", raising=False)
    pytester.makepyfile(
        f"""
        import bpfunit
        from pathlib import Path
        def test_mine(bpf_load):
            bpf_load({str(compiled("cover"))!r}, programs=["mark"])
            maps = Path("/proc/self/maps").read_text()
            assert {str(mine)!r} in maps and {theirs!r} not in maps
        """
    )
    result = run(pytester, "--guest-accel=tcg")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["bpfunit: kernel *; boots, since LD_LIBRARY_PATH is set"])
