"""The compilers a user may have, each in a small root in the cache; nothing is installed.

Each builds the connect hook and ``stack.bpf.c`` with the libbpf headers of its own suite.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bpfunit._paths import cache_dir
from bpfunit.kernels._apt import SuiteIndex
from bpfunit.kernels._progress import Reporter
from bpfunit.kernels._toolchain import Toolchain, build_root
from bpfunit.kernels.catalogue import BuildRoot, Suite, load_catalogue

from ..objects import compiled
from .objects import BUILD, LIST

_PROJECT = BUILD.parent.parent
_SUITES = {
    "bookworm": (
        Suite("bookworm", "debian", "main"),
        Suite("bookworm-security", "debian-security", "main"),
    ),
    "sid": (Suite("sid", "debian", "main"),),
}
_ALWAYS = {"bookworm": ("clang-14", "clang-16", "clang-19"), "sid": ()}
_BESIDE = ("base-files", "coreutils", "dash", "libbpf-dev", "linux-libc-dev")


@dataclass(frozen=True)
class Compiler:
    """One compiler.

    Attributes:
        name: ``"clang-16"``.
        suite: where it comes from.
        version: what it says of itself.
        hook: the connect hook as it built it.
    """

    name: str
    suite: str
    version: str
    hook: Path


def compilers() -> list[Compiler]:
    """Return the compilers with their hooks built, the oldest first; leave a list for guests.

    Raises:
        KernelsError: a root cannot be made.
        CalledProcessError: a compiler refuses a program.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    wrappers: dict[str, tuple[str, Path]] = {}
    for suite in _SUITES:
        names = dict.fromkeys((*_ALWAYS[suite], _newest(suite)))
        root = _root(suite, list(names))
        for name in names:
            wrappers.setdefault(name, (suite, _wrapper(name, root)))
    objects = {name: compiled("stack", clang=str(path)) for name, (_, path) in wrappers.items()}
    LIST.write_text(json.dumps({name: str(path) for name, path in objects.items()}, indent=1))
    return [_compiler(name, suite, path) for name, (suite, path) in wrappers.items()]


def _newest(suite: str) -> str:
    """Return the newest clang of a suite."""
    names: set[str] = set()
    for one in _SUITES[suite]:
        index = SuiteIndex(load_catalogue(), one, cache_dir() / "stacks" / "apt", sources=True)
        index.refresh(max_age_s=86400)
        names |= {name for name in index.names("clang-") if re.fullmatch(r"clang-\d+", name)}
    return max(names, key=lambda name: int(name.partition("-")[2]))


def _root(suite: str, names: Sequence[str]) -> Path:
    """Return the directory of a root with some compilers."""
    spec = BuildRoot(f"clang-{suite}", _SUITES[suite], names[0], (*names[1:], *_BESIDE))
    with Reporter() as reporter:
        return build_root(spec, reporter.task(f"{', '.join(names)} from {suite}"))


def _wrapper(name: str, root: Path) -> Path:
    """Write a script that runs a compiler of a root in the caller's directory."""
    inside = ["/bin/sh", "-c", 'cd "$0" && exec "$@"']
    command = shlex.join(Toolchain(name, name, root).command(inside, [_PROJECT]))
    path = BUILD / name
    path.write_text(f'#!/bin/sh\nexec {command} "$PWD" {name} "$@"\n')
    path.chmod(0o755)
    return path


def _compiler(name: str, suite: str, wrapper: Path) -> Compiler:
    said = subprocess.run([wrapper, "--version"], capture_output=True, text=True, check=True)
    # below bpf/build, where the project's own objects are
    build = f"build/{name}"
    place = str(_PROJECT / "bpf")
    make = ["make", "-s", "-B", "-C", place, f"BUILD={build}", f"CLANG={wrapper}"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    version = re.search(r"version (\S+)", said.stdout)
    assert version, said.stdout
    return Compiler(name, suite, version[1], _PROJECT / "bpf" / build / "hook.bpf.o")
