"""Compiles the programs of this directory, each when a test first asks for it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that compiles ``NAME.bpf.c`` and returns the object's path."""
    directory = tmp_path_factory.mktemp("objects")

    @functools.lru_cache
    def compile_program(name: str) -> Path:
        if os.environ.get("BPFUNIT_FOREIGN"):
            # clang is not of this guest's architecture; `make bpf` compiled them on the host
            sys.path.insert(0, str(HERE.parents[1]))
            from tests.objects import example

            return example(name)
        target = directory / f"{name}.bpf.o"
        source = HERE / f"{name}.bpf.c"
        # Debian keeps <asm/types.h> in a directory of the architecture that clang -target bpf skips
        command = ["clang", "-target", "bpf", "-O2", "-g", "-Wall", "-Werror"]
        command += ["-idirafter", "/usr/include/x86_64-linux-gnu", "-c", source, "-o", target]
        subprocess.run(command, check=True, timeout=120)
        return target

    return compile_program
