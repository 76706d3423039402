"""The host's side of one guest: starts QEMU, carries the worker's stream, notices every death.

Run as a script, with the standard library alone: execnet starts one for every guest and takes it
for the Python worker. It answers execnet's handshake at once, so that guests boot side by side
while the controller goes on, and hands the stream to the guest when that is up.

In the directory of its guest it leaves ``console`` (the kernel's log) and ``status.json``::

    {"booted": seconds, 0 before it is up; "ended": "" | one of the names below, "detail": …}

Names: ``exit`` (the worker ended by itself), ``closed`` (the controller closed the stream),
``hang``, ``never-booted``, ``killed`` (QEMU died of a signal), ``qemu`` (QEMU ended by itself: a
panic, or it did not start). Which of those was a panic, the console tells; see ``outcome.py``.

Guests wait for one of the run's slots, so that no more of them run than the machine carries.
Guests of one kernel share a slot, since they wait for each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

TYPE_CHECKING = False  # importing typing costs more than all of the above
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_CHUNK = 1 << 18
_TEST_GRACE = 20.0  # the guest ends a test that takes too long by itself; a stuck kernel cannot
_CLOCK_TRIES, _CLOCK_TOLERANCE = 5, 0.1
_GRACE = 3.0  # seconds for a hung kernel to print where it hangs, and for QEMU to end


class SnapshotError(Exception):
    """A snapshot cannot be made or used; the guest boots without one."""


def die_with_parent(sig: int, parent: int) -> None:
    """Have the kernel send a signal to this process when its parent is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), sig)


