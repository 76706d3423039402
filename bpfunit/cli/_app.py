"""The command tree and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from bpfunit._paths import closed_cache
from bpfunit.cli import diff, doctor, explore, init, kernels, run, shell
from bpfunit.cli._common import EXIT_CODES_HELP, ExitCode, err
from bpfunit.errors import BpfunitError

app = typer.Typer(
    name="bpfunit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Unit tests for eBPF programs that Linux itself cannot unit-test.\n\n"
        "Programs run in throwaway kernels; nothing is ever loaded on this machine. "
        "The tests themselves are started by `pytest --kernel 6.12`; this command "
        "checks the machine, keeps the kernels, and does single runs.\n\n"
        "New here: `bpfunit doctor`, then `bpfunit init` in your project, "
        "then `pytest --kernel 6.12`."
    ),
    epilog=EXIT_CODES_HELP,
)
app.command(name="doctor")(doctor.doctor)
app.add_typer(kernels.app, name="kernels")
app.command(name="shell")(shell.shell)
app.command(name="run", epilog=run.EPILOG)(run.run)
app.command(name="explore", epilog=explore.EPILOG)(explore.explore)
app.command(name="diff", epilog=diff.EPILOG)(diff.diff)
app.command(name="init")(init.init)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bpfunit {version('bpfunit')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Hold the options that come before a command."""


def _open_standard_streams() -> None:
    """Open those of our streams that are closed: other files would take their numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def main() -> None:
    """Run the command line; every error of ours becomes one message and an exit code."""
    _open_standard_streams()
    try:
        app()
    except BpfunitError as error:
        err().print("bpfunit:", str(error), style="red", markup=False)
        sys.exit(ExitCode.ERROR)
    except PermissionError as error:
        if not (closed := closed_cache()):
            raise
        err().print("bpfunit:", f"{closed} ({error.strerror})", style="red", markup=False)
        sys.exit(ExitCode.ERROR)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
