"""``bpfunit diff``: an input on which two builds of a program differ, if a search finds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpfunit.cli import _values
from bpfunit.cli._common import err, out, print_json
from bpfunit.cli._guest import explored_kernel, variables
from bpfunit.cli._objects import programs_of
from bpfunit.cli._options import AsJson, GuestEnv, KernelName, MapTypes
from bpfunit.errors import BpfunitError
from bpfunit.guest.environment import require_visible

if TYPE_CHECKING:
    from bpfunit.explorer.diff import Comparison

_SAME, _DIFFER, _TROUBLE = range(3)  # as diff(1)
EPILOG = (
    "Examples:\n\n"
    "bpfunit diff old/hook.bpf.o hook.bpf.o\n\n"
    "bpfunit diff old/hook.bpf.o hook.bpf.o connect4_prog --seconds 120\n\n"
    "bpfunit diff hook.bpf.o hook.bpf.o --kernel 5.10 --new-kernel 6.12\n\n"
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
    new_kernel: Annotated[
        str | None,
        typer.Option(
            "--new-kernel", help="The kernel that NEW runs in, where it is not that of OLD."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long to search, each program.")] = 60,
    seed: Annotated[int, typer.Option(help="Of what is chosen by chance.")] = 0,
    map_types: MapTypes = None,
    guest_env: GuestEnv = None,
    as_json: AsJson = False,
) -> None:
    """Search an input on which two builds of a program differ, in a throwaway kernel, or in two.

    Inputs that take every branch of either build are run on both, then variants of them. What is
    compared: return value, context, packet, log, maps, storage, tail calls. Prints the smallest
    input found as a test that passes on OLD, or how much was tried. The builds may be those of two
    compilers, or one file twice with --new-kernel.
    """
    try:
        for path in (old, new):
            require_visible("the object", path)
        names, alone = ([program], []) if program else _names(old, new)
        options: dict[str, Any] = {}
        if map_types:
            pairs = dict(_values.parse_map_type(text) for text in map_types)
            options["map_types"] = {name: tuple(types) for name, types in pairs.items()}
        pair = (str(old.resolve()), str(new.resolve()))
        kernels = [kernel, *([new_kernel] if new_kernel else [])]
        found = _compared(pair, names, kernels, seed, seconds, options, variables(guest_env))
        report = {"programs": [_plain(one) for one in found]}
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


def _compared(
    pair: tuple[str, str],
    names: Sequence[str],
    kernels: Sequence[str],
    seed: int,
    seconds: float,
    options: dict[str, Any],
    env: Mapping[str, str],
) -> list[Comparison]:
    """Compare programs of two builds, in one kernel or each build in its own.

    Raises:
        BpfunitError: one of them cannot be loaded or explored.
    """
    from bpfunit.explorer.diff import Comparison, compare_sides  # with coverage and more

    found = []
    with ExitStack() as guests:
        booted = [guests.enter_context(explored_kernel(name, env)) for name in kernels]
        first, last = booted[0], booted[-1]
        old, new = pair
        same: set[str] = set()
        if first is last:
            codes = [first.codes(path, names, options) for path in pair]
            same = {name for name in names if codes[0][name] == codes[1][name]}
        for name in names:
            if name in same:
                found.append(Comparison(name, same_code=True))
                continue
            with first.open(old, name, options) as one, last.open(new, name, options) as two:
                found.append(compare_sides(one, two, seed=seed, seconds=seconds))
    return found


def _plain(one: Comparison) -> dict[str, Any]:
    kept = ("program", "same_code", "differs", "differences", "test", "reached", "runs", "seconds")
    return {name: getattr(one, name) for name in kept}


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
