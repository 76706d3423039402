"""A terminal with a program in it, as a person sees it: typed at, read from, resized."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

# What a terminal obeys and does not show: colours, cursor movements, modes.
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])")


class Terminal:
    """A program whose standard streams are a terminal of its own.

    Args:
        command: the program and its arguments.
        environment: all of its variables.
        lines: of the terminal.
        columns: of the terminal.
    """

    def __init__(
        self, command: list[str], environment: dict[str, str], lines: int = 24, columns: int = 80
    ) -> None:
        self._ours, theirs = pty.openpty()
        self._buffer = b""
        self.resize(lines, columns)
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._theirs = theirs  # kept, so that its state can be asked for when the program is gone

    def resize(self, lines: int, columns: int) -> None:
        """Change the size; the program gets SIGWINCH."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def read_until(self, pattern: str, seconds: float) -> str:
        """Return what is shown up to a pattern; what comes after it stays to be read.

        Raises:
            AssertionError: it did not appear in that time, or before the program's end.
        """
        deadline = time.monotonic() + seconds
        while True:
            text = _ESCAPES.sub("", self._buffer.decode(errors="replace")).replace("\r", "")
            if match := re.search(pattern, text):
                self._buffer = text[match.end() :].encode()
                return text[: match.end()]
            ended = self.process.poll()
            if self._read(0.2):
                continue
            if ended is not None:
                raise AssertionError(f"it ended with {ended} before {pattern!r}; shown:\n{text}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no {pattern!r} within {seconds} s; shown:\n{text}")

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        self._buffer += os.read(self._ours, 1 << 14)
        return True

    @property
    def echoes(self) -> bool:
        """Whether the terminal is as it was: it echoes, and Ctrl-C is a signal."""
        flags = termios.tcgetattr(self._theirs)[3]
        return bool(flags & termios.ECHO and flags & termios.ISIG and flags & termios.ICANON)

    def close(self) -> None:
        """Kill the program if it runs, and close the terminal."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)
