"""The HTML report, from plain data to what a browser makes of it."""

from __future__ import annotations

import datetime as dt
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import browse

from bpfunit.report import (
    KernelInfo,
    Link,
    Outcome,
    Run,
    Section,
    Status,
    render_html,
    write_html,
)

pytestmark = pytest.mark.host

OLD, NEW = "5.10.0-39-amd64", "7.3.1-amd64"
DNAT = "tests/test_dnat.py::test_service_address_becomes_the_endpoint[<&>]"


@pytest.fixture
def run() -> Run:
    """Two kernels, one test that differs between them, one that passes, one host test."""
    trace = Section("traceback", "assert result.dst == '10.0.0.1:80'\nE  <b>not bold</b>")
    log = Section("log", "frontend miss")
    return Run(
        title="bpfunit: connect hook",
        command="pytest --kernel 5.10 --kernel 7.3 tests/",
        started=dt.datetime(2026, 11, 22, 12, 0, tzinfo=dt.timezone.utc),
        seconds=75.2,
        exit_code=1,
        kernels=[KernelInfo(OLD, ("testrun", "tcg")), KernelInfo(NEW), KernelInfo("host")],
        outcomes=[
            Outcome(DNAT, OLD, Status.FAILED, 0.5, "10.0.0.2:80, not 10.0.0.1:80", [trace]),
            Outcome(DNAT, NEW, Status.PASSED, 0.25),
            Outcome("tests/test_dnat.py::test_miss", OLD, Status.PASSED, 0.01, "", [log]),
            Outcome("tests/test_dnat.py::test_miss", NEW, Status.PASSED, 0.01),
            Outcome("tests/test_host.py::test_parser", "host", Status.SKIPPED, 0.0, "no elf"),
        ],
        links=[Link("Coverage", "coverage/index.html")],
        remarks=["kernel 5.10: the pinned release is gone from the archive, took the newest"],
    )


class Outline(HTMLParser):
    """Collects what a test asks about a page: addresses, ids, and unclosed elements."""

    VOID = frozenset({"meta", "input", "br", "hr", "img", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.addresses += [values[key] for key in ("href", "src") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_element_is_closed_and_every_id_is_there_once(run: Run) -> None:
    outline = Outline(render_html(run))
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))


def test_nothing_is_loaded_from_elsewhere(run: Run) -> None:
    page = render_html(run)
    outline = Outline(page)
    assert [a for a in outline.addresses if not a.startswith("#")] == ["coverage/index.html"]
    assert not re.search(r"https?://|@import|url\(", page)


def test_text_of_a_test_is_never_taken_as_markup(run: Run) -> None:
    page = render_html(run)
    assert "<b>not bold</b>" not in page
    assert "&lt;b&gt;not bold&lt;/b&gt;" in page


def test_a_test_that_differs_between_kernels_is_called_out(run: Run) -> None:
    rows = {row.test: row for row in run.rows()}
    assert [test for test, row in rows.items() if row.differs] == [DNAT]
    assert rows[DNAT].worst is Status.FAILED
    page = render_html(run)
    assert "Different from kernel to kernel" in page
    run.outcomes[0].status = Status.PASSED
    assert "Different from kernel to kernel" not in render_html(run)


def test_a_kernel_where_a_test_did_not_run_has_an_empty_cell(run: Run) -> None:
    row = next(row for row in run.rows() if row.file == "tests/test_host.py")
    assert [cell.status.value for cell in row.cells] == ["absent", "absent", "skipped"]


def test_counts_and_times_are_per_kernel(run: Run) -> None:
    assert run.counts(OLD) == {Status.FAILED: 1, Status.PASSED: 1}
    assert run.seconds_on(OLD) == pytest.approx(0.51)
    assert sum(run.counts().values()) == len(run.outcomes)


def test_a_browser_runs_the_page_without_an_error(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "out" / "run.html"
    write_html(run, page)
    probe = """<script>
      search.value = "MISS"; search.dispatchEvent(new Event("input"));
      const shown = tests.filter((test) => !test.hidden).map((test) => test.dataset.name);
      document.querySelector("input[value=differs]").click();
      search.value = ""; search.dispatchEvent(new Event("input"));
      const differing = tests.filter((test) => !test.hidden).length;
      document.getElementById("theme").click();
      document.body.append(`PROBE ${shown} ${differing} ` +
        `${document.documentElement.dataset.theme} ` +
        `${getComputedStyle(document.body).backgroundColor}`);
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", probe))
    dom = browse(page, tmp_path / "profile")
    assert "PROBE tests/test_dnat.py::test_miss 1 dark rgb(20, 24, 29)" in dom
    assert re.search(r'<details class="test differs bad"[^>]* open', dom), "failure is not open"


def test_a_link_to_a_test_opens_it(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    write_html(run, page)
    dom = browse(f"{page.as_uri()}#tests/test_dnat.py%3A%3Atest_miss", tmp_path / "profile")
    assert re.search(r'id="tests/test_dnat.py%3A%3Atest_miss"[^>]* open', dom)
