"""``bpfunit explore``: tests for every branch edge of a program, written by a search."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpfunit.cli import _values
from bpfunit.cli._common import EXIT_CODES_HELP, ExitCode, err, out, print_json
from bpfunit.cli._guest import explored_kernel, variables
from bpfunit.cli._options import (
    AsJson,
    Globals,
    GuestEnv,
    KernelName,
    MapTypes,
    TypeFiles,
    TypesFlags,
)
from bpfunit.guest.environment import require_visible

if TYPE_CHECKING:
    from bpfunit.explorer.side import There

EPILOG = (
    "Examples:\n\n"
    "bpfunit explore hook.bpf.o connect4_prog\n\n"
    "bpfunit explore hook.bpf.o connect4_prog --seconds 20 -w tests/test_explored.py "
    "--map-type frontends=frontend_key,frontend_value\n\n"
    "bpfunit explore hook.bpf.o connect4_prog --corpus tests/corpus\n\n" + EXIT_CODES_HELP
)


def explore(
    object_: Annotated[
        Path, typer.Argument(metavar="OBJECT", help="The compiled object, *.bpf.o.")
    ],
    program: Annotated[str, typer.Argument(help="The program's name, that of its C function.")],
    kernel: KernelName = "6.12",
    write: Annotated[
        Path | None,
        typer.Option(
            "--write",
            "-w",
            metavar="FILE",
            dir_okay=False,
            help="Write the tests here; tests of your own in the file are not touched.",
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            "--corpus",
            metavar="DIR",
            file_okay=False,
            help="Begin with the inputs that are kept here, and add those that take a new edge.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long to search.")] = 60,
    seed: Annotated[int, typer.Option(help="Of what is chosen by chance.")] = 0,
    map_types: MapTypes = None,
    types: TypeFiles = None,
    types_flags: TypesFlags = None,
    globals_: Globals = None,
    guest_env: GuestEnv = None,
    as_json: AsJson = False,
) -> None:
    """Search inputs for every branch of one program in a throwaway kernel, and write tests of them.

    Says of each branch edge whether an input takes it, the verifier proved it dead, or what stands
    in the way. With --write the inputs become a pytest file that asserts what the program did:
    today's behaviour, not what was meant. With --corpus they are kept, and the next search begins
    with them. Exit code 1 when an edge was not reached.
    """
    from bpfunit.explorer import corpus as files_of  # with coverage and more
    from bpfunit.explorer import merged

    if not object_.is_file():
        raise typer.BadParameter(f"no file {object_}; build it first", param_hint="OBJECT")
    require_visible("the object", object_)
    for path in types or ():
        require_visible("a file with types", path)
    try:
        options: dict[str, Any] = {
            "map_types": dict(_values.parse_map_type(text) for text in map_types or ()),
            "types": [str(path.resolve()) for path in types or ()],
            "types_flags": list(types_flags or ()),
            "globals": dict(_values.parse_global(text) for text in globals_ or ()),
        }
        request: dict[str, Any] = {
            "object_text": _object_text(object_, write),
            "seed": seed,
            "tests": write is not None,
            "corpus": None if corpus is None else files_of.read(corpus, program),
        }
    except _values.ValueSyntaxError as error:
        raise typer.BadParameter(str(error)) from error
    with (
        explored_kernel(kernel, variables(guest_env)) as guest,
        guest.open(str(object_.resolve()), program, options) as side,
    ):
        report = _explored(side, request, seconds)
    added = files_of.write(corpus, program, report["grown"]) if corpus is not None else []
    if write is not None:
        existing = write.read_text(encoding="utf-8") if write.exists() else ""
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(merged(existing, report["program"], report["text"]), encoding="utf-8")
    if as_json:
        print_json(report)
    else:
        for line in report["report"]:
            out().print(line, markup=False)
        if write is not None:
            err().print(f"wrote {len(report['tests'])} tests to {write}", markup=False)
        if corpus is not None:
            there = f"{corpus / program}, {len(request['corpus'])} were there"
            err().print(f"added {len(added)} inputs to {there}", markup=False)
    raise typer.Exit(ExitCode.OK if report["reached"] >= report["alive"] else ExitCode.NO)


def _explored(side: There, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Search on this host, many times as fast as an emulated guest; the guest has the rest."""
    from bpfunit.explorer import Budget, Input, Search

    known = [Input.from_plain(one) for one in side.ask("known", request["corpus"] or {})]
    budget = Budget(seconds=seconds)
    search = Search(side.described.facts, side.execute, request["seed"], budget)
    found = search.run(known)
    inputs = [case.given.to_plain() for case in found.cases]
    took = {name: getattr(found, name) for name in ("runs", "instructions", "seconds")}
    compared = list(search.compared().items())
    report: dict[str, Any] = side.ask("report", request, inputs, compared, took)
    return report


def _object_text(object_: Path, write: Path | None) -> str:
    """Return the object as an expression in the test file: relative, so that both may move."""
    base = (write or Path("test.py")).resolve().parent
    relative = os.path.relpath(object_.resolve(), base)
    return f'Path(__file__).parent / "{relative}"'
