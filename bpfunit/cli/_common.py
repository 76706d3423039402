"""What all commands share: exit codes, the two consoles, sizes as people read them."""

from __future__ import annotations

import enum
import json
from typing import Any

from rich.console import Console


class ExitCode(enum.IntEnum):
    """Exit codes of ``bpfunit``; the same for every command; 2 is Typer's own."""

    OK = 0
    """It was done, or the answer is yes."""
    NO = 1
    """It ran and the answer is no: something needed is missing, an expectation did not hold."""
    ERROR = 3
    """It could not be done; the message says why and what to do."""
    INTERRUPTED = 130
    """Ended by Ctrl-C."""


EXIT_CODES_HELP = (
    "Exit codes: 0 done, 1 the answer is no (something missing, an expectation not met), "
    "2 wrong command line, 3 could not be done (the message says what to do), 130 interrupted."
)


def out() -> Console:
    """Return the console of results; made anew so that a test's redirected stdout is honoured."""
    return Console(highlight=False, soft_wrap=True)


def err() -> Console:
    """Return the console of progress and errors."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print ``value`` as JSON, one document, nothing beside it."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def human_size(size: int) -> str:
    """Return a size in bytes as people write it: ``412 B``, ``3.4 MiB``."""
    if size < 1024:
        return f"{size} B"
    amount = size / 1024
    for unit in ("KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
