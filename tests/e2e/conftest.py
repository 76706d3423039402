"""What the end-to-end tests share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfunit._paths import cache_dir

# pytester gives each run a home of its own; kernels and snapshots are the machine's all the same.
os.environ["BPFUNIT_CACHE"] = str(cache_dir())

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the tree and return its directory."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", directory, ROOT], check=True, timeout=300)
    return directory


@pytest.fixture(scope="module")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a cache that has what is in the machine's, snapshots aside, and may be spoilt.

    Kernels and what is made from them are links: one that is added or removed here is not there.
    """
    directory = tmp_path_factory.mktemp("cache")
    for area in ("boot", "bytecode", "kernels", "modules", "native"):
        (directory / area).mkdir()
        shared = cache_dir() / area
        for one in shared.iterdir() if shared.is_dir() else ():
            if not one.name.endswith(".lock"):
                (directory / area / one.name).symlink_to(one)
    yield directory
    shutil.rmtree(directory)  # a snapshot takes hundreds of megabytes
