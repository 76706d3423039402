"""A run as plain data: what ran, on which kernels, with what outcome and what was said."""

from __future__ import annotations

import datetime as dt
import enum
from collections import Counter
from dataclasses import dataclass, field


class Status(str, enum.Enum):
    """How one test ended on one kernel; ordered from bad to good."""

    CRASHED = "crashed"
    """The guest died or stopped answering while the test ran."""
    MISSING = "missing"
    """Collected there, and never reported: its guest was gone, or the run was stopped."""
    ERROR = "error"
    """Set-up or tear-down failed."""
    FAILED = "failed"
    XPASSED = "xpassed"
    """Expected to fail, and passed."""
    XFAILED = "xfailed"
    SKIPPED = "skipped"
    NOT_APPLICABLE = "not-applicable"
    """No real call can produce such a run, so that engine cannot run it."""
    PASSED = "passed"
    ABSENT = "absent"
    """The test is not one of that kernel's: a host test, or one that another guest took."""

    @property
    def is_bad(self) -> bool:
        """Whether a reader must look at it."""
        return self in _BAD

    @property
    def mark(self) -> str:
        """The one character that stands for it in the matrix."""
        return _MARKS[self]


_FAILING = frozenset({Status.CRASHED, Status.ERROR, Status.FAILED})
_BAD = _FAILING | {Status.MISSING}
_MARKS = {
    Status.CRASHED: "☠",
    Status.MISSING: "?",
    Status.ERROR: "!",
    Status.FAILED: "✗",
    Status.XPASSED: "x̄",
    Status.XFAILED: "x",
    Status.SKIPPED: "–",
    Status.NOT_APPLICABLE: "∅",
    Status.PASSED: "✓",
    Status.ABSENT: "·",
}


@dataclass(frozen=True)
class Section:
    """A titled text that belongs to one outcome: a traceback, a log, a path taken."""

    title: str
    text: str


@dataclass(frozen=True)
class Link:
    """Another report of the same run: coverage, benchmark plots.

    Attributes:
        label: the text of the link.
        href: relative to the HTML file, or a ``data:`` URL; never the network.
    """

    label: str
    href: str


@dataclass(frozen=True)
class KernelInfo:
    """One column of the matrix.

    Attributes:
        name: the exact release, as the guest's ``uname -r`` says it; "host" for host tests.
        notes: engine, accelerator, where the kernel came from; one phrase each.
        label: its short name in test ids, after the ``@``; "" for host tests.
        interpreted: whether it interprets programs, since it has no BPF JIT.
    """

    name: str
    notes: tuple[str, ...] = ()
    label: str = ""
    interpreted: bool = False

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"{self.name} (interpreted)" if self.interpreted else self.name


@dataclass
class Outcome:
    """One test on one kernel.

    Attributes:
        test: pytest's node id without the kernel.
        kernel: the column, a :attr:`KernelInfo.name`.
        status: how it ended.
        seconds: set-up, call and tear-down together.
        reason: the one line that says why, for what is not a pass.
        sections: texts to show, in order.
        properties: what the test recorded with ``record_property``, as text.
        death: what the guest died of while the test ran, in one word; "" where it lived or nobody
            knows.
    """

    test: str
    kernel: str
    status: Status
    seconds: float = 0.0
    reason: str = ""
    sections: list[Section] = field(default_factory=list)
    death: str = ""
    properties: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Run:
    """A whole run.

    Attributes:
        title: what was tested.
        command: the command line that makes this run again.
        started: with time zone.
        seconds: wall-clock time of the run.
        exit_code: pytest's.
        kernels: the columns.
        outcomes: in the order in which they came.
        links: other reports of this run.
        remarks: what a reader must know, such as a kernel pin that had to be resolved anew.
    """

    title: str
    command: str
    started: dt.datetime
    seconds: float
    exit_code: int
    kernels: list[KernelInfo]
    outcomes: list[Outcome]
    links: list[Link] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def counts(self, kernel: str | None = None) -> dict[Status, int]:
        """Return how many outcomes of each status there are, on one kernel or on all."""
        found = Counter(o.status for o in self.outcomes if kernel in (None, o.kernel))
        return {status: found[status] for status in Status if found[status]}

    def seconds_on(self, kernel: str) -> float:
        """Return the time that the tests took on one kernel, in seconds."""
        return sum(o.seconds for o in self.outcomes if o.kernel == kernel)

    def rows(self) -> list[Row]:
        """Return the matrix: a row for each test, in the order of first appearance."""
        tests: dict[str, dict[str, Outcome]] = {}
        for outcome in self.outcomes:
            tests.setdefault(outcome.test, {})[outcome.kernel] = outcome
        return [Row(test, self._cells(found)) for test, found in tests.items()]

    def _cells(self, found: dict[str, Outcome]) -> list[Outcome]:
        test = next(iter(found.values())).test
        return [
            found.get(kernel.name) or Outcome(test, kernel.name, Status.ABSENT)
            for kernel in self.kernels
        ]


@dataclass(frozen=True)
class Row:
    """One test across the kernels.

    Attributes:
        test: the node id.
        cells: one outcome for each kernel of the run, in its order.
    """

    test: str
    cells: list[Outcome]

    @property
    def file(self) -> str:
        """The file part of the node id."""
        return self.test.partition("::")[0]

    @property
    def name(self) -> str:
        """The node id after the file."""
        return self.test.partition("::")[2] or self.test

    @property
    def worst(self) -> Status:
        """The outcome that matters most, which the row is filtered by."""
        order = list(Status)
        return min((cell.status for cell in self.cells), key=order.index)

    @property
    def differs(self) -> bool:
        """Whether it passed on one kernel and failed on another; to be missing is not to fail."""
        statuses = {cell.status for cell in self.cells}
        return Status.PASSED in statuses and not statuses.isdisjoint(_FAILING)

    def kernels_by_status(self) -> dict[Status, list[str]]:
        """Return the kernels that have the test, by how it ended there."""
        found: dict[Status, list[str]] = {}
        for cell in self.cells:
            if cell.status is not Status.ABSENT:
                found.setdefault(cell.status, []).append(cell.kernel)
        return found

    @property
    def seconds(self) -> float:
        """The time of all its runs."""
        return sum(cell.seconds for cell in self.cells)
