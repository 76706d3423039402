"""Results by kernel: what xdist's workers report becomes table, JSON, Markdown and JUnit.

Each worker is a process of its own that puts a label into its ids, as a guest does; one dies by
SIGKILL, as a guest does.
"""

from __future__ import annotations

import re
import signal
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from matrix_runs import Finished, run

from bpfunit.report import Status

pytestmark = pytest.mark.host

DOCUMENT = Path(__file__).parents[2] / "docs" / "matrix.md"

SUITE = """
import os, signal, pytest

def test_good(record_property):
    record_property("policy", __import__("signal").SIGKILL)
def test_differs(label): assert label != "5.10", "only newer kernels can"
def test_fails_everywhere(): assert False
@pytest.mark.skip(reason="not | today")
def test_skipped(): ...
@pytest.mark.xfail(reason="known")
def test_xfailed(): assert False
@pytest.fixture
def broken(): raise RuntimeError("no set-up")
def test_error(broken): ...
class TestGroup:
    @pytest.mark.parametrize("value", ["a::b", "c@d"])
    def test_value(self, value): pass
"""
DEADLY = """
import os, signal

def test_first(): pass
def test_deadly(label):
    if label == "5.10":
        os.kill(os.getpid(), signal.SIGKILL)
def test_after(): pass
def test_last(): pass
"""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run with every outcome, on two kernels."""
    directory = tmp_path_factory.mktemp("mixed")
    return run(directory, SUITE, "--junitxml=out/merged.xml", labels=("5.10", "7.3"))


@pytest.fixture(scope="module")
def deadly(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run in which one of two guests dies and is not replaced."""
    directory = tmp_path_factory.mktemp("deadly")
    return run(directory, DEADLY, "--max-worker-restart=0", labels=("5.10", "7.3"))


def test_every_outcome_is_counted_on_its_kernel(mixed: Finished):
    assert mixed.code == mixed.json["exit_code"] == pytest.ExitCode.TESTS_FAILED
    kernels = mixed.kernels
    assert {release: kernel["counts"] for release, kernel in kernels.items()} == {
        "5.10": {"error": 1, "failed": 2, "xfailed": 1, "skipped": 1, "passed": 3},
        "7.3": {"error": 1, "failed": 1, "xfailed": 1, "skipped": 1, "passed": 4},
    }
    assert not kernels["5.10"]["ok"]
    assert not kernels["7.3"]["ok"]
    assert mixed.outcomes["TestGroup::test_value[c@d]"] == {"5.10": "passed", "7.3": "passed"}


def test_table_closes_the_run(mixed: Finished):
    table = mixed.text[mixed.text.index("kernel  passed") :]
    head = r"kernel  passed  failed  skipped  not applicable  died  xfailed +time\n"
    assert re.match(head, table)
    assert re.search(r"\n5.10 +3 +3 +1 +0 +0 +1 ", table)
    assert re.search(r"\n7.3 +4 +2 +1 +0 +0 +1 ", table)


def test_progress_ends_at_a_hundred_percent(mixed: Finished):
    percentages = [int(found) for found in re.findall(r"\[ *(\d+)%\]\n", mixed.text)]
    assert percentages[-1:] == [100]
    assert percentages == sorted(percentages)


def test_a_test_that_differs_is_called_out_with_the_kernels_on_each_side(mixed: Finished):
    assert mixed.json["differing"] == ["test_suite.py::test_differs"]
    called = "differs by kernel: test_suite.py::test_differs\n  passed on 7.3\n  failed on 5.10\n"
    assert called in mixed.text
    part = mixed.page[mixed.page.index("### Passes on") : mixed.page.index("### What went")]
    assert part.splitlines()[2:5] == [
        "- `test_suite.py::test_differs`",
        "  - passed on 7.3",
        "  - failed on 5.10",
    ]


