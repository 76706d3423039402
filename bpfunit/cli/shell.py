"""``bpfunit shell``: a prompt, or one command, in a guest with the module loaded."""

from __future__ import annotations

import os
import select
import shutil
import signal
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any

import typer

from bpfunit.cli._common import err
from bpfunit.cli._guest import booted, start, variables
from bpfunit.cli._options import GuestEnv, KernelName

_CHUNK = 1 << 14
_ENDED, _RESIZED = b".", b"w"  # what a pipe tells the loop that carries keys


def shell(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- COMMAND...]", help="Run this instead of a shell."),
    ] = None,
    kernel: KernelName = "6.12",
    memory: Annotated[int, typer.Option(min=256, help="The guest's memory in MiB.")] = 1024,
    guest_env: GuestEnv = None,
) -> None:
    """Open a root prompt in a throwaway kernel with the module loaded.

    Your files are there as a copy-on-write snapshot: what is written is gone when the guest ends.
    With a command after --, runs that one and ends with its exit code. On a terminal the command
    gets one, else its input, output and errors are passed on as they are.
    """
    on_terminal = os.isatty(0) and os.isatty(1)
    if not command and not on_terminal:
        raise typer.BadParameter(
            "standard input and output are no terminal; give a command after --"
        )
    with booted(kernel, memory, variables(guest_env)) as (found, gateway):
        if on_terminal:
            argv = command or [os.environ.get("SHELL", "/bin/sh")]
            if not command:
                err().print(f"[dim]{found.release}; exit ends the guest[/dim]")
            term = os.environ.get("TERM", "dumb")
            channel = start(gateway, "_inside_shell.run_in_terminal", argv, term, _size())
        else:
            channel = start(gateway, "_inside_shell.run_with_pipes", command)
        code = _talk(channel, on_terminal)
    raise typer.Exit(code)


def _size() -> tuple[int, int]:
    size = shutil.get_terminal_size()
    return size.lines, size.columns


def _talk(channel: Any, on_terminal: bool) -> int:
    """Carry bytes between here and the guest's command until that ends; return its exit code."""
    told, tell = os.pipe()
    exit_code: list[int] = []

    def receive(item: Any) -> None:
        if isinstance(item, tuple):
            try:
                _write(*item)
            except BrokenPipeError:  # nobody reads on, as in `bpfunit shell -- dmesg | head`
                exit_code.append(128 + signal.SIGPIPE)
                os.write(tell, _ENDED)
        else:
            if isinstance(item, int):
                exit_code.append(item)
            os.write(tell, _ENDED)

    channel.setcallback(receive, endmarker=None)
    with _keys_go_to(tell) if on_terminal else nullcontext():
        _send_input(channel, told, on_terminal)
    if not exit_code:
        channel.waitclose()  # raises what went wrong in the guest
        raise EOFError("the guest is gone")
    return exit_code[0]


def _send_input(channel: Any, told: int, on_terminal: bool) -> None:
    sources = [told]
    # A terminal that is standard input alone belongs to whoever started this in the background.
    if on_terminal or not os.isatty(0):
        sources.append(0)
    else:
        channel.send(b"")
    while True:
        ready, _, _ = select.select(sources, [], [])
        if told in ready:
            if os.read(told, 1) == _ENDED:
                return
            channel.send(_size())
        if 0 in ready:
            data = os.read(0, _CHUNK)
            channel.send(data)
            if not data:
                sources.remove(0)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextmanager
def _keys_go_to(tell: int) -> Iterator[None]:
    """Hand every key to the guest, Ctrl-C included, and tell when the terminal's size changes."""
    before = termios.tcgetattr(0)
    handler = signal.signal(signal.SIGWINCH, lambda *_: os.write(tell, _RESIZED))
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, handler)
