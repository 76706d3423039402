"""What ``make`` would run, without running it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        ("", "build/bench/results.json"),
        ("-k dns", "build/bench/results.json"),
        ("--benchmark-json=mine.json", "mine.json"),
        ("-k dns --benchmark-json some/mine.json -v", "some/mine.json"),
    ],
)
def test_the_benchmarks_tables_are_made_from_the_file_that_was_asked_for(arguments: str, file: str):
    command = ["make", "--dry-run", "--no-print-directory", "bench", f"BENCH_ARGS={arguments}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *_, report = [line for line in done.stdout.splitlines() if "bpfunit.bench.report" in line]
    assert f'bpfunit.bench.report "{file}" ' in report
