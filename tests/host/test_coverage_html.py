"""The HTML coverage report as a browser shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser import browse
from coverage_samples import if_else, sample_data

from bpfunit.coverage.html import write_html
from bpfunit.coverage.sites import merge_sources

pytestmark = pytest.mark.host

PROBE = """<script>
const line = document.getElementById("L10");
line.querySelector("details.branch").open = true;
const ways = [...line.querySelectorAll("details.branch > ul > li")];
const colour = (element) => getComputedStyle(element).backgroundColor;
document.body.append(`PROBE ${line.className} ${ways.map((way) => way.className)} ` +
  `${ways[0].querySelector("a").getAttribute("href")} ${colour(line)} ${colour(document.body)} ` +
  `${performance.getEntriesByType("resource").length} loaded`);
</script></body>"""


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """The report of two kernels, of which the old one alone took the branch to line 12."""
    data = sample_data()
    target = tmp_path / "html"
    write_html(data, merge_sources(data), tmp_path, target)
    page = target / "file0.html"
    page.write_text(page.read_text().replace("</body>", PROBE))
    return target


@pytest.mark.parametrize(
    ("flags", "page", "hit"),
    [
        ((), "rgb(255, 255, 255)", "rgb(223, 243, 228)"),
        (("--blink-settings=preferredColorScheme=0",), "rgb(15, 19, 24)", "rgb(18, 51, 31)"),
    ],
    ids=["light", "dark"],
)
def test_a_browser_shows_the_branches_of_a_line(
    flags: tuple[str, ...], page: str, hit: str, pages: Path, tmp_path: Path
) -> None:
    dom = browse(pages / "file0.html", tmp_path / "profile", *flags)
    (probe,) = re.findall(r"PROBE (.*) loaded", dom)
    assert probe == f"hit hit,hit file0.html#L12 {hit} {page} 0"
    assert "tests/t.py::old" in dom
    assert "int prog(void *x)" in re.sub(r"<[^>]*>", "", dom)


def test_the_index_leads_to_every_file(pages: Path, tmp_path: Path) -> None:
    dom = browse(pages / "index.html", tmp_path / "profile")
    links = re.findall(r'<a href="([^"]+)">([^<]+)</a>', dom)
    assert links == [("file0.html", "bpf/main.c")]
    assert "on 6.1.1-amd64 only: bpf/main.c:10 -&gt; 12" in dom
    assert "100%" in dom


def test_names_from_programs_and_tests_are_not_markup(tmp_path: Path) -> None:
    data = sample_data()
    hostile = if_else("<script>x</script>").model("6.1.1-amd64")
    data.add_model(hostile)
    data.add_hits("t[<b>]", hostile.kernel, {hostile.key: [(0, 1), (1, 1)]})
    write_html(data, merge_sources(data), tmp_path, tmp_path)
    for page in ("index.html", "file0.html"):
        text = (tmp_path / page).read_text()
        assert "<script>" not in text
        assert "<b>" not in text
