"""``bpfunit shell``: a prompt, or one command, in a guest with the module loaded."""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from bpfunit.cli._common import err
from bpfunit.cli._guest import booted, start

_CHUNK = 1 << 14


def shell(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- COMMAND...]", help="Run this instead of a shell."),
    ] = None,
    kernel: Annotated[
        str, typer.Option("--kernel", "-k", help="Series, exact release, or a kernel's path.")
    ] = "6.12",
    memory: Annotated[int, typer.Option(min=256, help="The guest's memory in MiB.")] = 1024,
) -> None:
    """Open a root prompt in a throwaway kernel with the module loaded.

    Your files are there as a copy-on-write snapshot: what is written is gone when the guest ends.
    With a command after --, runs that one and ends with its exit code.
    """
    argv = command or [os.environ.get("SHELL", "/bin/sh")]
    interactive = command is None
    if interactive and not sys.stdin.isatty():
        raise typer.BadParameter("standard input is no terminal; give a command after --")
    with booted(kernel, memory) as (found, gateway):
        if interactive:
            err().print(f"[dim]{found.release}; exit ends the guest[/dim]")
        size = shutil.get_terminal_size()
        term = os.environ.get("TERM", "dumb")
        channel = start(gateway, "run_in_terminal", argv, term, size.lines, size.columns)
        code = _talk(channel, interactive)
    raise typer.Exit(code)


def _talk(channel: Any, interactive: bool) -> int:
    """Carry bytes between this terminal and the guest's until its command ends."""
    waker, woken = os.pipe()
    exit_code: list[int] = []

    def receive(item: Any) -> None:
        if isinstance(item, bytes):
            sys.stdout.buffer.write(item)
            sys.stdout.buffer.flush()
        else:
            if isinstance(item, int):
                exit_code.append(item)
            os.write(woken, b".")

    channel.setcallback(receive, endmarker=None)
    sources = [waker, sys.stdin.fileno()] if interactive else [waker]
    with _raw_terminal() if interactive else _as_it_is():
        while True:
            ready, _, _ = select.select(sources, [], [])
            if waker in ready:
                break
            channel.send(os.read(sys.stdin.fileno(), _CHUNK))
    os.close(waker)
    os.close(woken)
    if not exit_code:
        channel.waitclose()  # raises what went wrong in the guest
        raise EOFError("the guest is gone")
    return exit_code[0]


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Hand every key to the guest, Ctrl-C included."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield
