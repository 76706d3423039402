"""``bpfunit doctor``: what is there, what is missing, how to get it, and what will be used."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bpfunit.cli._checks import CHECKS, Finding
from bpfunit.cli._common import ExitCode, out, print_json
from bpfunit.cli._plan import Plan, make_plan

_MARKS = {"ok": "[green]✓[/green]", "note": "[yellow]![/yellow]", "missing": "[red]✗[/red]"}


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as one JSON document.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say what each thing is needed for.")
    ] = False,
) -> None:
    """Check this machine: what is there, what is missing, and which command gets it.

    Ends with what a run would use, and why: the accelerator (KVM or software emulation) and, for
    each kernel, the engine. Changes nothing and needs no network. Exit code 1 when something is
    missing without which no test can run; notes alone leave it at 0.
    """
    findings = [check() for check in CHECKS]
    plan = make_plan()
    findings.append(plan.finding())
    stopped = any(finding.status == "missing" for finding in findings)
    if as_json:
        print_json(
            {
                "ready": not stopped,
                "findings": [asdict(finding) for finding in findings],
                "plan": plan.as_dict(),
            }
        )
    else:
        _print(findings, plan, verbose)
    raise typer.Exit(ExitCode.NO if stopped else ExitCode.OK)


def _print(findings: list[Finding], plan: Plan, verbose: bool) -> None:
    console = out()
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        row = [_MARKS[finding.status], finding.name, escape(finding.found)]
        if verbose or finding.status != "ok":
            row.append(f"[dim]{escape(finding.purpose)}[/dim]")
        table.add_row(*row)
    console.print(table)
    remedies = [finding for finding in findings if finding.status != "ok" and finding.remedy]
    if remedies:
        console.print("\nWhat to do:")
        for finding in remedies:
            weight = "bold" if finding.status == "missing" else "dim"
            console.print(f"  [{weight}]{finding.name}[/{weight}]: {escape(finding.remedy)}")
    console.print("\nA run would use:")
    for line in plan.lines():
        console.print(f"  {escape(line)}")
    if any(finding.status == "missing" for finding in findings):
        console.print("\n[red]Not ready:[/red] no test can run until what is marked ✗ is there.")
    else:
        console.print("\n[green]Ready.[/green] Next: bpfunit init, or pytest --kernel 6.12")