def test_a_death_is_no_failure_and_what_never_ran_is_missing(deadly: Finished):
    assert deadly.code != 0
    assert deadly.outcomes["test_deadly"] == {"5.10": "crashed", "7.3": "passed"}
    assert deadly.outcomes["test_after"] == {"5.10": "missing", "7.3": "passed"}
    assert deadly.outcomes["test_last"] == {"5.10": "missing", "7.3": "passed"}
    assert {release: k["ok"] for release, k in deadly.kernels.items()} == {
        "5.10": False,
        "7.3": True,
    }
    # A test that never ran did not fail.
    assert deadly.json["differing"] == ["test_suite.py::test_deadly"]
    assert re.search(r"kernel .* died  missing +time\n", deadly.text)
    assert re.search(r"\n5.10 +1 +0 +0 +0 +1 +2 ", deadly.text)
    assert "missing: 2 tests never ran on 5.10\n" in deadly.text


def test_junit_of_each_kernel_has_its_deaths_and_gaps_as_errors(deadly: Finished):
    old, new = deadly.suite("junit-5.10.xml"), deadly.suite("junit-7.3.xml")
    assert old.attrib.items() >= {"tests": "4", "errors": "3", "failures": "0"}.items()
    assert new.attrib.items() >= {"tests": "4", "errors": "0", "failures": "0"}.items()
    types = {case.get("name"): [e.get("type") for e in case] for case in old.iter("testcase")}
    assert types == {
        "test_first": [],
        "test_deadly": ["crashed"],
        "test_after": ["missing"],
        "test_last": ["missing"],
    }


def test_a_property_that_no_channel_carries_is_in_junit_as_its_text(mixed: Finished):
    for name in ("junit-5.10.xml", "junit-7.3.xml", "merged.xml"):
        cases = {
            case.get("name", "").partition("@")[0]: case
            for case in mixed.suite(name).iter("testcase")
        }
        found = [(p.get("name"), p.get("value")) for p in cases["test_good"].iter("property")]
        assert found == [("policy", str(signal.SIGKILL))]


def test_junit_names_and_counts_agree_with_pytests_own(mixed: Finished):
    def names(suite: ET.Element, label: str) -> list[tuple[str, str]]:
        cases = [(c.get("classname", ""), c.get("name", "")) for c in suite.iter("testcase")]
        # Pytest 9 closes the bracket of a parameter a second time, after the label.
        cases = [(c, re.sub(r"(\]@[\w.]+)\]$", r"\1", n)) for c, n in cases]
        return sorted((c, n.removesuffix(label)) for c, n in cases if n.endswith(label))

    merged = mixed.suite("merged.xml")
    total = {"tests": 0, "errors": 0, "failures": 0, "skipped": 0}
    for label in ("5.10", "7.3"):
        suite = mixed.suite(f"junit-{label}.xml")
        assert ("test_suite.TestGroup", "test_value[a::b]") in names(suite, "")
        assert names(suite, "") == names(merged, f"@{label}")
        total = {key: value + int(suite.get(key, "")) for key, value in total.items()}
    assert total == {key: int(merged.get(key, "")) for key in total}


def test_a_run_without_kernels_has_one_row_and_stops_with_the_rest_missing(tmp_path: Path):
    suite = "def test_good(): pass\ndef test_bad(): assert False\ndef test_later(): pass"
    done = run(tmp_path, suite, "-x", "--dist=no")

    assert done.code == pytest.ExitCode.TESTS_FAILED
    assert list(done.kernels) == ["host"]
    assert done.outcomes == {
        "test_good": {"host": "passed"},
        "test_bad": {"host": "failed"},
        "test_later": {"host": "missing"},
    }


def test_a_file_that_cannot_be_collected_is_noted(tmp_path: Path):
    done = run(tmp_path, "import nowhere_to_be_found", labels=("5.10",))

    assert done.code != 0
    assert any("nowhere_to_be_found" in remark for remark in done.json["remarks"])


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").touch()
    done = run(tmp_path, "def test_good(): pass", "--dist=no", "--matrix-json=file/m.json")
    assert re.search(r"FAIL write --matrix-json: .*file/m.json: ", done.text)


def test_every_key_and_outcome_of_the_json_is_described(mixed: Finished):
    def keys(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value))
        if not isinstance(value, dict):
            return set()
        return set(value).union(*map(keys, value.values()))

    names = keys(mixed.json) - {"5.10", "7.3"}
    described = set(re.findall(r"`([\w-]+)`", DOCUMENT.read_text(encoding="utf-8")))
    assert names | {status.value for status in Status} - {"absent"} <= described
