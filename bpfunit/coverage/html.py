"""The HTML report: an index, and a page for each source file with its branches and their tests.

Nothing is fetched: styles are inline, and the colours follow the reader's light or dark preference.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import pygments
from markupsafe import Markup
from pygments.formatters import HtmlFormatter
from pygments.lexers import CLexer

from bpfunit.coverage import term
from bpfunit.coverage.data import CoverageData
from bpfunit.coverage.sites import Branch, Line, Outcome, SourceFile
from bpfunit.coverage.summary import grand_total, totals

_TESTS_SHOWN = 200
_STATES = {
    "hit": "ran",
    "part": "ran, branches missing",
    "miss": "never ran",
    "dead": "not counted",
}


@dataclass(frozen=True)
class _Way:
    """One outcome of a branch, as the page shows it."""

    leads_to: str
    anchor: str
    text: str
    state: str
    count: int
    kernels: list[tuple[str, str]]
    tests: list[str]
    more_tests: int
    reason: str


@dataclass(frozen=True)
class _Row:
    """One line of the source."""

    number: int
    code: Markup
    state: str
    count: str
    branches: list[tuple[Branch, list[_Way]]]
    taken: str


def write_html(
    data: CoverageData, files: Mapping[str, SourceFile], root: Path, target: Path
) -> None:
    """Write the report into the directory ``target``, which is made if needed.

    Args:
        data: for the names of tests and kernels.
        files: as from `merge_sources`.
        root: where relative source paths start; sources that are not there are shown as far as the
            object's line info holds their text.
        target: the directory; ``index.html`` is the page to open.
    """
    target.mkdir(parents=True, exist_ok=True)
    pages = {path: f"file{number}.html" for number, path in enumerate(files)}
    common = {
        "style": _style(),
        "kernels": data.kernels,
        "made": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "states": _STATES,
    }
    index = [(path, pages[path], totals(file)) for path, file in files.items()]
    page = _template("index.html").render(
        **common,
        rows=index,
        total=grand_total(files.values()),
        notes=list(term.notes(data, files)),
        programs=_programs(data),
        tests=len(data.tests),
    )
    (target / "index.html").write_text(page)
    for path, file in files.items():
        rows = _Page(data, files, pages, file, root).rows()
        page = _template("file.html").render(
            **common, path=path, rows=rows, found=totals(file), functions=file.functions.values()
        )
        (target / pages[path]).write_text(page)


def _programs(data: CoverageData) -> list[dict[str, Any]]:
    """Return what was instrumented, one row for each program and kernel."""
    return [
        {
            "name": program.model.program,
            "section": program.model.section,
            "kernel": program.model.kernel,
            "plain": program.model.sizes[0],
            "probed": program.model.sizes[1],
            "probes": len(program.model.probes),
            "dead": len(program.model.dead),
            "spills": program.model.spills,
        }
        for program in data.programs.values()
    ]


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("bpfunit.coverage"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)


def _style() -> Markup:
    """Return the page's own style and those of the highlighter for light and dark."""
    own, _, _ = _environment().loader.get_source(_environment(), "style.css")  # type: ignore[union-attr]
    light = HtmlFormatter(style="default").get_style_defs(".code")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".code")
    return Markup(f"{own}\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n")


class _Page:
    """Rows of one source file."""

    def __init__(
        self,
        data: CoverageData,
        files: Mapping[str, SourceFile],
        pages: Mapping[str, str],
        file: SourceFile,
        root: Path,
    ) -> None:
        self._data = data
        self._files = files
        self._pages = pages
        self._file = file
        self._source = _read_source(root, file)

    def rows(self) -> list[_Row]:
        numbers = range(1, len(self._source) + 1) if self._source else self._file.lines
        texts = self._source or [line.text for line in self._file.lines.values()]
        highlighted = pygments.highlight("\n".join(texts), _LEXER, _FORMATTER).split("\n")
        return [
            self._row(number, Markup(code))
            for number, code in zip(numbers, highlighted, strict=False)
        ]

    def _row(self, number: int, code: Markup) -> _Row:
        line = self._file.lines.get(number)
        if line is None:
            return _Row(number, code, "", "", [], "")
        branches = [(b, [self._way(o) for o in b.outcomes]) for b in line.branches]
        counted = [o for b in line.branches for o in b.outcomes if o.counted]
        taken = f"{sum(bool(o.count) for o in counted)}/{len(counted)}" if counted else ""
        return _Row(number, code, _state(line, counted), str(line.count), branches, taken)

    def _way(self, outcome: Outcome) -> _Way:
        target = outcome.targets[0]
        anchor = text = ""
        if target is not None:
            text = self._text(target.file, target.line)
            if target.file in self._pages:
                anchor = f"{self._pages[target.file]}#L{target.line}"
        names = [self._data.tests[index] for index in sorted(outcome.tests)]
        state = "hit" if outcome.count else "miss" if outcome.counted else "dead"
        reason = outcome.excluded
        if not outcome.counted and not reason:
            reason = "the verifier proves that it is never taken"
        return _Way(
            leads_to=outcome.leads_to(self._file.path),
            anchor=anchor,
            text=text,
            state=state,
            count=outcome.count,
            kernels=[(kernel, self._on(outcome, kernel)) for kernel in self._data.kernels],
            tests=names[:_TESTS_SHOWN],
            more_tests=max(0, len(names) - _TESTS_SHOWN),
            reason=reason,
        )

    @staticmethod
    def _on(outcome: Outcome, kernel: str) -> str:
        if kernel not in outcome.counts:
            return "not loaded"
        if kernel in outcome.dead_on and not outcome.counts[kernel]:
            return "unreachable"
        return str(outcome.counts[kernel])

    def _text(self, path: str, number: int) -> str:
        file = self._files.get(path)
        line = file.lines.get(number) if file else None
        return line.text.strip() if line else ""


def _state(line: Line, counted: list[Outcome]) -> str:
    if not line.counted:
        return "dead"
    if not line.count:
        return "miss"
    return "hit" if all(outcome.count for outcome in counted) else "part"


_LEXER = CLexer(stripnl=False, ensurenl=False)
_FORMATTER = HtmlFormatter(nowrap=True)


def _read_source(root: Path, file: SourceFile) -> list[str]:
    """Return the lines of the source file, if it is there and is the one that was compiled."""
    try:
        lines = (root / file.path).read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in file.lines.values():
        if line.number > len(lines) or line.text.strip() != lines[line.number - 1].strip():
            return []
    return lines
