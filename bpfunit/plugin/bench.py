"""Benchmarks in guests: the ``bpf_benchmark`` fixture, and pytest-benchmark across xdist.

pytest-benchmark switches itself off when xdist is on, since wall clocks of parallel workers disturb
each other. The clock used here is inside the guest's kernel, so the reason does not hold. In the
guest the session is switched on again, every finished benchmark travels back on its test's report,
and on the host it is put into pytest-benchmark's own session as if it had run there: table, JSON,
storage and comparison are then pytest-benchmark's.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pytest_benchmark.stats import Metadata

from bpfunit.bench.clock import KernelClock, Mode, mode_of_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bpfunit.runs.program import Program
    from bpfunit.runs.result import Result

_ATTRIBUTE = "bpfunit_benchmark"
_clock = KernelClock()


@dataclass(frozen=True)
class BpfBenchmark:
    """Measures runs of a BPF program with the kernel's clock; see ``bpf_benchmark``."""

    fixture: Any
    mode: Mode

    def __call__(
        self,
        program: Program,
        *args: Any,
        rounds: int = 10,
        repeat: int = 100,
        floor: Program | None = None,
        **crafted: Any,
    ) -> Result:
        """Measure a program and return the result of the last round.

        Args:
            program: the program to run.
            *args: the input, as for :meth:`bpfunit.runs.program.Program.run`.
            rounds: how many figures to take.
            repeat: runs in one measurement, each from the same crafted address; their mean is the
                figure. In exact mode a round is the least of three measurements, since a timer
                interrupt of the guest counts as instructions too: it comes every few million.
            floor: an empty program for the same hook; what it takes is the fixed cost of the run
                loop, kept beside the figure as ``extra_info["floor_ns"]``.
            **crafted: more of the input, by name.

        Returns:
            The result of the last round.
        """

        def once(measured: Program) -> tuple[Result, int]:
            result = measured.run(*args, repeat=repeat, **crafted)
            if result.duration_ns is None:
                raise LookupError(
                    f"measure {measured.name}: engine {result.engine} has no clock around the "
                    "program alone; benchmarks need --bpf-engine testrun"
                )
            return result, result.duration_ns

        def duration(measured: Program) -> tuple[Result, int]:
            measurements = [once(measured) for _ in range(3 if self.mode is Mode.EXACT else 1)]
            return min(measurements, key=lambda measurement: measurement[1])

        def one_round() -> Result:
            result, ns = duration(program)
            _clock.advance(ns)
            return result

        self.fixture.extra_info["program"] = program.name
        self.fixture.extra_info["repeat"] = repeat
        if floor is not None:
            figures = (duration(floor)[1] for _ in range(rounds + 1))
            self.fixture.extra_info["floor_ns"] = min(figures)
        outcome: Result = self.fixture.pedantic(one_round, rounds=rounds, warmup_rounds=1)
        return outcome

    def record(self, durations_ns: list[int]) -> None:
        """Take durations that were measured elsewhere, each as the figure of one round.

        Args:
            durations_ns: one figure a round, in nanoseconds (in exact mode: instructions).
        """
        figures = iter(durations_ns)
        self.fixture.pedantic(
            lambda: _clock.advance(next(figures)), rounds=len(durations_ns), warmup_rounds=0
        )


@pytest.fixture
def bpf_benchmark(benchmark: Any) -> BpfBenchmark:
    """Measure BPF programs with the clock of the guest's kernel.

    The mode (``exact`` or ``time``) and the kernel are in every result's ``extra_info``.
    """
    mode = mode_of_guest()
    benchmark.extra_info["mode"] = mode.value
    benchmark.extra_info["unit"] = mode.unit
    return BpfBenchmark(benchmark, mode)


def _session(config: pytest.Config) -> Any:
    return getattr(config, "_benchmarksession", None)


