"""What the end-to-end tests share."""

from __future__ import annotations

import os
import subprocess
import sys
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
