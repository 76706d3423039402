"""QEMU as a process, with the sockets between it and its supervisor."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

TYPE_CHECKING = False  # importing typing costs more than all of the above
if TYPE_CHECKING:
    from typing import Any

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
GRACE = 3.0  # seconds for a hung kernel to print where it hangs, and for QEMU to end


class MonitorError(Exception):
    """QEMU's monitor refuses what it was asked, or QEMU ended."""


def die_with_parent(sig: int, parent: int) -> None:
    """Have the kernel send a signal to this process when its parent is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), sig)


class Qemu:
    """One QEMU at a time: the guest's, or before it the one that makes a snapshot.

    Args:
        directory: of the guest; what QEMU says of itself goes to the file ``qemu`` there.

    Attributes:
        io: the stream of the guest's worker.
        report: lines that the guest writes about itself.
        monitor: QEMU's monitor, JSON both ways.
    """

    io: socket.socket
    report: socket.socket
    monitor: socket.socket

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = 0  # requests to the monitor

    def launch(self, command: list[str], console: Path) -> None:
        """Start QEMU.

        Args:
            command: its arguments; ``@IO@``, ``@REPORT@`` and ``@MONITOR@`` stand for descriptors
                and ``@CONSOLE@`` for a path.
            console: the file for the kernel's log.
        """
        ours, theirs = {}, {}
        for name in ("IO", "REPORT", "MONITOR"):
            ours[name], theirs[name] = socket.socketpair()
        values = {f"@{name}@": str(end.fileno()) for name, end in theirs.items()}
        values["@CONSOLE@"] = str(console)
        argv = []
        for word in command:
            for placeholder, value in values.items():
                word = word.replace(placeholder, value)
            argv.append(word)
        parent = os.getpid()
        with (self._directory / "qemu").open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[end.fileno() for end in theirs.values()],
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGKILL, parent),
            )
        for end in theirs.values():
            end.close()
        self.io, self.report, self.monitor = ours["IO"], ours["REPORT"], ours["MONITOR"]
        self._answers = self.monitor.makefile("r")
        with contextlib.suppress(ConnectionError):  # it ended at once, as its status tells
            self.monitor.sendall(b'{"execute":"qmp_capabilities"}\n')

    def status(self) -> int | None:
        """Return with which status it ended, negative for a signal; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def end(self) -> None:
        """End it, if it was started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def panic(self) -> None:
        """Have a hung kernel say on its console where it hangs, by an NMI that makes it panic."""
        self.monitor.setblocking(True)
        assert self._process is not None
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.monitor.sendall(b'{"execute":"inject-nmi"}\n')
            self._process.wait(GRACE)

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Have QEMU's monitor do something and return its answer.

        Raises:
            MonitorError: it refuses, or QEMU ended.
        """
        self._asked += 1
        request = {"execute": command, "arguments": arguments, "id": self._asked}
        with contextlib.suppress(BrokenPipeError):  # QEMU ended, as the empty answer tells
            self.monitor.sendall(json.dumps(request).encode())
        while True:
            try:
                line = self._answers.readline()
            except ConnectionResetError:  # QEMU ended with a request unread
                line = ""
            answer = json.loads(line) if line else {"error": {"desc": self._said()}}
            if not line or answer.get("id") == self._asked:  # else an event, or the greeting
                break
        if "error" in answer:
            raise MonitorError(f"QEMU, asked to {command}: {answer['error']['desc']}")
        return answer["return"]

    def _said(self) -> str:
        said = (self._directory / "qemu").read_text(errors="replace").strip().splitlines()
        return said[-1] if said else "it ended"
