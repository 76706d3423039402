"""A user's session with --bpf-cov: workers in two kernels, one report on the host."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.objects import compiled

pytestmark = pytest.mark.host

OLD, NEW = "5.10", "6.12"
TESTS = """
import os, pytest
import bpfunit

pytestmark = pytest.mark.guest
OLD = os.uname().release.startswith({old!r})
IPV4 = bytes(12) + b"\\x08\\x00" + bytes(2) + (70).to_bytes(2, "big") + bytes(20)


@pytest.fixture
def programs(bpf_load):
    return bpf_load({object!r}, programs=["classify", "mark"]).programs


def test_arp_passes(programs):
    assert programs.classify.run(data=bytes(12) + b"\\x08\\x06" + bytes(40)).retval == 2


def test_ipv4_is_sent_back_where_it_is_tried(programs):
    if not OLD:
        assert programs.classify.run(data=IPV4).retval == 3


def test_long_packets_are_shot(programs):
    assert programs.mark.run(data=bytes(300)).retval == 2


def test_that_fails(programs):
    assert programs.mark.run(data=bytes(64)).retval == 99
"""


Session = tuple[Path, int, str]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """One session of both kernels, whose outcome all tests look at."""
    home = tmp_path_factory.mktemp("session")
    (home / "pytest.ini").write_text("[pytest]\n")
    text = TESTS.format(old=OLD, object=str(compiled("cover")))
    (home / "test_session.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "--kernel", OLD, "--kernel", NEW]
    command += ["--bpf-cov", "--bpf-cov-report=term-missing", "--bpf-cov-report=html:html"]
    command += ["--bpf-cov-report=lcov:x.info", "--bpf-cov-report=xml:x.xml"]
    command += ["--bpf-cov-fail-under=99"]
    done = subprocess.run(
        command, cwd=home, capture_output=True, text=True, timeout=600, check=False
    )
    return home, done.returncode, done.stdout + done.stderr


def test_the_report_names_both_kernels_and_merges_them(session: Session) -> None:
    _, code, out = session
    assert code == 1, out
    (title,) = re.findall(r"=+ BPF coverage: (.*?) =+", out)
    assert [release.split("-")[0].rpartition(".")[0] for release in title.split(", ")] == [OLD, NEW]
    (row,) = re.findall(r"^\S*cover\.bpf\.c +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)%", out, re.MULTILINE)
    lines, lines_missed, branches, missed, _ = map(int, row)
    assert lines > 20
    assert 0 < lines_missed < lines
    assert 0 < missed < branches


def test_a_branch_taken_on_one_kernel_only_is_visible(session: Session) -> None:
    _, _, out = session
    assert not re.findall(rf"^on {OLD}\S* only", out, re.MULTILINE)
    assert re.findall(rf"^on {NEW}\S* only: \S*cover\.bpf\.c:\d+ -> \d+", out, re.MULTILINE)


def test_what_the_constant_rules_out_is_unreachable_here(session: Session) -> None:
    _, _, out = session
    assert re.findall(
        r"^unreachable here: \S*cover\.bpf\.c:\d+ -> .*verifier proves", out, re.MULTILINE
    )


def test_too_little_coverage_is_said(session: Session) -> None:
    _, _, out = session
    assert "FAIL required BPF coverage of 99% not reached" in out


def test_a_failing_tests_report_shows_the_path_of_its_run(session: Session) -> None:
    _, _, out = session
    assert re.search(r"cover\.bpf\.c:\d+ +if \(skb->len > 200\) \{ +→ \d+", out)


def _test(name: str) -> str:
    """Return the test's function; the part behind ``@`` names the kernel."""
    return name.partition("::")[2].partition("@")[0]


def test_each_branch_knows_its_tests(session: Session) -> None:
    home, _, _ = session
    data = json.loads((home / ".bpf-coverage.json").read_text())
    names = {_test(name) for name in data["tests"]}
    assert names == {
        "test_arp_passes",
        "test_long_packets_are_shot",
        "test_ipv4_is_sent_back_where_it_is_tried",
        "test_that_fails",
    }
    by_program = {
        (program["model"]["program"], program["model"]["kernel"].startswith(NEW)): {
            _test(data["tests"][index]) for tests in program["tests"] for index in tests
        }
        for program in data["programs"]
    }
    assert by_program[("mark", True)] == {"test_long_packets_are_shot", "test_that_fails"}
    tried = "test_ipv4_is_sent_back_where_it_is_tried"
    assert tried in by_program[("classify", True)]
    assert tried not in by_program[("classify", False)]


def test_files_are_written_on_the_host(session: Session) -> None:
    home, _, _ = session
    assert (home / "html" / "index.html").is_file()
    assert "cover.bpf.c" in (home / "x.info").read_text()
    assert 'branch="true"' in (home / "x.xml").read_text()
