"""``bpfunit kernels``: which there are, fetch them, remove them, move the pins."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from bpfunit import kernels
from bpfunit._paths import cache_dir
from bpfunit.cli._common import ExitCode, human_size, out, print_json

app = typer.Typer(
    no_args_is_help=True,
    help="The kernels that tests run in: list, fetch, remove, update.",
)

_AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command(name="list")
def list_kernels(as_json: _AsJson = False) -> None:
    """List the kernels of the catalogue and what of them is on this disk; needs no network."""
    statuses = kernels.inventory()
    if as_json:
        print_json([_as_dict(status) for status in statuses])
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("kernel", "release", "engine", "on disk", "remarks"):
        table.add_column(column)
    for status in statuses:
        row = _as_dict(status)
        size = human_size(row["size"]) if row["cached"] else "[dim]not fetched[/dim]"
        table.add_row(row["series"], row["release"], row["engine"], size, row["remark"])
    console = out()
    console.print(table)
    kernels_alone = human_size(sum(status.record.size for status in statuses if status.record))
    everything = human_size(kernels.disk_usage(cache_dir()))
    console.print(
        f"[dim]{kernels_alone} of kernels; {everything} with what was made for them (modules, "
        f"snapshots, build roots), in {cache_dir()}[/dim]"
    )
    for name, bytes_taken in kernels.roots():
        console.print(f"[dim]{human_size(bytes_taken):>9} {name}[/dim]")


def _as_dict(status: kernels.Status) -> dict[str, Any]:
    entry, record = status.entry, status.record
    remark = ""
    if entry is None:
        remark = "not in the catalogue any more"
    elif entry.refused:
        remark = f"cannot run: {entry.refused}"
    elif status.substitute and record:
        remark = f"{record.release} stands in, the pinned release is gone from the archive"
    elif not entry.headers:
        remark = "no headers in the archive to build the module with"
    engine = "testrun" if (record.headers if record else entry and entry.headers) else "live"
    return {
        "series": entry.name if entry else record.name if record else "",
        "release": entry.release if entry else record.release if record else "",
        "engine": "none" if entry and entry.refused else engine,
        "cached": record is not None,
        "size": record.size if record else 0,
        "remark": remark,
    }


@app.command()
def fetch(
    names: Annotated[
        list[str], typer.Argument(metavar="KERNEL...", help="Series, exact releases, or all.")
    ],
) -> None:
    """Fetch kernels, verified by the archive's signatures, into the cache; progress on stderr.

    The packages come from Debian's archive, without touching this system's packages.
    """
    spec: str | list[str] = "all" if names == ["all"] else names
    console = out()
    for kernel in kernels.resolve_many(spec):
        console.print(f"{kernel.series}\t{kernel.release}\t{kernel.image}")
        if kernel.note:
            console.print(f"  [yellow]{kernel.note}[/yellow]")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="KERNEL", help="Series, exact release, or all.")],
) -> None:
    """Remove a kernel and the modules built for it from the cache."""
    out().print(f"freed {human_size(kernels.remove(name))}")


@app.command()
def update(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only show; exit 1 if pins have moved.")
    ] = False,
    as_json: _AsJson = False,
) -> None:
    """Move the catalogue's pins to the newest releases in the archive and show what changed."""
    changes = kernels.update_pins(write=not dry_run)
    if as_json:
        print_json(
            [
                {"series": c.series, "old": c.old_release, "new": c.new_release or None}
                for c in changes
            ]
        )
    else:
        console = out()
        for change in changes:
            new = change.new_release or "[red]gone from the archive, pin left alone[/red]"
            console.print(f"{change.series}\t{change.old_release} → {new}")
        if not changes:
            console.print("all pins are the newest releases")
    raise typer.Exit(ExitCode.NO if dry_run and changes else ExitCode.OK)