class GuestBenchmarks:
    """In the guest: keeps pytest-benchmark switched on and sends what it measured."""

    def __init__(self, kernel: str) -> None:
        self._kernel = kernel

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Hide ``--benchmark-only`` until the session exists: beside xdist it would be refused."""
        self._only = config.option.benchmark_only
        config.option.benchmark_only = False
        # A guest neither saves nor compares: its files are gone with it.
        for option in ("benchmark_json", "benchmark_save", "benchmark_autosave"):
            setattr(config.option, option, None)
        config.option.benchmark_compare = None
        config.option.benchmark_compare_fail = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Switch pytest-benchmark on again."""
        benchmarks = _session(session.config)
        benchmarks.disabled = False
        benchmarks.xdist_warning = False
        benchmarks.only = self._only

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Give benchmarks of BPF programs the kernel's clock."""
        for item in items:
            if "bpf_benchmark" in getattr(item, "fixturenames", ()):
                nearest = item.get_closest_marker("benchmark")
                options = {**(nearest.kwargs if nearest else {}), "timer": _clock}
                # In front of the test's own: pytest-benchmark reads the nearest marker alone.
                item.add_marker(pytest.mark.benchmark(**options), append=False)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        """Put a finished benchmark on the report of its test."""
        outcome: Any = yield
        fixture = getattr(item, "funcargs", {}).get("benchmark")
        if call.when != "call" or fixture is None or fixture.stats is None:
            return
        stats = fixture.stats
        setattr(
            outcome.get_result(),
            _ATTRIBUTE,
            {
                "name": f"{stats.name} @{self._kernel}",
                "fullname": stats.fullname,  # the test's id, which ends in the kernel
                "group": stats.group,
                "param": stats.param,
                "params": {key: str(value) for key, value in (stats.params or {}).items()},
                "extra_info": {**stats.extra_info, "kernel": self._kernel},
                "iterations": stats.iterations,
                "data": list(stats.stats.data),
                "has_error": bool(stats.has_error),
            },
        )
        # Nothing is shown or saved in the guest itself.
        _session(item.config).benchmarks.clear()


class HostBenchmarks:
    """On the host: puts what the guests measured into pytest-benchmark's session."""

    def __init__(self) -> None:
        self._only = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Hide ``--benchmark-only`` until the session exists: beside xdist it would be refused."""
        self._only = config.option.benchmark_only
        config.option.benchmark_only = False

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Switch saving and comparing on again, which xdist had switched off."""
        benchmarks = _session(session.config)
        if benchmarks is not None:
            benchmarks.disabled = False
            benchmarks.xdist_warning = False
            session.config.option.benchmark_only = self._only
            self._benchmarks = benchmarks

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a benchmark off the report of its test."""
        received = getattr(report, _ATTRIBUTE, None)
        if received is not None:
            self._benchmarks.benchmarks.append(_as_metadata(received))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Show figures beside their floor, and say what they count."""
        benchmarks = self._benchmarks.benchmarks
        rows = [_row(b) for b in benchmarks if "floor_ns" in b.extra_info]
        if rows:
            terminalreporter.section("cost per run, the run loop taken away")
            width = max(len(row[0]) for row in rows)
            terminalreporter.write_line(f"{'':{width}}  {'run':>9} {'floor':>9} {'program':>9}")
            for name, run, floor in rows:
                terminalreporter.write_line(
                    f"{name:{width}}  {run:>9,} {floor:>9,} {run - floor:>9,}"
                )
        for benchmark in benchmarks:
            if text := benchmark.extra_info.get("text"):
                terminalreporter.section(benchmark.name)
                terminalreporter.write_line(text)
        for mode in sorted({b.extra_info.get("mode") for b in benchmarks} - {None}):
            terminalreporter.write_line(f"mode {mode}: {_MEANING[Mode(mode)]}")


def _row(benchmark: Metadata) -> tuple[str, int, int]:
    """Return name, least figure and floor of a benchmark, in nanoseconds."""
    return benchmark.name, round(benchmark.stats.min * 1e9), benchmark.extra_info["floor_ns"]


_MEANING = {
    Mode.EXACT: "1 ns in the table is one guest instruction; the column to read is Min",
    Mode.TIME: "nanoseconds of the guest's clock on KVM",
    Mode.EMULATED_TIME: "nanoseconds under software emulation, which say little about a processor; "
    "use --guest-accel icount, or a machine with KVM",
}


def _as_metadata(received: dict[str, Any]) -> Metadata:
    fixture = SimpleNamespace(
        **{key: received[key] for key in ("name", "fullname", "group", "param", "params")},
        extra_info=received["extra_info"],
        has_error=received["has_error"],
        cprofile_stats=None,
    )
    metadata = Metadata(fixture, iterations=received["iterations"], options={"timer": KernelClock})
    for duration in received["data"]:
        metadata.stats.update(duration)
    return metadata
