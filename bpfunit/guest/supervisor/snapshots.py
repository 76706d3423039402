"""Makes a snapshot of a guest whose Python is warm, and starts guests from one.

What a snapshot is, and when one stands for a boot: ``snapshot.py`` beside this directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import time
from pathlib import Path

from .qemu import MonitorError

TYPE_CHECKING = False  # importing typing costs more than all of the above
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from .qemu import Qemu

_CHUNK = 1 << 18
_PAGE = 4096
_CLOCK_TRIES, _CLOCK_TOLERANCE = 5, 0.1


class SnapshotError(Exception):
    """A snapshot cannot be made or used; the guest boots without one."""


class Snapshots:
    """The snapshot in one slot of the cache, which all guests of a configuration share.

    Args:
        qemu: is started here, and stopped again after a snapshot was made.
        slot: the snapshot's directory.
        timeout: seconds for a guest to get ready, and for QEMU to load one.
        serve: hears the controller for some seconds.
        ended: whether the guest is not wanted any more.
    """

    def __init__(
        self,
        qemu: Qemu,
        slot: Path,
        timeout: float,
        serve: Callable[[float], None],
        ended: Callable[[], bool],
    ) -> None:
        self._qemu, self._slot, self._timeout = qemu, slot, timeout
        self._serve, self._ended = serve, ended
        self._reports = b""

    def start(self, make: list[str], restore: list[str], directory: Path) -> None:
        """Start a guest from the snapshot, which is made if there is none.

        Args:
            make: QEMU's arguments to boot the guest for a snapshot.
            restore: its arguments to start from one.
            directory: of the guest.

        Raises:
            SnapshotError: it cannot be done.
        """
        try:
            self._start(make, restore, directory)
        except MonitorError as error:
            raise SnapshotError(str(error)) from error

    def _start(self, make: list[str], restore: list[str], directory: Path) -> None:
        state = self._slot / "state"
        with (self._slot / "lock").open("w") as lock:
            while not (self._locked(lock, fcntl.LOCK_SH) and state.exists()):
                if self._locked(lock, fcntl.LOCK_EX) and not state.exists():
                    self._make(make)
                if self._ended():
                    return
            shutil.copyfile(self._slot / "console", directory / "console")
            self._qemu.launch(restore, directory / "console")
            self._restore()
        # Lines that are not answered at once wait in QEMU for the guest to read them.
        seed = os.urandom(32).hex()
        self._qemu.report.sendall(f"{directory.parent} {time.time():.6f} {seed}\n".encode())

    def _locked(self, lock: IO[str], how: int) -> bool:
        """Wait for a lock; return False when told to end meanwhile."""
        while not self._ended():
            try:
                fcntl.flock(lock, how | fcntl.LOCK_NB)
            except BlockingIOError:
                self._serve(0.1)
            else:
                return True
        return False

    def _make(self, argv: list[str]) -> None:
        """Boot a guest until its Python is warm, and save it.

        Raises:
            SnapshotError: it does not get so far.
        """
        self._remove_unfinished()
        try:
            self._save(argv)
        finally:
            self._qemu.end()
            self._remove_unfinished()
        if (self._slot / "state").exists():
            (self._slot / "initramfs").unlink(missing_ok=True)  # the only one to need it is done

    def _remove_unfinished(self) -> None:
        for name in ("ram.all", "ram.new", "state.new", "console.new"):
            (self._slot / name).unlink(missing_ok=True)

    def _save(self, argv: list[str]) -> None:
        self._qemu.launch(argv, self._slot / "console.new")
        self._wait_until_warm(self._slot / "console.new")
        if self._ended():
            return
        self._qemu.ask("stop")
        self._ignore_shared_memory()
        self._qemu.ask("migrate", uri=f"exec:cat >{shlex.quote(str(self._slot / 'state.new'))}")
        while (found := self._qemu.ask("query-migrate"))["status"] != "completed":
            if found["status"] in ("failed", "cancelled"):
                raise SnapshotError(f"QEMU does not save the guest: {found.get('error-desc', '')}")
            time.sleep(0.02)
        self._qemu.end()
        self._reports = b""
        _copy_what_is_used(self._slot / "ram.all", self._slot / "ram.new")
        for name in ("ram", "console", "state"):  # the last one makes it valid
            (self._slot / f"{name}.new").replace(self._slot / name)

    def _wait_until_warm(self, console: Path) -> None:
        """Wait until the guest can be saved, with a clock that runs as ours does.

        A guest that calibrates its clock on a busy machine can come out wrong by a factor; here all
        guests after it would inherit that. What is wrong once may be a pause of ours: ask again.
        """
        for _ in range(_CLOCK_TRIES):
            before, guest_before = self._await_line("clock", console)
            after, guest_after = self._await_line("ready", console)
            if self._ended():
                return
            rate = (guest_after - guest_before) / (after - before)
            if abs(rate - 1) < _CLOCK_TOLERANCE:
                return
            self._qemu.report.sendall(b"again\n")
        raise SnapshotError(f"the clock of the guest for it runs at {rate:.2f} times ours")

    def _await_line(self, word: str, console: Path) -> tuple[float, float]:
        """Return when a line of the guest came that starts with a word, and the number in it."""
        deadline = time.monotonic() + self._timeout
        self._qemu.report.setblocking(False)
        try:
            while not self._ended():
                # a reset is QEMU's end, which its status tells
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    self._reports += self._qemu.report.recv(_CHUNK)
                line, end, rest = self._reports.partition(b"\n")
                if end:
                    self._reports = rest
                    if line.startswith(word.encode()):
                        return time.monotonic(), float(line.split()[1])
                elif self._qemu.status() is not None or time.monotonic() > deadline:
                    # QEMU may have ended before it made the file
                    said = console.read_bytes() if console.exists() else b""
                    last = said.decode(errors="replace").splitlines()[-5:]
                    raise SnapshotError("the guest for it did not get ready: " + " | ".join(last))
                else:
                    self._serve(0.01)
        finally:
            self._qemu.report.setblocking(True)
        return 0.0, 0.0

    def _restore(self) -> None:
        self._ignore_shared_memory()
        self._qemu.ask("migrate-incoming", uri=f"exec:cat {shlex.quote(str(self._slot / 'state'))}")
        deadline = time.monotonic() + self._timeout
        while self._qemu.ask("query-status")["status"] == "inmigrate":
            if time.monotonic() > deadline:
                raise SnapshotError("QEMU does not come to the end of loading it")
            time.sleep(0.01)
        self._qemu.ask("cont")

    def _ignore_shared_memory(self) -> None:
        capability = {"capability": "x-ignore-shared", "state": True}
        self._qemu.ask("migrate-set-capabilities", capabilities=[capability])


def _copy_what_is_used(source: Path, target: Path) -> None:
    """Copy a guest's memory, with holes for pages that hold nothing, which then take no room.

    Those are zeroes, or what Linux on x86 leaves where an initramfs was (``POISON_FREE_INITMEM`` of
    include/linux/poison.h), and in room for code that has none yet. Neither is ever read.
    """
    nothing, zeroes, freed = bytes(_CHUNK), bytes(_PAGE), b"\xcc" * _PAGE
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        size = os.fstat(old.fileno()).st_size
        new.truncate(size)
        for at in range(0, size, _CHUNK):
            data = os.pread(old.fileno(), _CHUNK, at)
            if data == nothing:
                continue
            for start in range(0, len(data), _PAGE):
                page = data[start : start + _PAGE]
                if page not in (zeroes, freed):
                    os.pwrite(new.fileno(), page, at + start)
