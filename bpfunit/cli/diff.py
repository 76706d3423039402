"""``bpfunit diff``: an input on which two builds of a program differ, if a search finds one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from bpfunit import _native
from bpfunit.cli import _values
from bpfunit.cli._common import err, out, print_json
from bpfunit.cli._guest import booted, call
from bpfunit.cli._objects import programs_of
from bpfunit.errors import BpfunitError

_SAME, _DIFFER, _TROUBLE = range(3)  # as diff(1)
EPILOG = (
    "Examples:\n\n"
    "bpfunit diff old/hook.bpf.o hook.bpf.o\n\n"
    "bpfunit diff old/hook.bpf.o hook.bpf.o connect4_prog --seconds 120\n\n"
    "Exit codes, those of diff(1): 0 no difference found, 1 they differ, 2 trouble."
)


def diff(
    old: Annotated[
        Path, typer.Argument(metavar="OLD", exists=True, dir_okay=False, help="The one build.")
    ],
    new: Annotated[
        Path, typer.Argument(metavar="NEW", exists=True, dir_okay=False, help="The other.")
    ],
    program: Annotated[
        str | None, typer.Argument(help="One program; all that both have when not given.")
    ] = None,
    kernel: Annotated[
        str, typer.Option("--kernel", "-k", help="Series, exact release, or a kernel's path.")
    ] = "6.12",
    seconds: Annotated[float, typer.Option(min=1, help="How long to search, each program.")] = 60,
    seed: Annotated[int, typer.Option(help="Of what is chosen by chance.")] = 0,
    map_types: Annotated[
        list[str] | None,
        typer.Option(
            "--map-type",
            metavar="NAME=KEY,VALUE",
            help="C types of a map that declares sizes only; repeatable.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Search an input on which two builds of a program differ, in a throwaway kernel.

    Inputs that take every branch of either build are run on both, then variants of them. What is
    compared: return value, context, packet, log, maps, storage, tail calls. Prints the smallest
    input found as a test that passes on OLD, or how much was tried.
    """
    try:
        request: dict[str, Any] = {
            "old": str(old.resolve()),
            "new": str(new.resolve()),
            "programs": [program] if program else _common(old, new),
            "seconds": seconds,
            "seed": seed,
            "map_types": dict(_values.parse_map_type(text) for text in map_types or ()),
        }
        if built := _native.build():
            os.environ[_native.PATH_VARIABLE] = str(built)
        with booted(kernel) as (_, gateway):
            report: dict[str, Any] = call(gateway, "_inside_explore.serve_diff", request)
        if "error" in report:
            raise BpfunitError(report["error"])
    except BpfunitError as error:
        err().print("bpfunit:", str(error), style="red", markup=False)
        raise typer.Exit(_TROUBLE) from error
    if as_json:
        print_json(report)
    else:
        for one in report["programs"]:
            for line in _lines(one):
                out().print(line, markup=False)
    differ = any(one["differs"] for one in report["programs"])
    raise typer.Exit(_DIFFER if differ else _SAME)


def _common(old: Path, new: Path) -> list[str]:
    """Return the names of the programs that both objects have.

    Raises:
        BpfunitError: there is none.
    """
    names = [{one.name for one in programs_of(path)} for path in (old, new)]
    both = sorted(names[0] & names[1])
    if not both:
        raise BpfunitError(f"compare {old} with {new}: they have no program of the same name")
    return both


def _lines(one: dict[str, Any]) -> list[str]:
    name = one["program"]
    if one["same_code"]:
        return [f"{name}: the same code"]
    tried = ", ".join(f"{n} of {total}" for n, total in one["reached"])
    effort = f"{one['runs']} runs, {one['seconds']:.1f} s; edges reached before and now: {tried}"
    if not one["differs"]:
        return [f"{name}: no difference found; {effort}"]
    lines = [f"{name}: they differ; {effort}"]
    lines += [f"  {line}" for line in one["differences"]]
    lines += ["", "  # passes on the old build"]
    return [*lines, *(f"  {line}" for line in one["test"]), ""]
