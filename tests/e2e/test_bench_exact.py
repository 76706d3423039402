"""Benchmarks in exact mode repeat to the instruction, over two boots too, and see one more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[2]
KERNEL = os.environ.get("BPFUNIT_TEST_KERNEL", "6.12")
PATHS = "ipv4 and (unmanaged or udp or frontend_miss or strict or tail_call)"


def bench(storage: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run some of the benchmarks in a fresh guest that counts instructions."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--kernel", KERNEL]
    command += ["--guest-accel", "icount", "bench/test_paths.py", "-k", PATHS]
    command += [f"--benchmark-storage=file://{storage}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def figures(result: subprocess.CompletedProcess[str], file: Path) -> dict[str, list[int]]:
    """Return the rounds of each benchmark in instructions."""
    assert file.exists(), result.stdout + result.stderr
    benchmarks = json.loads(file.read_text())["benchmarks"]
    return {b["name"]: [round(ns * 1e9) for ns in b["stats"]["data"]] for b in benchmarks}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def baseline(storage: Path) -> dict[str, list[int]]:
    """The figures of a first boot, saved for comparison."""
    file = storage / "first.json"
    result = bench(storage, "--benchmark-save=first", f"--benchmark-json={file}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "mode exact" in result.stdout
    return figures(result, file)


def test_ids_in_the_json_name_the_kernel_once(baseline, storage: Path):
    benchmarks = json.loads((storage / "first.json").read_text())["benchmarks"]
    for one in benchmarks:
        assert one["fullname"].count("@") == one["name"].count("@") == 1
        assert one["fullname"].endswith(f"@{KERNEL}")


def test_ten_rounds_in_one_boot_differ_by_at_most_one_instruction(baseline):
    assert len(baseline) >= 5
    for name, rounds in baseline.items():
        assert len(rounds) == 10, name
        assert max(rounds) - min(rounds) <= 1, f"{name}: {rounds}"


def test_two_boots_differ_by_at_most_one_instruction(baseline, storage: Path):
    file = storage / "second.json"
    result = bench(storage, f"--benchmark-json={file}")

    again = figures(result, file)

    assert again.keys() == baseline.keys()
    for name, rounds in again.items():
        assert abs(min(rounds) - min(baseline[name])) <= 1, f"{name}: {rounds}, {baseline[name]}"


def test_one_more_instruction_is_reported_and_fails_the_comparison(baseline, storage: Path):
    file = storage / "padded.json"
    result = bench(
        storage,
        "--pad-hook=1",
        f"--benchmark-json={file}",
        "--benchmark-compare=0001",
        "--benchmark-compare-fail=min:5e-10",
    )

    padded = figures(result, file)

    more = {name: min(rounds) - min(baseline[name]) for name, rounds in padded.items()}
    assert more == dict.fromkeys(baseline, 1)
    assert result.returncode != 0
    assert "Performance has regressed" in result.stdout + result.stderr
