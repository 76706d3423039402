"""``--bpf-types`` and its keys in the configuration, in a project of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFIGURATION = """
[tool.pytest.ini_options]
bpf_types = ["bpf/first.h"]
bpf_types_flags = ["-Ibpf/include", "-DCOUNT=3"]
"""
TEST = """
import ctypes
from bpfunit.values.sources import named_types

def test_sizes():
    named = named_types(None)
    sizes = [ctypes.sizeof(types[name]) for types in named for name in ("first", "second")
             if name in types]
    assert sizes == {sizes}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "bpf" / "include").mkdir(parents=True)
    (tmp_path / "bpf" / "include" / "base.h").write_text("typedef unsigned short base;\n")
    (tmp_path / "bpf" / "first.h").write_text(
        '#include "base.h"\nstruct first { base items[COUNT]; };\n'
    )
    (tmp_path / "second.h").write_text("struct second { int items[MORE]; };\n")
    (tmp_path / "pyproject.toml").write_text(CONFIGURATION)
    return tmp_path


def run(
    project: Path, sizes: list[int], *arguments: str, below: str = "."
) -> subprocess.CompletedProcess[str]:
    (project / below / "test_it.py").write_text(TEST.replace("{sizes}", repr(sizes)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=project / below, capture_output=True, text=True, timeout=120)


def test_files_and_flags_come_from_the_configuration(project: Path) -> None:
    found = run(project, [6])
    assert found.returncode == 0, found.stdout


def test_paths_of_the_configuration_are_relative_to_its_file(project: Path) -> None:
    found = run(project, [6], below="bpf/include")
    assert found.returncode == 0, found.stdout + found.stderr


def test_options_add_to_the_configuration(project: Path) -> None:
    found = run(project, [6, 8], "--bpf-types", "second.h", "--bpf-types-flag=-DMORE=2")
    assert found.returncode == 0, found.stdout


def test_header_that_does_not_compile_ends_the_run_before_it_starts(project: Path) -> None:
    found = run(project, [], "--bpf-types", "second.h")
    assert found.returncode == pytest.ExitCode.USAGE_ERROR
    assert "MORE" in found.stderr
    assert "--bpf-types-flag" in found.stderr
