"""Results by kernel: the table at the end of a run, and the files of ``--matrix-*``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bpfunit.plugin.outcomes import collector_of, is_controller
from bpfunit.report import Run, Status, matrix
from bpfunit.report.matrix_junit import write_junit

_SHOWN = 50  # missing tests of a kernel that the terminal lists
_OPTIONS = ("matrix_json", "matrix_markdown", "matrix_junit")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("bpfunit")
    group.addoption(
        "--matrix-json",
        metavar="FILE",
        type=Path,
        default=None,
        help="Write the outcome of every test on every kernel as JSON.",
    )
    group.addoption(
        "--matrix-markdown",
        metavar="FILE",
        type=Path,
        default=None,
        help="Write the table of kernels, what differs between them and what went wrong as "
        "Markdown, for the summary page of a CI system.",
    )
    group.addoption(
        "--matrix-junit",
        metavar="DIR",
        type=Path,
        default=None,
        help="Write one JUnit file for each kernel, junit-RELEASE.xml; --junitxml has all in one.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Show results by kernel where they arrive, when there are kernels or a file is wanted."""
    wanted = config.option.kernel or any(getattr(config.option, name) for name in _OPTIONS)
    if wanted and is_controller(config):
        config.pluginmanager.register(MatrixReport(config), "bpfunit-matrix")


class MatrixReport:
    """Shows the table, and writes the files that were asked for.

    Args:
        config: pytest's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._outcomes = collector_of(config)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the table, and write the files."""
        run = self._outcomes.run()
        if len(run.kernels) > 1 or Status.MISSING in run.counts():
            show(run, terminalreporter)
        self._write(run, terminalreporter)

    def _write(self, run: Run, terminal: pytest.TerminalReporter) -> None:
        writers: dict[str, Callable[[Path], object]] = {
            "matrix_json": lambda path: _write_text(path, json.dumps(matrix.data(run), indent=1)),
            "matrix_markdown": lambda path: _write_text(path, matrix.markdown(run)),
            "matrix_junit": lambda path: write_junit(run, path),
        }
        for name, write in writers.items():
            asked: Path | None = getattr(self._config.option, name)
            if asked is None:
                continue
            path = self._config.invocation_params.dir / asked
            option = f"--{name.replace('_', '-')}"
            try:
                write(path)
            except OSError as error:
                reason = (error.strerror or "").lower()
                terminal.write_line(f"FAIL write {option}: {path}: {reason}", red=True)
            else:
                terminal.write_line(f"{option} written to {path}")


def show(run: Run, terminal: pytest.TerminalReporter) -> None:
    """Write the table to the terminal, and below it what differs and what is missing."""
    terminal.section("kernels")
    head, *lines = matrix.text_table(run)
    terminal.write_line(head, bold=True)
    for kernel, line in zip(run.kernels, lines, strict=True):
        is_bad = matrix.is_bad(run, kernel)
        terminal.write_line(line, red=is_bad, green=not is_bad)
    for row in matrix.differing(run):
        terminal.write_line(f"differs by kernel: {row.test}", red=True)
        for side in matrix.sides(row):
            terminal.write_line(f"  {side}")
    for kernel in run.kernels:
        missing = [o for o in run.outcomes if (o.kernel, o.status) == (kernel.name, Status.MISSING)]
        if missing:
            tests = "1 test" if len(missing) == 1 else f"{len(missing)} tests"
            terminal.write_line(f"missing: {tests} never ran on {kernel.name}", red=True)
        for outcome in missing[:_SHOWN]:
            terminal.write_line(f"  {outcome.test}: {outcome.reason}")
        if len(missing) > _SHOWN:
            terminal.write_line(f"  and {len(missing) - _SHOWN} more, as in --matrix-json")
    for remark in run.remarks:
        terminal.write_line(f"note: {remark}")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
