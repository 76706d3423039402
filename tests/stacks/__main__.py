"""``make stacks``: every libbpf and every compiler of Debian's suites, in guests of one kernel.

Each libbpf runs ``test_stack.py`` on an object of each compiler, in a guest of its own; the hook of
each compiler runs the hook's own suite with coverage. What comes out is a table, and an exit code
of 1 if anything in it is less than whole. Logs are in ``build/stacks``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from xml.etree import ElementTree

from bpfunit.errors import BpfunitError

from .compilers import Compiler, compilers
from .libraries import Library, libraries
from .objects import BUILD

_HOOK_SUITE = ("tests/hook", "-m", "not slow", "--bpf-cov", "--bpf-cov-fail-under=100")
_SHOWN_LINES = 30


@dataclass
class Outcome:
    """How one run ended: tests by compiler, seconds, and the share of branches taken, if asked."""

    code: int
    seconds: float
    tests: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    coverage: str = ""

    def cell(self, compiler: str) -> str:
        """Return what the table shows of one compiler."""
        shown = f"{self.passed[compiler]}/{self.tests[compiler]}"
        return f"{shown} {self.coverage}".rstrip()

    def is_whole(self, compiler: str) -> bool:
        """Whether there were tests of this compiler, and all passed."""
        return 0 < self.tests[compiler] == self.passed[compiler] and self.coverage in ("", "100%")


def run(name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Outcome:
    """Run pytest and count; its output goes to a log, and is shown when it fails.

    Tests that do not name a compiler are counted under ``name``.
    """
    results, log = BUILD / f"{name}.xml", BUILD / f"{name}.log"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    command += [f"--junitxml={results}", f"--bpf-cov-data={BUILD / name}.json"]
    started = time.monotonic()
    with log.open("w") as output:
        done = subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            check=False,
        )
    outcome = Outcome(done.returncode, time.monotonic() - started)
    text = log.read_text()
    if results.exists():
        for case in ElementTree.parse(results).iter("testcase"):
            compiler = re.search(r"\bclang-\d+", case.get("name", ""))
            key = compiler[0] if compiler else name
            outcome.tests[key] += 1
            outcome.passed[key] += not len(case.findall("*[@message]"))
    if shown := re.search(r"^TOTAL .*?(\S+%)", text, re.MULTILINE):
        outcome.coverage = shown[1]
    print(f"stacks: {name}: exit code {outcome.code}, {outcome.seconds:.0f} s", flush=True)
    if outcome.code:
        print("\n".join(text.splitlines()[-_SHOWN_LINES:]), f"(whole log: {log})", sep="\n")
    return outcome


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells in columns; the first row is the heading."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def main() -> int:
    """Run everything, print the table, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.stacks", description=__doc__)
    parser.add_argument("--kernel", default="6.12", help="the kernel of all guests")
    parser.add_argument("--only", choices=("libraries", "compilers"), help="leave the other out")
    parser.add_argument(
        "--newest", action="store_true", help="run the hook's suite for the newest compiler alone"
    )
    options = parser.parse_args()
    started = time.monotonic()
    found, tools = libraries(), compilers()
    kernel = ["--kernel", "6.12" if options.kernel == "all" else options.kernel]
    libs: dict[Library, Outcome] = {}
    hooks: dict[Compiler, Outcome] = {}
    places = max(1, min(4, os.cpu_count() or 1))
    with ThreadPoolExecutor(places) as pool:
        if options.only != "compilers":
            futures = {
                library: pool.submit(
                    run,
                    f"libbpf-{library.version}",
                    [*kernel, "tests/stacks/test_stack.py"],
                    {"BPFUNIT_LIBBPF": str(library.path)},
                )
                for library in found
            }
        else:
            futures = {}
        suites = {
            tool: pool.submit(
                run, tool.name, [*kernel, *_HOOK_SUITE, "--bpf-object", str(tool.hook)], {}
            )
            for tool in (tools[-1:] if options.newest else tools)
            if options.only != "libraries"
        }
        libs = {library: future.result() for library, future in futures.items()}
        hooks = {tool: future.result() for tool, future in suites.items()}
    rows = [["", *(tool.name for tool in tools)], ["", *(tool.version for tool in tools)]]
    rows += [
        [f"libbpf {library}", *(outcome.cell(tool.name) for tool in tools)]
        for library, outcome in libs.items()
    ]
    if hooks:
        rows.append(
            [
                "the hook's suite, branches",
                *(hooks[tool].cell(tool.name) if tool in hooks else "not asked" for tool in tools),
            ]
        )
    print(f"\n{table(rows)}\n\nstacks: {time.monotonic() - started:.0f} s on {places} processors")
    whole = all(
        outcome.code == 0 and outcome.is_whole(tool.name)
        for outcome in libs.values()
        for tool in tools
    )
    whole &= all(
        outcome.code == 0 and outcome.is_whole(tool.name) for tool, outcome in hooks.items()
    )
    return 0 if whole else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BpfunitError, subprocess.CalledProcessError) as error:
        sys.exit(f"stacks: {error}")
