"""``bpfunit run``: one crafted run from the shell, no test file needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bpfunit.cli import _values
from bpfunit.cli._common import EXIT_CODES_HELP, ExitCode, err, out, print_json
from bpfunit.cli._guest import ask_guest, variables
from bpfunit.cli._options import (
    AsJson,
    Globals,
    GuestEnv,
    KernelName,
    MapTypes,
    TypeFiles,
    TypesFlags,
)
from bpfunit.errors import BpfunitError
from bpfunit.guest.environment import require_visible

EPILOG = (
    "Examples:\n\n"
    "bpfunit run hook.bpf.o connect4_prog --dst 10.96.0.1:80\n\n"
    "bpfunit run hook.bpf.o connect4_prog --dst 10.96.0.1:80 "
    "--map frontends:10.96.0.1=7 --expect-dst 10.244.0.5:8080\n\n"
    "bpfunit run filter.bpf.o xdp_prog --packet frame.bin --expect-retval 1 --json\n\n"
    + EXIT_CODES_HELP
)


def run(
    object_: Annotated[
        Path, typer.Argument(metavar="OBJECT", help="The compiled object, *.bpf.o.")
    ],
    program: Annotated[str, typer.Argument(help="The program's name, that of its C function.")],
    kernel: KernelName = "6.12",
    dst: Annotated[
        str | None, typer.Option(help="Destination: 10.96.0.1:80 or [fd00::1]:80.")
    ] = None,
    src: Annotated[str | None, typer.Option(help="Source address, sendmsg programs.")] = None,
    type_: Annotated[
        str | None, typer.Option("--type", help="Socket type: stream, dgram or raw.")
    ] = None,
    proto: Annotated[int | None, typer.Option(help="Protocol number of the socket.")] = None,
    packet: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File with the packet, packet programs."),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", "-m", metavar="NAME:KEY=VALUE", help="Set a map entry; repeatable."),
    ] = None,
    map_types: MapTypes = None,
    types: TypeFiles = None,
    types_flags: TypesFlags = None,
    globals_: Globals = None,
    show_maps: Annotated[
        list[str] | None,
        typer.Option("--show-map", metavar="NAME", help="Print a map after the run; repeatable."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Run so often, report the mean time.")] = 1,
    trace_tail_calls: Annotated[
        bool, typer.Option("--trace-tail-calls", help="Follow tail calls into real programs.")
    ] = False,
    engine: Annotated[
        str | None, typer.Option(help="testrun or live; chosen by the kernel if not given.")
    ] = None,
    guest_env: GuestEnv = None,
    expect_dst: Annotated[
        str | None, typer.Option(help="Exit 1 unless the destination is this after the run.")
    ] = None,
    expect_retval: Annotated[
        int | None, typer.Option(help="Exit 1 unless the program returns this.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run one program once in a throwaway kernel and print what it did.

    Boots the kernel, loads PROGRAM of OBJECT there and the maps, sets maps and globals, runs
    PROGRAM with the crafted context, prints return value, addresses, socket storage, tail calls
    and log, and throws the kernel away. Values are numbers, addresses or JSON:
    --map 'hosts:{"id": 1}={"addr": "10.0.0.1"}'.
    """
    if type_ not in (None, "stream", "dgram", "raw"):
        raise typer.BadParameter(f"expected stream, dgram or raw, found {type_}", param_hint="type")
    if not object_.is_file():
        raise typer.BadParameter(f"no file {object_}; build it first", param_hint="OBJECT")
    require_visible("the object", object_)
    for path in types or ():
        require_visible("a file with types", path)
    try:
        request = {
            "object": str(object_.resolve()),
            "program": program,
            "dst": dst,
            "src": src,
            "type": type_,
            "proto": proto,
            "data": packet.read_bytes().hex() if packet else None,
            "maps": [_values.parse_map_entry(text) for text in maps or ()],
            "map_types": dict(_values.parse_map_type(text) for text in map_types or ()),
            "types": [str(path.resolve()) for path in types or ()],
            "types_flags": list(types_flags or ()),
            "globals": dict(_values.parse_global(text) for text in globals_ or ()),
            "show_maps": list(show_maps or ()),
            "repeat": repeat,
            "trace_tail_calls": trace_tail_calls,
            "engine": engine,
        }
    except _values.ValueSyntaxError as error:
        raise typer.BadParameter(str(error)) from error
    report = ask_guest(kernel, request, variables(guest_env))
    if "error" in report:
        raise BpfunitError(report["error"])
    misses = _misses(report, expect_dst, expect_retval)
    if as_json:
        print_json({**report, "expectations_missed": misses})
    else:
        _print(out(), report)
    for miss in misses:
        err().print(f"bpfunit: {miss}", style="red", markup=False)
    raise typer.Exit(ExitCode.NO if misses else ExitCode.OK)


def _misses(report: dict[str, Any], dst: str | None, retval: int | None) -> list[str]:
    found = []
    if dst is not None and report.get("dst") != dst:
        found.append(f"expected destination {dst}, found {report.get('dst', 'none')}")
    if retval is not None and report["retval"] != retval:
        found.append(f"expected return value {retval}, found {report['retval']}")
    return found


def _print(console: Console, report: dict[str, Any]) -> None:
    console.print(
        f"[bold]{escape(report['program'])}[/bold] on {escape(report['kernel'])}, "
        f"engine {report['engine']}"
    )
    table = Table.grid(padding=(0, 2))
    for name, value in _lines(report):
        table.add_row(f"  {name}", escape(value))
    console.print(table)


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("returned", str(report["retval"]))]
    if report["errno"]:
        lines.append(("errno", str(report["errno"])))
    if "dst" in report:
        before, after = report["dst_before"], report["dst"]
        changed = f"{before}, untouched" if before == after else f"{before} → {after}"
        lines.append(("destination", changed))
        storages = report.get("storage", {})
        lines += [(f"storage {name}", str(value)) for name, value in storages.items()]
        lines += _tail_call_lines(report["tail_calls"])
    if "data" in report:
        lines.append(("packet", f"{len(report['data']) // 2} bytes: {report['data']}"))
    if report["duration_ns"] is not None:
        lines.append(("duration", f"{report['duration_ns']} ns"))
    lines += [("log", line) for line in report["log"]]
    lines += [("printk", line) for line in report["printk"]]
    for name, entries in report["maps"].items():
        lines += [(f"map {name}", f"{key} = {value}") for key, value in entries]
        if not entries:
            lines.append((f"map {name}", "empty"))
    return lines


def _tail_call_lines(calls: list[dict[str, Any]] | str) -> list[tuple[str, str]]:
    if isinstance(calls, str):
        return [("tail calls", calls)]
    if not calls:
        return [("tail calls", "none")]
    return [("tail call", f"{c['map']}[{c['index']}] → {c['target']}") for c in calls]
