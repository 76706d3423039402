"""``bpfunit diff``: an input on which two builds of a program differ, if a search finds one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bpfunit.cli import _values
from bpfunit.cli._common import err, out, print_json
from bpfunit.cli._guest import explored, variables
from bpfunit.cli._objects import programs_of
from bpfunit.cli._options import AsJson, GuestEnv, KernelName, MapTypes
from bpfunit.errors import BpfunitError
from bpfunit.guest.environment import require_visible

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
    kernel: KernelName = "6.12",
    seconds: Annotated[float, typer.Option(min=1, help="How long to search, each program.")] = 60,
    seed: Annotated[int, typer.Option(help="Of what is chosen by chance.")] = 0,
    map_types: MapTypes = None,
    guest_env: GuestEnv = None,
    as_json: AsJson = False,
) -> None:
    """Search an input on which two builds of a program differ, in a throwaway kernel.

    Inputs that take every branch of either build are run on both, then variants of them. What is
    compared: return value, context, packet, log, maps, storage, tail calls. Prints the smallest
    input found as a test that passes on OLD, or how much was tried.
    """
    try:
        for path in (old, new):
            require_visible("the object", path)
        names, alone = ([program], []) if program else _names(old, new)
        request: dict[str, Any] = {
            "old": str(old.resolve()),
            "new": str(new.resolve()),
            "programs": names,
            "seconds": seconds,
            "seed": seed,
            "map_types": dict(_values.parse_map_type(text) for text in map_types or ()),
        }
        report = explored(kernel, "_inside_explore.serve_diff", request, variables(guest_env))
        for one in report["programs"]:
            _require_effect(one)
    except BpfunitError as error:
        err().print("bpfunit:", str(error), style="red", markup=False)
        raise typer.Exit(_TROUBLE) from error
    if as_json:
        print_json({**report, "alone": alone})
    else:
        for line in alone:
            out().print(line, markup=False)
        for one in report["programs"]:
            for line in _lines(one):
                out().print(line, markup=False)
    differ = bool(alone) or any(one["differs"] for one in report["programs"])
    raise typer.Exit(_DIFFER if differ else _SAME)


def _names(old: Path, new: Path) -> tuple[list[str], list[str]]:
    """Return the programs that both objects have, and in words those that one of them has alone.

    Raises:
        BpfunitError: they have none in common.
    """
    here, there = ({one.name for one in programs_of(path)} for path in (old, new))
    if not here & there:
        raise BpfunitError(f"compare {old} with {new}: they have no program of the same name")
    alone = [f"{name}: only in {old if name in here else new}" for name in sorted(here ^ there)]
    return sorted(here & there), alone


def _require_effect(one: dict[str, Any]) -> None:
    """Refuse to say «no difference» of a program of which nothing was seen to run.

    Raises:
        BpfunitError: no input took a branch of either build, though there are some.
    """
    nothing = all(taken == 0 < alive for taken, alive in one["reached"])
    if not one["same_code"] and not one["differs"] and nothing:
        raise BpfunitError(
            f"compare {one['program']}: of {one['runs']} runs none took a branch, so nothing was"
            " compared; give it more --seconds, or look at it with bpfunit explore"
        )


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
