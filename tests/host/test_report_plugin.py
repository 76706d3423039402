"""``--bpf-html``: pytest's reports become the outcomes of the HTML report."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.host

SUITE = """
import pytest

def test_good(): print("said on the way")
def test_bad(): assert 1 == 2
@pytest.mark.skip(reason="not today")
def test_skipped(): ...
@pytest.mark.xfail(reason="known")
def test_xfailed(): assert False
@pytest.fixture
def broken(): raise RuntimeError("no set-up")
def test_error(broken): ...
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run the suite once, in a process of its own, and return the report."""
    directory = tmp_path_factory.mktemp("suite")
    (directory / "test_suite.py").write_text(SUITE)
    (directory / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "--bpf-html=out/run.html", "-p", "no:xdist"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search("^HTML report written to .*run.html$", done.stdout, re.MULTILINE)
    return (directory / "out" / "run.html").read_text()


def row(page: str, name: str) -> str:
    """Return the part of the page that is about one test."""
    start = page.index(f'<span class="name">{name}</span>')
    return page[start : page.find('<details class="test', start)]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("test_good", "passed"),
        ("test_bad", "failed"),
        ("test_skipped", "skipped"),
        ("test_xfailed", "xfailed"),
        ("test_error", "error"),
    ],
)
def test_each_outcome_has_its_own_name(page: str, name: str, status: str) -> None:
    assert re.findall(r'class="cell (\w+)"', row(page, name)) == [status]


def test_a_failure_shows_its_assertion_and_a_skip_its_reason(page: str) -> None:
    assert "assert 1 == 2" in row(page, "test_bad")
    assert "not today" in row(page, "test_skipped")
    assert "no set-up" in row(page, "test_error")


def test_output_of_a_passing_test_is_kept_once(page: str) -> None:
    assert row(page, "test_good").count("said on the way") == 1


def test_the_command_is_on_the_page(page: str) -> None:
    assert "--bpf-html=out/run.html" in page


def test_a_directory_that_cannot_be_made_is_said_and_fails_no_test(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile("def test_good(): ...")
    pytester.path.joinpath("file").touch()
    result = pytester.runpytest_subprocess("--bpf-html=file/run.html", "-p", "no:xdist")
    result.stdout.fnmatch_lines(["FAIL write the HTML report: *file/run.html: *"])
    assert result.ret == 0
