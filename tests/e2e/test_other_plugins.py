"""Plugins that projects bring along, each in a run of its own: they work, or are refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from bpfunit._paths import cache_dir

pytestmark = pytest.mark.host
pytest_plugins = ["pytester"]

KERNEL = os.environ.get("BPFUNIT_E2E_KERNEL", "6.12")


@dataclass(frozen=True)
class Neighbour:
    """A plugin and a run with it.

    Attributes:
        packages: what to install, by name and version.
        suite: the tests.
        args: for pytest.
        code: the run's exit code.
        passed: how many tests pass.
        failed: how many fail.
        says: patterns of what is shown.
        files: what the run leaves on the host, by name, with a pattern of the content.
    """

    packages: tuple[str, ...]
    suite: str
    args: tuple[str, ...] = ()
    code: int = 0
    passed: int = 1
    failed: int = 0
    says: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()


PASSES = "def test_passes(): pass\n"
FAILS_ONCE = """
seen = []
def test_fails_once():
    seen.append(1)
    assert len(seen) == 2
"""
NEIGHBOURS = {
    "cov": Neighbour(
        ("pytest-cov==7.1.0", "coverage==7.17.5"),
        "from helper import used_in_guests\ndef test_passes(): assert used_in_guests(True) == 1\n",
        ("--cov=helper", "--cov-report=term-missing", "--cov-report=json"),
        says=(r"helper\.py +4 +1 +75% +4",),
        files=(("coverage.json", r'"missing_lines": \[4\]'),),
    ),
    "cov below its limit": Neighbour(
        ("pytest-cov==7.1.0", "coverage==7.17.5"),
        "from helper import used_in_guests\ndef test_passes(): assert used_in_guests(True) == 1\n",
        ("--cov=helper", "--cov-fail-under=90"),
        code=1,
    ),
    "rerunfailures installed": Neighbour(("pytest-rerunfailures==16.7",), PASSES),
    "rerunfailures": Neighbour(
        ("pytest-rerunfailures==16.7",), FAILS_ONCE, ("--reruns=1",), says=("1 passed, 1 rerun",)
    ),
    "forked": Neighbour(
        ("pytest-forked==1.7.5",),
        PASSES,
        ("--forked",),
        code=4,
        passed=0,
        says=("ERROR: --forked and --kernel do not go together: .*leave --forked out",),
    ),
    "timeout": Neighbour(
        ("pytest-timeout==2.4.0",),
        PASSES + "import time\ndef test_sleeps(): time.sleep(60)\n",
        ("--timeout=3",),
        code=1,
        failed=1,
        says=(r"Timeout \(>3\.0s\) from pytest-timeout",),
    ),
    "randomly": Neighbour(
        ("pytest-randomly==5.1.0",),
        "import pytest\n@pytest.mark.parametrize('n', range(3))\n"
        "def test_seed(n, request): assert request.config.option.randomly_seed == 7\n",
        ("--randomly-seed=7",),
        passed=3,
        says=("Using --randomly-seed=7",),
    ),
    "random-order": Neighbour(
        ("pytest-random-order==1.2.0",),
        "import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_any(n): pass\n",
        ("--random-order",),
        passed=4,
    ),
    "mock": Neighbour(
        ("pytest-mock==3.17.0",),
        "import os\ndef test_patched(mocker):\n"
        "    mocker.patch('os.getpid', return_value=7); assert os.getpid() == 7\n"
        "def test_put_back(): assert os.getpid() != 7\n",
        passed=2,
    ),
    "asyncio": Neighbour(
        ("pytest-asyncio==1.5.0",),
        "import asyncio\nasync def test_awaits(): assert await asyncio.sleep(0, 5) == 5\n",
        ("--asyncio-mode=auto",),
    ),
    "anyio": Neighbour(
        ("anyio==4.16.0",),
        "import anyio, pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n"
        "@pytest.mark.anyio\nasync def test_sleeps(): await anyio.sleep(0)\n",
    ),
    "html": Neighbour(
        ("pytest-html==4.2.0", "pytest-metadata==3.1.1"),
        PASSES + "def test_fails(): assert 0, 'said so'\n",
        ("--html=report.html",),
        code=1,
        failed=1,
        files=(("report.html", f"test_fails@{KERNEL}"),),
    ),
    "sugar": Neighbour(  # which has a last line of its own
        ("pytest-sugar==1.1.1", "termcolor==3.3.0"),
        PASSES,
        ("--force-sugar",),
        passed=0,
        says=(r"Results \(.*\):\s+1 passed",),
    ),
    "check": Neighbour(
        ("pytest-check==3.0.3",),
        "from pytest_check import check\n"
        "def test_two():\n    check.equal(1, 2); check.equal(3, 4)\n",
        code=1,
        passed=0,
        failed=1,
        says=("Failed Checks: 2",),
    ),
    "subtests": Neighbour(
        (),  # pytest 9 has them, and refuses the plugin
        "def test_parts(subtests):\n    for n in range(3):\n"
        "        with subtests.test(n=n): assert n != 1\n",
        code=1,
        passed=0,
        failed=2,
    ),
    "repeat": Neighbour(("pytest-repeat==0.9.4",), PASSES, ("--count=3",), passed=3),
    "instafail": Neighbour(
        ("pytest-instafail==0.5.0",),
        PASSES + "def test_fails(): assert 0, 'said so'\n",
        ("--instafail",),
        code=1,
        failed=1,
        says=("said so",),
    ),
    "xdist's own -n": Neighbour(
        (),
        "import os, pytest\n@pytest.mark.parametrize('n', range(4))\n"
        "def test_any(n): assert os.environ['PYTEST_XDIST_WORKER_COUNT'] == '2'\n",
        ("-n2",),
        passed=4,
    ),
}


def installed(package: str) -> Path:
    """Install a package for itself, once on this machine; return the directory to import from."""
    directory = cache_dir() / "test-plugins" / package
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if not directory.is_dir():
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            fresh = directory.with_name(f"{package}.new")
            subprocess.run([*command, "--target", fresh, package], check=True, timeout=300)
            fresh.rename(directory)
    return directory


# Each is other files that Python reads, and so takes a snapshot of its own. Behind these is code of
# bpfunit's that is for them.
USUAL = {"cov", "rerunfailures", "forked", "timeout", "xdist's own -n"}
assert set(NEIGHBOURS) >= USUAL


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[] if one in USUAL else pytest.mark.long) for one in NEIGHBOURS],
)
def test_it_works_in_guests_or_is_refused_in_a_sentence(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    one = NEIGHBOURS[name]
    path = os.pathsep.join(str(installed(package)) for package in one.packages)
    if path:
        monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("BPFUNIT_SNAPSHOT", "0")  # else each would make one of its own
    pytester.makepyfile(one.suite)
    pytester.path.joinpath("helper.py").write_text(
        "def used_in_guests(here):\n    if here:\n        return 1\n    return 2\n"
    )
    result = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--kernel", KERNEL, *one.args, timeout=900
    )
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == one.code, text
    if one.passed or one.failed:
        outcomes = result.parseoutcomes()
        assert (outcomes.get("passed", 0), outcomes.get("failed", 0)) == (one.passed, one.failed)
    for pattern in one.says:
        assert re.search(pattern, text), text
    for file, pattern in one.files:
        assert re.search(pattern, (pytester.path / file).read_text())
