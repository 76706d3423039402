"""Fixtures for tests that run in a kernel, and what a failing one shows of its runs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import bpfunit
from bpfunit import _native
from bpfunit._paths import closed_cache
from bpfunit.guest import in_guest
from bpfunit.plugin import reuse
from bpfunit.rewrite import ambient
from bpfunit.runs import explain, observation
from bpfunit.values.net import explain_difference

# By byte order of the kernel: clang calls the big-endian target bpfeb.
_DEFAULT_OBJECT = {"little": "bpf/build/hook.bpf.o", "big": "bpf/build/hook.bpfeb.o"}
_ENDIAN = {"little": "el", "big": "eb"}
_BPFFS = Path("/sys/fs/bpf")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Compile on the host, before guests start, what would take them far longer."""
    if not config.getoption("kernel", None) or in_guest():
        return
    if closed := closed_cache():
        raise pytest.UsageError(f"bpfunit: {closed}")
    if built := _native.build():
        os.environ[_native.PATH_VARIABLE] = str(built)


@pytest.fixture
def bpf_load(request: pytest.FixtureRequest) -> Iterator[Callable[..., bpfunit.Object]]:
    """Load objects that are gone when the test ends; arguments as of :func:`bpfunit.load`.

    An object of an earlier test may serve again, put back to what a fresh load gives; it is dead
    for the test that had it, as a closed one is. With ``--bpf-reuse=no`` each load is a fresh one.
    """
    looks_for_leaks = "no_bpf_leaks" in request.fixturenames
    if looks_for_leaks:
        request.getfixturevalue("no_bpf_leaks")  # so that it looks again after our objects are gone
    pool = None if looks_for_leaks else reuse.pool(request.config)
    with ExitStack() as stack:

        def load(path: str | os.PathLike[str], **options: Any) -> bpfunit.Object:
            if pool is None:
                return stack.enter_context(bpfunit.load(path, **options))
            obj = pool.load(path, **options)
            stack.callback(pool.give_back, obj)
            return obj

        yield load


def object_under_test(config: pytest.Config) -> Path:
    """Return ``--bpf-object FILE``, else where the project's own object is built.

    ``{endian}`` in the name stands for ``el`` or ``eb``, the byte order of the machine, as in
    ``hook.bpf{endian}.o``.
    """
    chosen = config.getoption("bpf_object", None)
    if chosen is None:
        return config.rootpath / _DEFAULT_OBJECT[sys.byteorder]
    return Path(str(chosen).replace("{endian}", _ENDIAN[sys.byteorder]))


@pytest.fixture(scope="session")
def bpf_object_path(request: pytest.FixtureRequest) -> Path:
    """Return the object under test: ``--bpf-object FILE``, else the project's own."""
    chosen = request.config.getoption("bpf_object", None)
    path = object_under_test(request.config)
    if not path.is_file():
        remedy = "say --bpf-object FILE" if chosen is None else "the file does not exist"
        pytest.fail(f"find the object under test: no {path}; build it (make bpf), or {remedy}")
    return path


def _is_kept_map(fd: str) -> bool:
    """Whether a descriptor is of a map that coverage keeps for the whole session."""
    try:
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        )
    except (OSError, ValueError):
        return False
    return int(fields.get("map_id", 0)) in ambient.kept_maps


def _bpf_descriptors() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # the descriptor of this very listing
        if _is_kept_map(entry.name):
            continue
        if target.startswith(("anon_inode:bpf", "anon_inode:btf", "socket:")):
            found[int(entry.name)] = target
    return found


@pytest.fixture(autouse=True)
def _clean_bpffs() -> Iterator[None]:
    """Remove what a test pinned in its guest; what fixtures of a wider scope pinned stays."""
    if not in_guest():
        yield
        return
    before = set(_pins())
    yield
    for path in _pins():
        if path not in before:
            with contextlib.suppress(OSError):  # a directory that holds what was there before
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def _pins() -> list[Path]:
    """Return the pins and directories of the BPF file system, what lies deeper first."""
    return [Path(path) for path in sorted(_below(str(_BPFFS)), reverse=True)]


def _below(directory: str) -> Iterator[str]:
    # every test looks twice, and finds nothing: Path.rglob alone takes as long as a run
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                yield entry.path
                if entry.is_dir(follow_symlinks=False):
                    yield from _below(entry.path)
    except OSError:
        return  # no such directory, or gone meanwhile


@pytest.fixture
def no_bpf_leaks() -> Iterator[None]:
    """Fail the test when it leaves BPF objects or sockets open."""
    before = _bpf_descriptors()
    yield
    left = {fd: what for fd, what in _bpf_descriptors().items() if before.get(fd) != what}
    if left:
        pytest.fail(f"descriptors left open: {left}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Forget what an earlier test did with an object that both share."""
    for one in observation.live():
        one.forget()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Append what the objects of a failing test did to its report."""
    report = yield
    if report.failed and call.when == "call":
        for one in observation.live():
            if text := explain.describe(one):
                report.sections.append((f"BPF runs of {one.name}", text))
    return report


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Spell out endpoints and addresses that are not equal."""
    return explain_difference(left, right) if op == "==" else None
