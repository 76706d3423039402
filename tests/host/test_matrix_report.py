"""The matrix from plain data: what text and XML make of names and logs that are hard to show."""

from __future__ import annotations

import datetime as dt
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bpfunit.report import KernelInfo, Outcome, Run, Section, Status, matrix
from bpfunit.report.matrix_junit import write_junit

pytestmark = pytest.mark.host

OLD = KernelInfo("5.10.0-46-amd64", ("bullseye-security 5.10.257-1",), "5.10")
NEW = KernelInfo("7.3.4+deb13-amd64", (), "7.3")


def run_of(*outcomes: Outcome, remarks: list[str] | None = None) -> Run:
    """A run on both kernels."""
    return Run(
        title="bpfunit: hook",
        command="pytest --kernel 5.10 --kernel 7.3",
        started=dt.datetime(2026, 11, 22, tzinfo=dt.timezone.utc),
        seconds=61.0,
        exit_code=1,
        kernels=[OLD, NEW],
        outcomes=list(outcomes),
        remarks=remarks or [],
    )


def test_a_kernel_on_which_nothing_ran_is_not_green():
    run = run_of(Outcome("t.py::test", NEW.name, Status.PASSED))
    assert matrix.is_bad(run, OLD)
    assert not matrix.is_bad(run, NEW)
    assert matrix.markdown(run).startswith("## 2 kernels, trouble on 1 of them\n")


def test_rare_outcomes_have_a_column_only_when_they_occur():
    passed = Outcome("t.py::test", OLD.name, Status.PASSED, 75.0)
    xpassed = Outcome("t.py::test", NEW.name, Status.XPASSED)
    usual = ["kernel", "passed", "failed", "skipped", "not applicable", "died", "time"]
    assert matrix.table(run_of(passed))[0] == usual
    head, old, new = matrix.table(run_of(passed, xpassed))
    assert head == [*usual[:-1], "xpassed", "time"]
    assert old == [OLD.name, "1", "0", "0", "0", "0", "0", "1 min 15 s"]
    assert new == [NEW.name, "0", "0", "0", "0", "0", "1", "0 ms"]


def test_lines_of_the_table_have_one_width():
    run = run_of(Outcome("t.py::test", OLD.name, Status.PASSED))
    assert len({len(line) for line in matrix.text_table(run)}) == 1


def test_a_kernel_that_interprets_programs_says_so_in_the_table_and_the_json():
    run = run_of(Outcome("t.py::test", OLD.name, Status.PASSED))
    run.kernels[1] = KernelInfo("6.12.107+deb13-s390x", (), "6.12/s390x", interpreted=True)
    assert [line[0] for line in matrix.table(run)[1:]] == [
        OLD.name,
        "6.12.107+deb13-s390x (interpreted)",
    ]
    told = [(one["release"], one["interpreted"]) for one in matrix.data(run)["kernels"]]
    assert told == [(OLD.name, False), ("6.12.107+deb13-s390x", True)]


@pytest.mark.parametrize("other", [Status.SKIPPED, Status.MISSING, Status.NOT_APPLICABLE])
def test_what_did_not_run_does_not_differ(other: Status):
    passed = Outcome("t.py::test", NEW.name, Status.PASSED)
    assert matrix.differing(run_of(Outcome("t.py::test", OLD.name, other), passed)) == []


def test_markdown_keeps_names_as_they_are():
    name = "t.py::test[`a`|<b>]"
    page = matrix.markdown(run_of(Outcome(name, OLD.name, Status.FAILED, reason="`x` is not `y`")))
    assert "- ``t.py::test[`a`|<b>]``\n" in page
    assert f"  - failed on {OLD.name}: `` `x` is not `y` ``\n" in page


def test_a_replaced_pin_is_in_the_notes():
    remark = "kernel 5.10.0-46-amd64: in place of the pinned 5.10.0-45-amd64"
    run = run_of(Outcome("t.py::test", OLD.name, Status.PASSED), remarks=[remark])
    assert f"- {remark}\n" in matrix.markdown(run)
    assert f"- {OLD.name}: bullseye-security 5.10.257-1\n" in matrix.markdown(run)


def test_junit_survives_the_bytes_of_a_dying_console(tmp_path: Path):
    words = "Kernel panic \x00\x1b[31m <&> \ufffe"
    dead = Outcome(
        "d/t.py::Group::test[x::y]",
        OLD.name,
        Status.CRASHED,
        1.5,
        "kernel panic",
        [Section("traceback", "kernel panic"), Section("last words", words)],
    )
    old, new = write_junit(run_of(dead), tmp_path)

    case = next(ET.parse(old).iter("testcase"))
    assert case.attrib == {"classname": "d.t.Group", "name": "test[x::y]", "time": "1.500"}
    assert case[0].attrib == {"type": "crashed", "message": "kernel panic"}
    assert case[1].text == "last words:\nKernel panic #x00#x1B[31m <&> #xFFFE"
    assert list(ET.parse(new).iter("testcase")) == []
    assert old.name == "junit-5.10.0-46-amd64.xml"