class Slots:
    """The slots of a run, in a file that all its supervisors share.

    Args:
        path: the file.
        count: how many kernels may run at once.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._count = count

    def take(self, group: str) -> bool:
        """Take a slot for this process, or stand beside one of the same group."""
        with self._held() as state:
            free = len(state) < self._count
            if group in state or free:
                state.setdefault(group, []).append(os.getpid())
                return True
            return False

    def leave(self) -> None:
        """Give this process's slot back."""
        with self._held() as state:
            for pids in state.values():
                if os.getpid() in pids:
                    pids.remove(os.getpid())

    @contextlib.contextmanager
    def _held(self) -> Iterator[dict[str, list[int]]]:
        with self._path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            state = json.loads(file.read() or "{}")
            # a supervisor that was killed could not give its slot back
            state = {
                group: alive
                for group, pids in state.items()
                if (alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()])
            }
            yield state
            file.truncate(0)
            file.write(json.dumps({group: pids for group, pids in state.items() if pids}))


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
        self._qemu: subprocess.Popen[bytes] | None = None
        self._asked = 0  # requests to QEMU's monitor
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
            self._wait_for_place()
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

    def _wait_for_place(self) -> None:
        self._flush_to_host()
        while not self._status["ended"] and not self._slots.take(self._group):
            self._serve_controller(0.2)

    def _clean_up(self) -> None:
        self._end_qemu()
        if self._status["ended"] == "closed":
            # A dying controller closes its pipes before it counts as dead, and a signal to the
            # whole group reaches it after us.
            deadline = time.monotonic() + (_GRACE if self._signalled else 0.2)
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
            why_not = self._start_from(slot, snapshot["make"], snapshot["restore"])
            if self._status["ended"] or not why_not:
                return
            # Later runs read it, say so, and boot; so does this one.
            self._end_qemu()
            (slot / "failed").write_text(why_not)
        self._launch(self._description["argv"], self._directory / "console")  # type: ignore[arg-type]
        self._listen()

    def _start_from(self, slot: Path, make: list[str], restore: list[str]) -> str:
        """Start from a snapshot, which is made if there is none; return why it cannot be done."""
        with (slot / "lock").open("w") as lock:
            try:
                while not (self._locked(lock, fcntl.LOCK_SH) and (slot / "state").exists()):
                    if self._locked(lock, fcntl.LOCK_EX) and not (slot / "state").exists():
                        self._make(slot, make)
                    if self._status["ended"]:
                        return ""
                shutil.copyfile(slot / "console", self._directory / "console")
                self._launch(restore, self._directory / "console")
                self._restore(slot)
            except SnapshotError as error:
                return str(error)
        # Lines that are not answered at once wait in QEMU for the guest to read them.
        seed = os.urandom(32).hex()
        self._report.sendall(f"{self._directory.parent} {time.time():.6f} {seed}\n".encode())
        self._listen()
        return ""

    def _locked(self, lock: IO[str], how: int) -> bool:
        """Wait for a lock; return False when told to end meanwhile."""
        while not self._status["ended"]:
            try:
                fcntl.flock(lock, how | fcntl.LOCK_NB)
            except BlockingIOError:
                self._serve_controller(0.1)
            else:
                return True
        return False

    def _make(self, slot: Path, argv: list[str]) -> None:
        """Boot a guest until its Python is warm, and save it.

        Raises:
            SnapshotError: it does not get so far.
        """
        for name in ("ram.new", "state.new", "console.new"):
            (slot / name).unlink(missing_ok=True)
        self._launch(argv, slot / "console.new")
        self._wait_until_warm(slot / "console.new")
        if self._status["ended"]:
            self._end_qemu()
            return
        self._ask("stop")
        self._ignore_shared_memory()
        self._ask("migrate", uri=f"exec:cat >{shlex.quote(str(slot / 'state.new'))}")
        while (found := self._ask("query-migrate"))["status"] != "completed":
            if found["status"] in ("failed", "cancelled"):
                raise SnapshotError(f"QEMU does not save the guest: {found.get('error-desc', '')}")
            time.sleep(0.02)
        self._end_qemu()
        self._reports = b""
        for name in ("ram", "console", "state"):  # the last one makes it valid
            (slot / f"{name}.new").replace(slot / name)

    def _wait_until_warm(self, console: Path) -> None:
        """Wait until the guest can be saved, with a clock that runs as ours does.

        A guest that calibrates its clock on a busy machine can come out wrong by a factor; here all
        guests after it would inherit that. What is wrong once may be a pause of ours: ask again.
        """
        for _ in range(_CLOCK_TRIES):
            before, guest_before = self._await_line("clock", console)
            after, guest_after = self._await_line("ready", console)
            if self._status["ended"]:
                return
            rate = (guest_after - guest_before) / (after - before)
            if abs(rate - 1) < _CLOCK_TOLERANCE:
                return
            self._report.sendall(b"again\n")
        raise SnapshotError(f"the clock of the guest for it runs at {rate:.2f} times ours")

    def _await_line(self, word: str, console: Path) -> tuple[float, float]:
        """Return when a line of the guest came that starts with a word, and the number in it."""
        assert self._qemu is not None
        deadline = time.monotonic() + float(self._description["boot_timeout"])  # type: ignore[arg-type]
        self._report.setblocking(False)
        try:
            while not self._status["ended"]:
                with contextlib.suppress(BlockingIOError):
                    self._reports += self._report.recv(_CHUNK)
                line, end, rest = self._reports.partition(b"\n")
                if end:
                    self._reports = rest
                    if line.startswith(word.encode()):
                        return time.monotonic(), float(line.split()[1])
                elif self._qemu.poll() is not None or time.monotonic() > deadline:
                    last = console.read_bytes().decode(errors="replace").splitlines()[-5:]
                    raise SnapshotError("the guest for it did not get ready: " + " | ".join(last))
                else:
                    self._serve_controller(0.01)
        finally:
            self._report.setblocking(True)
        return 0.0, 0.0

    def _restore(self, slot: Path) -> None:
        self._ignore_shared_memory()
        self._ask("migrate-incoming", uri=f"exec:cat {shlex.quote(str(slot / 'state'))}")
        deadline = time.monotonic() + float(self._description["boot_timeout"])  # type: ignore[arg-type]
        while self._ask("query-status")["status"] == "inmigrate":
            if time.monotonic() > deadline:
                raise SnapshotError("QEMU does not come to the end of loading it")
            time.sleep(0.01)
        self._ask("cont")

    def _ignore_shared_memory(self) -> None:
        capability = {"capability": "x-ignore-shared", "state": True}
        self._ask("migrate-set-capabilities", capabilities=[capability])

    def _ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Have QEMU's monitor do something and return its answer.

        Raises:
            SnapshotError: it refuses, or QEMU ended.
        """
        self._asked += 1
        request = {"execute": command, "arguments": arguments, "id": self._asked}
        with contextlib.suppress(BrokenPipeError):  # QEMU ended, as the empty answer tells
            self._monitor.sendall(json.dumps(request).encode())
        while True:
            try:
                line = self._monitor_lines.readline()
            except ConnectionResetError:  # QEMU ended with a request unread
                line = ""
            answer = json.loads(line) if line else {"error": {"desc": self._qemu_said()}}
            if not line or answer.get("id") == self._asked:  # else an event, or the greeting
                break
        if "error" in answer:
            raise SnapshotError(f"QEMU, asked to {command}: {answer['error']['desc']}")
        return answer["return"]

    def _qemu_said(self) -> str:
        said = (self._directory / "qemu").read_text(errors="replace").strip().splitlines()
        return said[-1] if said else "it ended"

    def _serve_controller(self, seconds: float) -> None:
        """Wait a little, and hear the controller meanwhile."""
        self._flush_to_host()
        for key, _ in self._selector.select(timeout=seconds):
            if key.fileobj is self._stopped:
                self._stop()
            elif key.fileobj == 0:
                self._read_host()

    def _launch(self, command: list[str], console: Path) -> None:
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
            self._qemu = subprocess.Popen(
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
        self._io, self._report, self._monitor = ours["IO"], ours["REPORT"], ours["MONITOR"]
        self._monitor_lines = self._monitor.makefile("r")
        self._monitor.sendall(b'{"execute":"qmp_capabilities"}\n')

    def _listen(self) -> None:
        self._io.setblocking(False)
        self._started = self._last_sign = time.monotonic()
        for fd in (self._io, self._report, self._monitor):
            self._selector.register(fd, selectors.EVENT_READ)

    def _end_qemu(self) -> None:
        if self._qemu is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._qemu.pid, signal.SIGKILL)
            self._qemu.wait()

    def _carry(self) -> None:
        assert self._qemu is not None
        while not self._status["ended"]:
            self._flush_to_host()
            self._want(self._io, self._sendable() > 0)
            for key, events in self._selector.select(timeout=self._wait_time()):
                if key.fileobj is self._io:
                    self._serve_guest(events)
                elif key.fileobj == 0:
                    self._read_host()
                elif key.fileobj is self._stopped:
                    self._stop()
                elif key.fileobj is self._report:
                    self._read_reports()
                elif key.fileobj is self._monitor and not self._monitor.recv(_CHUNK):
                    self._selector.unregister(self._monitor)
            self._check_time()
            if self._qemu.poll() is not None:
                self._qemu_ended(self._qemu.returncode)
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

    def _serve_guest(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            try:
                sent = self._io.send(self._to_guest[: self._sendable()])
            except (BlockingIOError, BrokenPipeError):
                sent = 0
            self._sent_first_line |= self._to_guest[:sent].endswith(b"\n")
            del self._to_guest[:sent]
        if events & selectors.EVENT_READ:
            self._read_guest()

    def _read_guest(self) -> bool:
        try:
            data = self._io.recv(_CHUNK)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if not data:
            if self._io in self._selector.get_map():
                self._selector.unregister(self._io)
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
        data = self._report.recv(_CHUNK)
        if not data:
            self._selector.unregister(self._report)
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
            self._ask_where()
        elif now > self._test_deadline:
            self._end("hang", f"{self._test} ran too long and its process cannot be ended")
            self._ask_where()

    def _ask_where(self) -> None:
        """Have a hung kernel say on its console where it hangs, by an NMI that makes it panic."""
        self._monitor.setblocking(True)
        assert self._qemu is not None
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._monitor.sendall(b'{"execute":"inject-nmi"}\n')
            self._qemu.wait(_GRACE)

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
        deadline = time.monotonic() + _GRACE
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


if __name__ == "__main__":
    main()
