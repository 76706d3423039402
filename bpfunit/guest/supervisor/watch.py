"""Watches one guest: carries its worker's stream, and tells when and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from .qemu import GRACE, Qemu, die_with_parent
from .slots import Slots
from .snapshots import SnapshotError, Snapshots

TYPE_CHECKING = False  # importing typing costs more than all of the above
if TYPE_CHECKING:
    from typing import Any

_CHUNK = 1 << 18
_TEST_GRACE = 20.0  # the guest ends a test that takes too long by itself; a stuck kernel cannot

# A directory without this file was somebody's before the run, and is left alone; see spec.py.
_OWNED = ".bpfunit-run"


class Supervisor:
    """One guest from its first instruction to its last.

    Args:
        description: ``guest.json`` as written by :meth:`bpfunit.guest.spec.GuestSpec.prepare`.
        directory: where the guest's own directory is made.
    """

    def __init__(self, description: dict[str, object], directory: Path) -> None:
        self._description = description
        self._run = Path(str(description["run"]))
        self._directory = directory / str(os.getpid())
        self._directory.mkdir()
        self._controller = os.getppid()
        self._selector = selectors.DefaultSelector()
        self._to_guest = bytearray(b"")
        self._to_host = bytearray(b"1")  # the handshake's answer
        self._answered = self._sent_first_line = self._signalled = False
        self._reports = b""
        self._status: dict[str, object] = {"booted": 0, "ended": "", "detail": ""}
        self._started = self._last_sign = time.monotonic()
        self._test = ""
        self._test_deadline = float("inf")
        self._qemu = Qemu(self._directory)
        slots = description["slots"]
        self._slots = Slots(self._run / "slots", int(slots["count"]))  # type: ignore[index]
        self._group = str(slots["group"])  # type: ignore[index]

    def run(self) -> None:
        """Start the guest, carry bytes until it ends, and clean up."""
        self._write_status()
        self._stopped, wake = socket.socketpair()
        self._stopped.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        # Nothing is done in the handler itself, which may run in the middle of anything.
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to handle
        self._selector.register(self._stopped, selectors.EVENT_READ)
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        self._selector.register(0, selectors.EVENT_READ)
        try:
            self._wait_for_slot()
            if not self._status["ended"]:
                self._start()
            if not self._status["ended"]:
                self._carry()
        finally:
            self._clean_up()

    def _stop(self) -> None:
        self._stopped.recv(_CHUNK)
        self._signalled = True
        self._end("closed", "told to end, or the controller is gone")

    def _wait_for_slot(self) -> None:
        self._flush_to_host()
        while not self._status["ended"] and not self._slots.take(self._group):
            self._serve_controller(0.2)

    def _clean_up(self) -> None:
        self._qemu.end()
        if self._status["ended"] == "closed":
            # A dying controller closes its pipes before it counts as dead, and a signal to the
            # whole group reaches it after us.
            deadline = time.monotonic() + (GRACE if self._signalled else 0.2)
            while os.getppid() == self._controller and time.monotonic() < deadline:
                time.sleep(0.05)
        if os.getppid() == self._controller:
            # A controller on its way out may have removed the run's directory, slots and all.
            with contextlib.suppress(FileNotFoundError):
                self._slots.leave()
        elif (self._run / _OWNED).is_file():  # nobody else is left to remove the run's directory
            shutil.rmtree(self._run, ignore_errors=True)

    def _start(self) -> None:
        snapshot: dict[str, Any] | None = self._description.get("snapshot")  # type: ignore[assignment]
        if snapshot is not None:
            slot = Path(snapshot["slot"])
            timeout: float = self._description["boot_timeout"]  # type: ignore[assignment]
            snapshots = Snapshots(
                self._qemu, slot, timeout, self._serve_controller, self._has_ended
            )
            try:
                snapshots.start(snapshot["make"], snapshot["restore"], self._directory)
            except SnapshotError as error:
                # Later runs read it, say so, and boot; so does this one.
                self._qemu.end()
                (slot / "failed").write_text(str(error))
            else:
                if not self._status["ended"]:
                    self._listen()
                return
        self._qemu.launch(self._description["argv"], self._directory / "console")  # type: ignore[arg-type]
        self._listen()

    def _has_ended(self) -> bool:
        return bool(self._status["ended"])

    def _serve_controller(self, seconds: float) -> None:
        """Wait a little, and hear the controller meanwhile."""
        self._flush_to_host()
        for key, _ in self._selector.select(timeout=seconds):
            if key.fileobj is self._stopped:
                self._stop()
            elif key.fileobj == 0:
                self._read_host()

    def _listen(self) -> None:
        self._qemu.io.setblocking(False)
        self._started = self._last_sign = time.monotonic()
        for fd in (self._qemu.io, self._qemu.report, self._qemu.monitor):
            self._selector.register(fd, selectors.EVENT_READ)

    def _carry(self) -> None:
        while not self._status["ended"]:
            self._flush_to_host()
            self._want(self._qemu.io, self._sendable() > 0)
            for key, events in self._selector.select(timeout=self._wait_time()):
                if key.fileobj is self._qemu.io:
                    self._serve_guest(events)
                elif key.fileobj == 0:
                    self._read_host()
                elif key.fileobj is self._stopped:
                    self._stop()
                elif key.fileobj is self._qemu.report:
                    self._read_reports()
                elif key.fileobj is self._qemu.monitor:
                    self._read_monitor()
            self._check_time()
            if (status := self._qemu.status()) is not None:
                self._qemu_ended(status)
        self._drain()

    def _sendable(self) -> int:
        """Return how much may go to the guest now.

        Up to the handshake that is execnet's first line alone: the worker reads it through a buffer
        that would swallow what follows.
        """
        if self._answered:
            return min(len(self._to_guest), _CHUNK)
        if self._sent_first_line:
            return 0
        return self._to_guest.find(b"\n") + 1

    def _want(self, sock: socket.socket, write: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)
        if sock in self._selector.get_map() and self._selector.get_key(sock).events != events:
            self._selector.modify(sock, events)

    def _wait_time(self) -> float:
        return 0.05 if self._to_host else 1.0

    def _read_host(self) -> None:
        data = os.read(0, _CHUNK)
        if not data:
            self._end("closed", "the controller closed the stream")
        self._to_guest += data

    def _read_monitor(self) -> None:
        """Read what QEMU says unasked, which is nothing that we need, up to its end."""
        try:
            data = self._qemu.monitor.recv(_CHUNK)
        except ConnectionResetError:  # it ended with a request unread
            data = b""
        if not data:
            self._selector.unregister(self._qemu.monitor)

    def _serve_guest(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            try:
                sent = self._qemu.io.send(self._to_guest[: self._sendable()])
            except (BlockingIOError, BrokenPipeError):
                sent = 0
            self._sent_first_line |= self._to_guest[:sent].endswith(b"\n")
            del self._to_guest[:sent]
        if events & selectors.EVENT_READ:
            self._read_guest()

    def _read_guest(self) -> bool:
        try:
            data = self._qemu.io.recv(_CHUNK)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if not data:
            if self._qemu.io in self._selector.get_map():
                self._selector.unregister(self._qemu.io)
            return False
        self._last_sign = time.monotonic()
        if not self._answered:  # the host has had this byte since the start
            self._answered = True
            data = data[1:]
        self._to_host += data
        return True

    def _flush_to_host(self) -> None:
        while self._to_host:
            try:
                sent = os.write(1, self._to_host[:_CHUNK])
            except BlockingIOError:
                return
            except BrokenPipeError:
                self._end("closed", "the controller closed the stream")
                self._to_host.clear()
                return
            del self._to_host[:sent]

    def _read_reports(self) -> None:
        data = self._qemu.report.recv(_CHUNK)
        if not data:
            self._selector.unregister(self._qemu.report)
            return
        self._last_sign = time.monotonic()
        *lines, self._reports = (self._reports + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "up":
                self._status["booted"] = round(time.monotonic() - self._started, 2)
                self._write_status()
            elif word == "test":
                seconds, _, self._test = rest.partition(" ")
                self._test_deadline = time.monotonic() + 2 * float(seconds) + _TEST_GRACE
            elif word == "done":
                self._test_deadline = float("inf")
            elif word == "exit":
                self._end("exit", rest)

    def _check_time(self) -> None:
        now = time.monotonic()
        boot: float = self._description["boot_timeout"]  # type: ignore[assignment]
        silence: float = self._description["silence_timeout"]  # type: ignore[assignment]
        if self._status["ended"]:
            return
        if not self._status["booted"]:
            if now - self._started > boot:
                self._end("never-booted", f"not up after {boot:g} s")
        elif now - self._last_sign > silence:
            self._end("hang", f"no sign of life for {silence:g} s")
            self._qemu.panic()
        elif now > self._test_deadline:
            self._end("hang", f"{self._test} ran too long and its process cannot be ended")
            self._qemu.panic()

    def _qemu_ended(self, code: int) -> None:
        if code < 0:
            self._end("killed", signal.Signals(-code).name)
        else:
            self._end("qemu", f"QEMU ended with status {code}")

    def _end(self, how: str, detail: str) -> None:
        if not self._status["ended"]:
            self._status.update(ended=how, detail=detail)
            self._write_status()

    def _drain(self) -> None:
        """Hand over what the guest sent before it ended."""
        if self._status["ended"] == "closed":
            return
        while self._read_guest():
            pass
        deadline = time.monotonic() + GRACE
        while self._to_host and time.monotonic() < deadline:
            self._flush_to_host()
            time.sleep(0.002)

    def _write_status(self) -> None:
        path = self._directory / "status.json"
        new = path.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):  # the controller went, and nobody reads it
            new.write_text(json.dumps(self._status))
            new.replace(path)


def main() -> None:
    """Supervise the guest described in the file named by the first argument."""
    # The controller's process may die without a word; the pipe alone would tell too late.
    die_with_parent(signal.SIGTERM, os.getppid())
    path = Path(sys.argv[1])
    Supervisor(json.loads(path.read_text()), path.parent).run()
