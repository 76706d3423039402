"""From counts to lines, branches and reports, on programs made by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import coverage_samples
import pytest
from coverage_samples import (
    FILE,
    NEW,
    OLD,
    RETURN,
    Source,
    collected,
    hits,
    if_else,
    sample_data,
)

from bpfunit.coverage.counts import BlockCounts, conservation_errors
from bpfunit.coverage.data import CoverageData, CoverageDataError, payload
from bpfunit.coverage.exclusions import ExclusionError, apply_exclusions, read_exclusions
from bpfunit.coverage.model import Model, describe
from bpfunit.coverage.path import Path as RunPath
from bpfunit.coverage.probes import Mode, place_probes
from bpfunit.coverage.reports import ReportError, ReportOptions, ReportRequest, Reports
from bpfunit.coverage.sites import SourceFile, merge_sources
from bpfunit.coverage.summary import Totals, missed_lines
from bpfunit.rewrite import Patcher
from bpfunit.rewrite import insn as i

pytestmark = pytest.mark.host


def files_of(data: CoverageData) -> SourceFile:
    (file,) = merge_sources(data).values()
    return file


def outcomes(file: SourceFile, line: int = 10) -> dict[str, int]:
    """Destination and count of each outcome of the only branch on a line."""
    (branch,) = file.lines[line].branches
    return {outcome.leads_to(FILE): outcome.count for outcome in branch.outcomes}


def test_a_branch_has_an_outcome_for_each_line_it_leads_to() -> None:
    model = if_else().model(NEW)
    file = files_of(collected(("t", model, hits(model, entry0=3, taken0=3))))
    assert outcomes(file) == {"12": 0, "11": 3}
    assert {n: line.count for n, line in file.lines.items()} == {9: 3, 10: 3, 11: 3, 12: 0}


def test_copies_of_a_branch_merge_though_one_is_inverted() -> None:
    one, two = if_else("a").model(NEW), if_else("b", inverted=True).model(NEW)
    data = collected(
        ("t1", one, hits(one, entry0=1, taken0=1)), ("t2", two, hits(two, entry0=5, taken0=5))
    )
    file = files_of(data)
    assert outcomes(file) == {"12": 5, "11": 1}
    (branch,) = file.lines[10].branches
    assert branch.copies == 2
    assert [sorted(o.tests) for o in branch.outcomes] == [[1], [0]]


def test_copies_that_return_to_different_lines_are_matched_by_elimination() -> None:
    source = Source("inlined")
    for start, home in ((20, 31), (22, 41)):
        del start
        source.line(10, "\tif (!x)", i.branch_imm(i.JEQ, 1, 0, 1), column=6)
        source.line(home, f"\tcaller {home}", i.mov_imm(0, 0))
        source.line(11, "\t\tfail();", i.mov_imm(0, 1))
    source.line(50, "}", i.exit_())
    model = source.model(NEW)
    file = files_of(collected(("t", model, hits(model, entry0=1, fall0=1, taken2=1))))
    assert outcomes(file) == {"31": 1, "11": 1}
    (branch,) = file.lines[10].branches
    assert [len(outcome.targets) for outcome in branch.outcomes] == [2, 1]


def test_a_switch_is_one_branch_with_an_outcome_for_each_case() -> None:
    source = Source("switch")
    jumps = [i.branch_imm(i.JEQ, 1, n, 4 - k + 2 * k) for k, n in enumerate((1, 2, 3))]
    for jump in jumps:
        source.line(10, "\tswitch (x) {", jump, column=2)
    source.line(19, "\tdefault: return;", *RETURN)
    for n in (11, 12, 13):
        source.line(n, f"\tcase {n}: return;", *RETURN)
    model = source.model(NEW)
    file = files_of(collected(("t", model, hits(model, entry0=2, fall0=2, taken1=2))))
    assert outcomes(file) == {"11": 0, "12": 2, "13": 0, "19": 0}


def test_what_every_verifier_removes_is_unreachable_and_not_missed() -> None:
    model = if_else().model(NEW, dead={1})
    file = files_of(collected(("t", model, hits(model, entry0=1, taken0=1))))
    assert [o.reachable for o in file.lines[10].branches[0].outcomes] == [False, True]
    assert not file.lines[12].counted
    assert outcomes(file)["12"] == 0
    assert missed_lines(file) == []


def test_what_one_kernel_can_reach_is_missed_if_nothing_takes_it() -> None:
    old, new = if_else().model(OLD, dead={1}), if_else().model(NEW)
    data = collected(("t", old, hits(old, entry0=1, taken0=1)), ("t", new, hits(new, entry0=1)))
    (branch,) = files_of(data).lines[10].branches
    assert branch.outcomes[0].counted
    assert branch.outcomes[0].dead_on == [OLD]


def test_flags_do_not_add_up_and_counters_do() -> None:
    for mode, expected in ((Mode.FLAGS, 1), (Mode.COUNTERS, 5)):
        source = Source("join")
        source.line(10, "\tif (x)", i.branch_imm(i.JEQ, 1, 0, 1))
        source.line(11, "\t\ty();", i.mov_imm(0, 1))
        source.line(12, "}", *RETURN)
        model = source.model(NEW, mode=mode)
        counts = [5, 2, 3] if mode is Mode.COUNTERS else [1, 1, 1]
        assert BlockCounts(model, counts).block(2) == expected


def test_counters_that_do_not_add_up_are_reported() -> None:
    model = if_else().model(NEW)
    assert conservation_errors(model, [5, 2, 3]) == []
    (error,) = conservation_errors(model, [5, 2, 2])
    assert "5 in, 2 taken + 2 fallen through" in error


def test_a_path_names_the_lines_of_one_run() -> None:
    model = if_else().model(NEW)
    path = RunPath([(model, [1, 0, 1])])
    assert str(path) == "main.c:10  if (!x)  → 11"


def test_neighbouring_missed_lines_are_joined() -> None:
    file = SourceFile(FILE)
    source = Source("lines")
    for number in (3, 4, 6, 9):
        source.line(number, f"l{number}", i.mov_imm(0, 0))
    source.line(12, "}", i.exit_())
    model = source.model(NEW)
    file = files_of(collected(("t", model, {})))
    assert missed_lines(file) == ["3-12"]


def test_hundred_percent_is_not_shown_before_it_is_reached() -> None:
    assert Totals(1000, 1, 0, 0).shown_percent == "99%"
    assert Totals(1000, 999, 0, 0).shown_percent == "1%"
    assert Totals(0, 0, 0, 0).shown_percent == "100%"
    assert Totals(3, 0, 1, 1).percent == 75


def reports(root: Path, data: CoverageData, *requests: str, **options: object) -> Reports:
    wanted = [ReportRequest.parse(request) for request in requests]
    made = Reports(data, ReportOptions(root, [], wanted, **options))  # type: ignore[arg-type]
    made.write_files(root / "data.json")
    return made


def test_the_table_looks_like_that_of_pytest_cov(tmp_path: Path) -> None:
    model = if_else().model(NEW)
    data = collected(("t", model, hits(model, entry0=1, taken0=1)))
    assert reports(tmp_path, data, "term-missing").lines() == [
        "Name         Lines    Miss  Branch  BrMiss   Cover   Missing",
        "------------------------------------------------------------",
        "bpf/main.c       4       1       2       1     67%   12, 10->12",
        "------------------------------------------------------------",
        "TOTAL            4       1       2       1     67%",
    ]


def test_a_branch_taken_on_one_kernel_only_is_pointed_out(tmp_path: Path) -> None:
    lines = reports(tmp_path, sample_data(), "term-missing").lines()
    assert f"on {OLD} only: bpf/main.c:10 -> 12" in lines
    assert reports(tmp_path, sample_data(), "term").lines()[-1].startswith("1 notes")


def test_lcov_has_functions_branches_and_lines(tmp_path: Path) -> None:
    reports(tmp_path, sample_data(), f"lcov:{tmp_path}/x.info")
    text = (tmp_path / "x.info").read_text()
    assert "SF:bpf/main.c\nFN:9,prog\nFNDA:6,prog\n" in text
    assert "BRDA:10,6,0,1\nBRDA:10,6,1,5\nBRF:2\nBRH:2\n" in text
    assert "DA:11,5\nDA:12,1\nLF:4\nLH:4\nend_of_record\n" in text


def test_cobertura_has_rates_and_conditions(tmp_path: Path) -> None:
    model = if_else().model(NEW)
    data = collected(("t", model, hits(model, entry0=1, taken0=1)))
    reports(tmp_path, data, f"xml:{tmp_path}/x.xml")
    root = ElementTree.parse(tmp_path / "x.xml").getroot()
    assert (root.get("line-rate"), root.get("branch-rate")) == ("0.7500", "0.5000")
    line = root.find(".//line[@number='10']")
    assert line is not None
    assert line.get("condition-coverage") == "50% (1/2)"


def test_cobertura_names_files_from_the_root_also_where_clang_wrote_the_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage_samples, "FILE", f"{tmp_path}/bpf/main.c")
    model = if_else().model(NEW)
    reports(tmp_path, collected(("t", model, hits(model, entry0=1))), f"xml:{tmp_path}/x.xml")
    root = ElementTree.parse(tmp_path / "x.xml").getroot()
    assert [one.get("filename") for one in root.iter("class")] == ["bpf/main.c"]
    assert root.findtext("sources/source") == str(tmp_path)


def test_html_shows_sources_that_are_there_and_texts_where_they_are_not(tmp_path: Path) -> None:
    reports(tmp_path, sample_data(), f"html:{tmp_path}/bare")
    bare = (tmp_path / "bare" / "file0.html").read_text()
    assert 'id="L10"' in bare
    assert 'id="L1"' not in bare
    (tmp_path / "bpf").mkdir()
    full_text = "\n" * 8 + "int prog(void *x)\n\tif (!x)\n\t\treturn 0;\n\treturn 1;\n"
    (tmp_path / FILE).write_text(full_text)
    reports(tmp_path, sample_data(), f"html:{tmp_path}/full")
    full = (tmp_path / "full" / "file0.html").read_text()
    assert 'id="L1"' in full
    assert "tests/t.py::old" in full
    (tmp_path / FILE).write_text("changed since\n" * 20)
    reports(tmp_path, sample_data(), f"html:{tmp_path}/stale")
    assert "changed since" not in (tmp_path / "stale" / "file0.html").read_text()


def test_data_survives_saving_and_the_way_from_a_worker(tmp_path: Path) -> None:
    data = sample_data()
    data.refused[(NEW, "other")] = "too large"
    data.save(tmp_path / "data.json")
    again = CoverageData.load(tmp_path / "data.json")
    assert again.to_json() == data.to_json()
    model = if_else().model(NEW)
    sent = payload([model], {"other": "too large"}, NEW, {model.key: {0: 4, 2: 4}})
    received = CoverageData()
    received.add_payload("tests/t.py::new", sent)
    assert Model.from_plain(model.to_plain()) == model
    again.merge(received)
    assert outcomes(files_of(again)) == {"12": 1, "11": 9}


def failures(tmp_path: Path, data: CoverageData, **options: bool | list[str]) -> list[str]:
    settings: dict[str, Any] = {"sources": [], "requests": [ReportRequest("term")], **options}
    return Reports(data, ReportOptions(root=tmp_path, **settings)).failures()


def test_coverage_that_reached_nothing_is_a_failure(tmp_path: Path) -> None:
    (said,) = failures(tmp_path, CoverageData())
    assert "reached nothing: nothing recorded: no test loaded a BPF program" in said
    assert "--bpf-cov-partial allows it" in said
    assert failures(tmp_path, CoverageData(), partial=True) == []


def test_coverage_of_sources_that_do_not_exist_is_a_failure(tmp_path: Path) -> None:
    assert failures(tmp_path, sample_data()) == []
    (said,) = failures(tmp_path, sample_data(), sources=["wrong.c"])
    assert "no source file matches wrong.c" in said


def test_a_program_that_lacks_its_probes_is_a_failure(tmp_path: Path) -> None:
    data = sample_data()
    data.refused[(NEW, "other")] = "too large"
    assert failures(tmp_path, data) == [
        f"BPF coverage lacks other on {NEW}: too large (--bpf-cov-partial allows it)"
    ]
    assert failures(tmp_path, data, partial=True) == []


def test_a_program_that_no_probes_fit_into_is_a_failure_only_where_there_is_nothing_else(
    tmp_path: Path,
) -> None:
    data = sample_data()
    data.beyond[(NEW, "tracer")] = "libbpf's own work"
    assert failures(tmp_path, data) == []
    alone = CoverageData()
    alone.beyond[(NEW, "tracer")] = "libbpf's own work"
    (said,) = failures(tmp_path, alone)
    assert f"not instrumentable: tracer on {NEW}: libbpf's own work" in said


def test_data_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(CoverageDataError, match="expected format"):
        CoverageData.load(tmp_path / "old.json")


EXCLUSION = """
[[unreachable]]
file = "main.c"
line = "if (!x)"
to = "return 1;"
reason = "x is never null"
"""


def excluded(tmp_path: Path, text: str, data: CoverageData) -> tuple[SourceFile, list[str]]:
    path = tmp_path / "exclusions.toml"
    path.write_text(text)
    files = merge_sources(data)
    return files[FILE], apply_exclusions(files, read_exclusions(path), path.name)


def test_an_excluded_outcome_and_its_line_leave_the_total(tmp_path: Path) -> None:
    model = if_else().model(NEW)
    data = collected(("t", model, hits(model, entry0=1, taken0=1)))
    file, complaints = excluded(tmp_path, EXCLUSION, data)
    assert complaints == []
    assert len(file.outcomes) == 1
    assert file.lines[12].excluded == "x is never null"


def test_an_excluded_outcome_that_was_taken_is_a_complaint(tmp_path: Path) -> None:
    _, (complaint,) = excluded(tmp_path, EXCLUSION, sample_data())
    assert complaint.startswith("exclusions.toml: bpf/main.c:10 → main.c:12 is declared")
    assert complaint.endswith("(x is never null) and was taken 1 times")


def test_an_exclusion_that_matches_nothing_is_a_complaint(tmp_path: Path) -> None:
    text = EXCLUSION.replace("if (!x)", "if (!y)")
    _, complaints = excluded(tmp_path, text, sample_data())
    assert complaints == ["exclusions.toml: no branch matches main.c: 'if (!y)'"]


@pytest.mark.parametrize(
    "text",
    [
        "[[unreachable]]\nfile = 'x'",
        "[other]\n",
        "unreachable = 3",
        "unreachable = [3]",
        EXCLUSION.replace('"main.c"', "7"),
        "no toml",
    ],
)
def test_a_wrong_exclusions_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ExclusionError, match="read exclusions"):
        excluded(tmp_path, text, sample_data())


def pytest_with_coverage(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on one test that needs no kernel and would leave a file."""
    (directory / "test_it.py").write_text("def test_it(): open('ran', 'w').close()\n")
    command = [sys.executable, "-m", "pytest", "-q", "--bpf-cov", "--bpf-cov-partial", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no toml", r"ERROR: read exclusions .*bpf-coverage\.toml: "),
        (b"unreachable = [3]", r"expected \[\[unreachable\]\] tables only"),
        (b"\xff", r"ERROR: read exclusions .*bpf-coverage\.toml: 'utf-8' codec"),
    ],
)
def test_a_wrong_exclusions_file_ends_the_run_before_its_tests(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "bpf-coverage.toml").write_bytes(content)
    done = pytest_with_coverage(tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    assert re.search(said, done.stderr)
    assert not (tmp_path / "ran").exists()


def test_an_exclusions_file_that_is_named_has_to_be_there(tmp_path: Path) -> None:
    done = pytest_with_coverage(tmp_path, "--bpf-cov-exclude=elsewhere.toml")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: read exclusions elsewhere.toml: " in done.stderr


def test_kept_data_that_cannot_be_read_ends_the_run_before_its_tests(tmp_path: Path) -> None:
    (tmp_path / ".bpf-coverage.json").write_text("{}")
    done = pytest_with_coverage(tmp_path, "--bpf-cov-append")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --bpf-cov-append: read coverage data" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_right_exclusions_file_runs_the_tests(tmp_path: Path) -> None:
    (tmp_path / "bpf-coverage.toml").write_text("")
    done = pytest_with_coverage(tmp_path)
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    assert (tmp_path / "ran").exists()


def test_too_little_coverage_fails(tmp_path: Path) -> None:
    model = if_else().model(NEW)
    data = collected(("t", model, hits(model, entry0=1, taken0=1)))
    assert reports(tmp_path, data, "term", fail_under=60.0).failures() == []
    assert reports(tmp_path, data, "term", fail_under=70.0).failures() == [
        "required BPF coverage of 70% not reached, total is 66.67%"
    ]
    assert reports(tmp_path, CoverageData(), "term", fail_under=1.0).failures() != []


@pytest.mark.parametrize("text", ["pdf", "term:x", "html:a:b:"])
def test_report_types(text: str) -> None:
    if text.startswith("html"):
        assert ReportRequest.parse(text) == ReportRequest("html", "a:b:")
    else:
        with pytest.raises(ReportError, match="term-missing"):
            ReportRequest.parse(text)


def test_jumps_that_bpfunit_itself_put_in_are_no_branches() -> None:
    """A stub's switch is counted, so that flows add up, and not reported."""
    code = if_else().code()
    patcher = Patcher(code.flow())
    patcher.before(0, [i.branch_imm(i.JEQ, 1, 5, 0)])
    code.apply(patcher)
    flow = code.flow()
    placement = place_probes(flow, Mode.COUNTERS, 3, Patcher(flow))
    identity = ("key", "prog", "xdp", NEW, Mode.COUNTERS, placement.probes, frozenset[int]())
    model = Model(*identity, **describe(code, flow))
    assert len(placement.probes) == 5
    data = collected(("t", model, {"key": [(0, 3), (1, 3), (4, 3)]}))
    file = files_of(data)
    assert [branch.at.line for branch in file.branches] == [10]
    assert outcomes(file) == {"12": 0, "11": 3}
    assert conservation_errors(model, [3, 3, 0, 0, 3]) == []
