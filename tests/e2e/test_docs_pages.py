"""The pages that a newcomer follows, word for word, from a wheel and without the repository."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfunit._paths import cache_dir

sys.path.append(str(Path(__file__).parent))
from walkthrough import Shell, follow

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("newcomer")


@pytest.fixture(scope="module")
def shell(directory: Path, wheelhouse: Path) -> Iterator[Shell]:
    """Open a shell in an empty directory, where pip knows the wheel and nothing of the tree."""
    path = [part for part in os.environ["PATH"].split(":") if not part.startswith(str(ROOT))]
    environment = {
        "PATH": ":".join(path),
        "HOME": str(directory),  # completion is installed into it
        "BPFUNIT_CACHE": str(cache_dir()),
        "PIP_FIND_LINKS": str(wheelhouse),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONPATH": "",
        "COLUMNS": "100",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
    }
    shell = Shell(directory, environment)
    yield shell
    shell.close()


def test_the_tutorial_does_what_it_says(shell: Shell, directory: Path) -> None:
    assert follow(ROOT / "docs/tutorial.md", shell, directory) >= 9
    where, code = shell.type("python -c 'import bpfunit; print(bpfunit.__file__)'")
    assert code == 0
    assert Path(where.strip()).is_relative_to(directory), "it ran from the repository"


@pytest.mark.parametrize("page", ["install.md", "shell.md", "reports.md"])
def test_a_how_to_does_what_it_says(shell: Shell, directory: Path, page: str) -> None:
    """Follow a page that starts where the tutorial ended."""
    if not (directory / "redirect.bpf.o").exists():
        follow(ROOT / "docs/tutorial.md", shell, directory)
    assert follow(ROOT / "docs/howto" / page, shell, directory) >= 1


def test_an_untested_object_becomes_a_suite(shell: Shell, directory: Path) -> None:
    """Follow the page on `explore`, last: the tests that it writes stay in the directory."""
    if not (directory / ".venv").exists():
        for line in ("python3 -m venv .venv", ". .venv/bin/activate", "pip install -q bpfunit"):
            output, code = shell.type(line)
            assert code == 0, output
    assert follow(ROOT / "docs/howto/untested.md", shell, directory) >= 10
