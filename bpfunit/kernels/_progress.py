"""What a fetch shows while it works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def megabytes(size: float) -> str:
    """Return a number of bytes as people read it, in units of 1,000,000."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


class Task:
    """One kernel's line: a step with a name, and a fraction where there is one."""

    def __init__(self, owner: Reporter, name: str) -> None:
        self._owner = owner
        self._name = name
        self._row: TaskID | None = None
        self._shown = ""
        self._started = time.monotonic()

    def step(self, text: str, fraction: float | None = None) -> None:
        """Show what happens now; `fraction` runs from 0 to 1, None where it is not known."""
        bars = self._owner.bars()
        if bars is None:
            if text != self._shown:
                self._owner.line(f"{self._name}: {text}")
        else:
            if self._row is None:
                self._row = bars.add_task(self._name, total=1.0, step=text)
            total = None if fraction is None else 1.0
            bars.update(self._row, total=total, completed=fraction or 0.0, step=text)
        self._shown = text

    def done(self, text: str) -> None:
        """Close the line with a result; a line that never showed a step stays silent."""
        if not self._shown:
            return
        seconds = time.monotonic() - self._started
        bars = self._owner.bars()
        if bars is None:
            self._owner.line(f"{self._name}: {text} ({seconds:.0f} s)")
        elif self._row is not None:
            bars.update(self._row, total=1.0, completed=1.0, step=f"{text} ({seconds:.0f} s)")


class Reporter:
    """The display that the tasks of one call share; nothing is shown before the first step."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._bars: Progress | None = None
        self._mutex = threading.Lock()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def task(self, name: str) -> Task:
        """Return a new line for `name`."""
        return Task(self, name)

    def line(self, text: str) -> None:
        """Print one plain line, unless quiet."""
        if not self._quiet:
            print(f"bpfunit: {text}", file=sys.stderr, flush=True)

    def bars(self) -> Progress | None:
        """Return the bars, started on first use; None where plain lines are the way."""
        if self._quiet or not self._terminal:
            return None
        with self._mutex:
            if self._bars is None:
                # Not at the top: rich takes longer to import than a cached kernel to resolve.
                from rich.console import Console
                from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

                self._bars = Progress(
                    SpinnerColumn(),
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=30),
                    TextColumn("{task.fields[step]}"),
                    console=Console(stderr=True),
                )
                self._bars.start()
            return self._bars
