"""What ``bpfunit shell`` does on the guest's side: one command, on a terminal or on pipes.

From the host come bytes (what is typed; ``b""`` is its end) and pairs of numbers (the terminal's
new lines and columns). Back go pairs of a stream's number and bytes, then the exit code.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from typing import Any

_CHUNK = 1 << 14
_NOT_FOUND = 127  # as shells have it


def run_in_terminal(channel: Any, argv: list[str], term: str, size: tuple[int, int]) -> None:
    """Run a command in a terminal of its own until it ends.

    Args:
        channel: to the host.
        argv: the command.
        term: ``$TERM`` of the host's terminal.
        size: its lines and columns.
    """
    ours, theirs = pty.openpty()
    _resize(theirs, size)
    try:
        # Debian's shells put debian_chroot in front of their prompts, others take PS1.
        process = subprocess.Popen(
            argv,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={
                **os.environ,
                "TERM": term,
                "PS1": r"(\h) \w# ",
                "debian_chroot": os.uname().release,
            },
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
    except OSError as error:
        _say_not_run(channel, argv[0], error)
        return
    finally:
        os.close(theirs)

    def take(item: Any) -> None:
        if isinstance(item, bytes):
            _write(ours, item)
        elif item is not None:
            _resize(ours, item)

    channel.setcallback(take, endmarker=None)
    with contextlib.suppress(OSError):  # EIO: the last process that held the terminal has closed it
        while data := os.read(ours, _CHUNK):
            channel.send((1, data))
    channel.send(_code(process.wait()))


def run_with_pipes(channel: Any, argv: list[str]) -> None:
    """Run a command with its three streams apart until it ends.

    Args:
        channel: to the host.
        argv: the command.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=_heed_signals
        )
    except OSError as error:
        _say_not_run(channel, argv[0], error)
        return
    assert process.stdin
    assert process.stdout
    assert process.stderr
    stdin = process.stdin

    def take(data: bytes | None) -> None:
        with contextlib.suppress(OSError):  # it may have closed its input, or have ended
            if data:
                _write(stdin.fileno(), data)
            else:
                stdin.close()

    channel.setcallback(take, endmarker=None)
    fds = {1: process.stdout.fileno(), 2: process.stderr.fileno()}
    threads = [threading.Thread(target=_pass_on, args=(channel, *pair)) for pair in fds.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    channel.send(_code(process.wait()))


def _pass_on(channel: Any, stream: int, fd: int) -> None:
    while data := os.read(fd, _CHUNK):
        channel.send((stream, data))


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    _heed_signals()


def _heed_signals() -> None:
    """Undo what the guest's init, a shell, does to commands in the background.

    It starts them with these two ignored, and all that they start could not be interrupted.
    """
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def _say_not_run(channel: Any, name: str, error: OSError) -> None:
    text = f"bpfunit: run {name}: {(error.strerror or '').lower()}\n"
    channel.send((2, text.encode()))
    channel.send(_NOT_FOUND)


def _resize(fd: int, size: tuple[int, int]) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _code(returncode: int) -> int:
    """Return the exit code as shells give it: a signal's number is added to 128."""
    return returncode if returncode >= 0 else 128 - returncode
