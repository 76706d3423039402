"""Runs the tests of the programs in ``bpf/`` against every mutant and says which of them noticed.

    python -m tests.mutants [--kernel 6.12] [--fresh] [NAME ...]

On a big-endian kernel (``--kernel 6.12/s390x``) the mutants are those that it alone shows.

First the test that the table names as a mutant's guard; where that one passes, the whole suite but
for the random comparison with the model, whose verdict would differ from run to run. Ends with 0
when every mutant that is not declared equivalent was killed and no equivalent one was; with 1
otherwise; with 2 when the table is out of date or a run broke. Results are kept in
bpf/build/mutants/results.json by the content of object and tests: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bpfunit.cli._guest import booted
from bpfunit.errors import BpfunitError
from bpfunit.kernels.catalogue import split_spec

from .build import OBJECTS, MutantError, build_all, object_of
from .mutant import ROOT, Mutant, Subject
from .table import BYTE_ORDER, MUTANTS

_RESULTS = OBJECTS / "results.json"

# Runs in the guest, in execnet's worker: carries lines between the channel and the zygote.
_CARRIER = """
import subprocess, sys, threading
zygote = subprocess.Popen(
    [sys.executable, "-m", "tests.mutants.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    text=True, cwd=channel.receive())
for job in channel:
    zygote.stdin.write(job + "\\n"); zygote.stdin.flush()
    channel.send(zygote.stdout.readline())
zygote.stdin.close()
zygote.wait()
"""

Verdict = dict[str, Any]
Results = dict[str, Verdict]
Ask = Callable[[dict[str, Any]], Verdict]


@contextmanager
def guest(kernel: str) -> Iterator[Ask]:
    """Boot a guest and yield a function that runs one job in it."""
    with booted(kernel) as (_, gateway):
        channel = gateway.remote_exec(_CARRIER)
        channel.send(str(ROOT))

        def ask(job: dict[str, Any]) -> dict[str, Any]:
            channel.send(json.dumps(job))
            found: dict[str, Any] = json.loads(channel.receive(timeout=1800))
            if "error" in found:
                raise MutantError(f"run the tests against {job['name']}: {found['error']}")
            return found

        yield ask
        channel.close()


class Judge:
    """Runs tests against mutants, and against the unchanged object what it runs against them.

    Unless a test passes on the unchanged object, its failure on a mutant means nothing.
    """

    def __init__(self, ask: Ask, results: Results) -> None:
        self._ask, self._results = ask, results

    def trust(self, subject: Subject, tests: list[str]) -> None:
        """Run tests against an unchanged object, once for as long as neither changes.

        Raises:
            MutantError: one of them fails.
        """
        original = object_of("original", subject)
        name, mark = f"unchanged {subject.name}", _fingerprint(original, subject)
        kept = self._results.get(name, {})
        passed = kept["tests"] if kept.get("print") == mark else []
        if new := [test for test in tests if test not in passed]:
            found = self._ask(_job(name, original, subject, new))
            if found["failed"]:
                raise MutantError(f"the {name} fails {found['failed']}: {found['reason']}")
            self._results[name] = {"print": mark, "tests": [*passed, *new]}

    def by_guard(self, mutant: Mutant, path: Path) -> Verdict:
        """Run the test that guards the mutant's line."""
        return self._run(mutant, path, [_guard(mutant)], by_guard=True)

    def by_suite(self, mutant: Mutant, path: Path) -> Verdict:
        """Run the whole suite."""
        suite = mutant.subject.suite
        self.trust(mutant.subject, suite)
        return self._run(mutant, path, suite, by_guard=False)

    def _run(self, mutant: Mutant, path: Path, tests: list[str], *, by_guard: bool) -> Verdict:
        found = self._ask(_job(mutant.name, path, mutant.subject, tests))
        return {**found, "by_guard": by_guard}


def _guard(mutant: Mutant) -> str:
    return f"{mutant.subject.tests}/{mutant.guard}"


def _job(name: str, path: Path, subject: Subject, tests: list[str]) -> dict[str, Any]:
    return {"name": name, "object": [subject.option, str(path)], "tests": tests}


def _killer(mutant: Mutant, verdict: Verdict) -> str:
    failed: str = verdict["failed"]
    return failed.removeprefix(f"{mutant.subject.tests}/")


def report(console: Console, mutants: list[Mutant], results: Results) -> bool:
    """Print the table and the survivors, and return whether all is as declared."""
    table = Table(title=f"{len(mutants)} mutants", title_justify="left")
    for column in ("mutant", "file", "verdict", "by"):
        table.add_column(column, overflow="fold")
    wrong: list[str] = []
    survivors: list[str] = []
    for mutant in mutants:
        result = results[mutant.name]
        killer = _killer(mutant, result)
        verdict = "killed" if killer else "survived"
        if mutant.equivalent:
            survivors.append(f"{mutant.name}: {mutant.equivalent}")
            verdict = "equivalent" if not killer else "[red]killed, though equivalent[/]"
        elif not killer:
            verdict = "[red]survived[/]"
        elif not result["by_guard"]:
            verdict = "killed [yellow](not by its guard)[/]"
        if bool(killer) == bool(mutant.equivalent):
            wrong.append(mutant.name)
        table.add_row(mutant.name, mutant.file, verdict, killer)
    console.print(table)
    killed = sum(1 for mutant in mutants if results[mutant.name]["failed"])
    console.print(f"{killed} killed, {len(survivors)} declared equivalent:")
    for line in survivors:
        console.print(f"  {line}")
    if wrong:
        console.print(f"[red]not as declared:[/] {', '.join(wrong)}")
    return not wrong


def _fingerprint(path: Path, subject: Subject) -> str:
    digest = hashlib.sha256(path.read_bytes())
    for test in sorted((ROOT / subject.tests).glob("*.py")):
        digest.update(test.read_bytes())
    return digest.hexdigest()


def _kept() -> Results:
    if not _RESULTS.is_file():
        return {}
    kept: Results = json.loads(_RESULTS.read_text())
    return kept


def run(mutants: list[Mutant], kernel: str, fresh: bool, console: Console) -> bool:
    """Build, run what is not known yet, and report."""
    console.print(f"building {len(mutants)} mutants")
    objects = build_all(mutants)
    prints = {m.name: f"{kernel} {_fingerprint(objects[m.name], m.subject)}" for m in mutants}
    results = {} if fresh else _kept()
    todo = [m for m in mutants if results.get(m.name, {}).get("print") != prints[m.name]]

    def settle(mutant: Mutant, found: Verdict) -> None:
        results[mutant.name] = {**found, "print": prints[mutant.name]}
        _RESULTS.write_text(json.dumps(results, indent=1))
        settled = sum(1 for m in mutants if results.get(m.name, {}).get("print") == prints[m.name])
        killer = _killer(mutant, found) or "survived"
        console.print(f"{settled}/{len(mutants)} {mutant.name}: {killer}", soft_wrap=True)

    if todo:
        with guest(kernel) as ask:
            judge = Judge(ask, results)
            console.print("running the guards against what is unchanged")
            guards = {m.subject: set[str]() for m in todo}
            for mutant in todo:
                if mutant.guard:
                    guards[mutant.subject].add(_guard(mutant))
            for subject, tests in guards.items():
                judge.trust(subject, sorted(tests))
            left = []
            for mutant in todo:
                found = judge.by_guard(mutant, objects[mutant.name]) if mutant.guard else {}
                if found.get("failed"):
                    settle(mutant, found)
                else:
                    left.append(mutant)
            for mutant in left:
                settle(mutant, judge.by_suite(mutant, objects[mutant.name]))
    return report(console, mutants, results)


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="these mutants alone")
    parser.add_argument("--kernel", default="6.12", help="kernel to run on (default: 6.12)")
    parser.add_argument("--fresh", action="store_true", help="forget the results of earlier runs")
    options = parser.parse_args()
    is_little = split_spec(options.kernel)[1].little_endian
    table = MUTANTS if is_little else BYTE_ORDER
    chosen = [m for m in table if not options.names or m.name in options.names]
    if unknown := set(options.names) - {m.name for m in chosen}:
        parser.error(f"no mutant {', '.join(sorted(unknown))}")
    console = Console()
    try:
        return 0 if run(chosen, options.kernel, options.fresh, console) else 1
    except (MutantError, BpfunitError) as error:
        console.print(f"[red]error:[/] {error}")
        return 2
