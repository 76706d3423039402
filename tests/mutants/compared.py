"""Asks ``bpfunit diff`` about every mutant, and nothing else: no test written by hand takes part.

    python -m tests.mutants.compared [--kernel 6.12] [--seconds 60] [NAME ...]

One guest compares the unchanged hook, which it loads once, with each mutant in turn. Ends with 0
when at least 100 of the mutants that are not declared equivalent were told apart from it and no
equivalent one was; with 1 otherwise; with 2 when the table is out of date or a comparison broke.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bpfunit.cli._guest import explored_kernel
from bpfunit.cli._objects import programs_of
from bpfunit.errors import BpfunitError
from bpfunit.explorer.diff import Comparison, compare_sides

from ..hook.mesh import MAP_TYPES
from .build import MutantError, build_all, object_of
from .mutant import HOOK, Mutant
from .table import MUTANTS

_ENOUGH = 100  # of the 103 that are not equivalent
_HOOKS = [mutant for mutant in MUTANTS if mutant.subject is HOOK]


@dataclass(frozen=True)
class Answer:
    """What ``diff`` said of one mutant.

    Attributes:
        told: whether it found an input on which the two differ.
        by: the program and the first difference, or how much was tried.
    """

    mutant: Mutant
    told: bool
    by: str
    runs: int
    seconds: float

    @property
    def verdict(self) -> str:
        """The answer in words."""
        if self.told:
            return "[red]flagged, though equivalent[/]" if self.mutant.equivalent else "told"
        return "equivalent" if self.mutant.equivalent else "[yellow]not told[/]"


def answers(
    mutants: Sequence[Mutant], objects: dict[str, Path], kernel: str, seconds: float
) -> Iterator[Answer]:
    """Compare each mutant with the unchanged hook in one guest.

    Raises:
        BpfunitError: a comparison could not be made.
    """
    original = object_of("original", HOOK)
    names = sorted(one.name for one in programs_of(original))
    options = {"map_types": MAP_TYPES}
    with ExitStack() as opened:
        guest = opened.enter_context(explored_kernel(kernel))
        codes = guest.codes(str(original), names, options)
        unchanged = {
            name: opened.enter_context(guest.open(str(original), name, options)) for name in names
        }
        for mutant in mutants:
            start, path = time.monotonic(), str(objects[mutant.name])
            its = guest.codes(path, names, options)
            changed = [name for name in names if its[name] != codes[name]]
            found: list[Comparison] = []
            for n, name in enumerate(changed):
                left = start + seconds - time.monotonic()
                with guest.open(path, name, options) as new:
                    one = compare_sides(unchanged[name], new, seconds=left / (len(changed) - n))
                found.append(one)
                if one.differs:
                    break
            yield _answer(mutant, found, time.monotonic() - start)


def _answer(mutant: Mutant, found: Sequence[Comparison], seconds: float) -> Answer:
    runs = sum(one.runs for one in found)
    for one in found:
        if one.differs:
            return Answer(
                mutant,
                True,
                f"{one.program}: {one.differences[0].partition(':')[0]}",
                runs,
                seconds,
            )
    tried = [f"{one.program}: edges {one.reached}" for one in found]
    return Answer(mutant, False, "; ".join(tried) or "the same code", runs, seconds)


def run(mutants: Sequence[Mutant], kernel: str, seconds: float, console: Console) -> bool:
    """Build, compare, print the table, and return whether all is as wanted."""
    console.print(f"building {len(mutants)} mutants")
    objects = build_all(mutants)
    found: list[Answer] = []
    for one in answers(mutants, objects, kernel, seconds):
        found.append(one)
        console.print(
            f"{len(found)}/{len(mutants)} {one.mutant.name}: {one.verdict}, {one.seconds:.1f} s",
            soft_wrap=True,
        )
    return report(console, found)


def report(console: Console, found: Sequence[Answer]) -> bool:
    """Print the table and the sums, and return whether all is as wanted."""
    table = Table(title=f"{len(found)} mutants of the hook, by diff", title_justify="left")
    for column in ("mutant", "file", "diff", "runs", "seconds", "by"):
        table.add_column(column, overflow="fold")
    for one in found:
        columns = (one.mutant.name, one.mutant.file, one.verdict, str(one.runs))
        table.add_row(*columns, f"{one.seconds:.1f}", one.by)
    console.print(table)
    killable = [one for one in found if not one.mutant.equivalent]
    told = sum(one.told for one in killable)
    flagged = [one.mutant.name for one in found if one.told and one.mutant.equivalent]
    missed = [one.mutant.name for one in killable if not one.told]
    slowest = max((one.seconds for one in found), default=0.0)
    console.print(f"{told} of {len(killable)} told, the slowest in {slowest:.0f} s")
    if missed:
        console.print(f"not told: {', '.join(missed)}")
    if flagged:
        console.print(f"[red]flagged, though equivalent:[/] {', '.join(flagged)}")
    return told >= min(_ENOUGH, len(killable)) and not flagged


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="these mutants alone")
    parser.add_argument("--kernel", default="6.12", help="kernel to run on (default: 6.12)")
    parser.add_argument("--seconds", type=float, default=60, help="of each mutant (default: 60)")
    options = parser.parse_args()
    chosen = [m for m in _HOOKS if not options.names or m.name in options.names]
    if unknown := set(options.names) - {m.name for m in chosen}:
        parser.error(f"no mutant {', '.join(sorted(unknown))}")
    console = Console()
    try:
        return 0 if run(chosen, options.kernel, options.seconds, console) else 1
    except (MutantError, BpfunitError) as error:
        console.print(f"[red]error:[/] {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
