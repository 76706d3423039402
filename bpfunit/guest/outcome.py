"""How a guest ended, in one word, and the kernel's last words."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from bpfunit._arch import ARCHITECTURES

if TYPE_CHECKING:
    from pathlib import Path

_LAST_LINES = 80
_BEFORE_OOPS = 4  # lines of context before the first line of trouble
_OOPS = "|".join(one.oops for one in ARCHITECTURES.values())
_TROUBLE = re.compile(
    rf"Kernel panic|Oops[: ]|BUG: |{_OOPS}|Out of memory: |unable to handle|"
    r"watchdog: BUG|NMI: Not continuing|Timeout \(\d"
)
_PANIC = re.compile(rf"Kernel panic|Oops[: ]|{_OOPS}|BUG: unable to handle")
_OUT_OF_MEMORY = re.compile(r"Out of memory: Killed process|System is deadlocked on memory")
_TEST_TIMEOUT = re.compile(r"^Timeout \(\d+:\d\d:\d\d", re.MULTILINE)
_KILLED = 128 + 9


class Death(Enum):
    """The ways in which a guest ends before its work is done; the value is its name in reports."""

    PANIC = "kernel panic"
    HANG = "guest hangs"
    TEST_TIMEOUT = "test timeout"
    OUT_OF_MEMORY = "out of memory"
    KILLED = "QEMU killed"
    NEVER_BOOTED = "guest never booted"
    QEMU_ERROR = "QEMU did not start"
    WORKER = "worker ended"


@dataclass(frozen=True)
class ExitReport:
    """What is known about a guest's end.

    Attributes:
        death: of what.
        detail: a few words more.
        last_words: the end of the console log, from the first line of trouble where there is one.
    """

    death: Death
    detail: str
    last_words: str

    def __str__(self) -> str:
        """Return the death and its detail in a line."""
        return f"{self.death.value}: {self.detail}" if self.detail else self.death.value


def read_exit_report(directory: Path) -> ExitReport:
    """Find out how a guest ended.

    Args:
        directory: the guest's own, as its supervisor left it.
    """
    try:
        status = json.loads((directory / "status.json").read_text())
    except (OSError, ValueError):
        return ExitReport(Death.KILLED, "its supervisor left no status", "")
    console = _text(directory / "console")
    qemu = _text(directory / "qemu").strip()
    death, detail = _classify(status, console, qemu)
    return ExitReport(death, detail, last_words(console) or qemu)


def _classify(status: dict[str, object], console: str, qemu: str) -> tuple[Death, str]:
    ended, detail = str(status["ended"]), str(status["detail"])
    if ended == "hang":
        return Death.HANG, detail
    if ended == "killed":
        return Death.KILLED, f"by {detail}"
    killed = ended == "qemu" or (ended == "exit" and detail == str(_KILLED))
    if killed and (found := _OUT_OF_MEMORY.search(console)):
        return Death.OUT_OF_MEMORY, _line_of(console, found.start())
    if ended == "exit":
        if _TEST_TIMEOUT.search(console):
            return Death.TEST_TIMEOUT, "the test ran too long; its stack is in the console log"
        return Death.WORKER, f"the worker ended with status {detail}"
    if found := _PANIC.search(console):
        return Death.PANIC, _line_of(console, found.start())
    if ended == "never-booted":
        return Death.NEVER_BOOTED, detail
    if not status["booted"]:
        if qemu:
            return Death.QEMU_ERROR, qemu.splitlines()[-1]
        return Death.NEVER_BOOTED, detail
    return Death.KILLED, detail or "its supervisor was killed"


def _line_of(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    line = text[start:].partition("\n")[0]
    return re.sub(r"^\[ *[\d.]+\] ", "", line).strip()


def last_words(console: str) -> str:
    """Return the lines of a console log that tell why the kernel ended."""
    lines = console.replace("\r", "").splitlines()
    for number, line in enumerate(lines):
        if _TROUBLE.search(line):
            start = max(0, number - _BEFORE_OOPS)
            return "\n".join(lines[start : start + _LAST_LINES])
    return "\n".join(lines[-_LAST_LINES // 2 :])


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
