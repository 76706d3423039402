"""Fixtures of the benchmarks: the hook's mesh, and the empty programs that give the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bpfunit.rewrite import Patcher, ProgramCode
from bpfunit.rewrite import insn as asm
from tests.hook import families
from tests.hook.families import Family
from tests.hook.mesh import MAP_TYPES, Mesh

_HERE = Path(__file__).parent
_BUILD = _HERE.parent / "build" / "bench"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every benchmark of this directory runs BPF programs, and so needs a kernel of its own."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.guest)


class Padding:
    """Adds instructions that do nothing at the entry of every program: a regression to find."""

    def __init__(self, instructions: int) -> None:
        self._snippet = [asm.mov_imm(0, 0)] * instructions  # r0 holds nothing yet

    def rewrite(self, program: ProgramCode) -> None:
        """Add the instructions."""
        patcher = Patcher(program.flow())
        patcher.on_entry(0, self._snippet)
        program.apply(patcher)

    def loaded(self, unreached: Mapping[str, object]) -> None:
        """Refuse to measure a program that went without."""
        if unreached:
            raise LookupError(f"pad programs: not reached: {', '.join(unreached)}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that makes the hook slower on purpose."""
    parser.getgroup("bpfunit").addoption(
        "--pad-hook",
        type=int,
        default=0,
        metavar="N",
        help="add N instructions to the hook, to see that the benchmarks notice",
    )


@pytest.fixture
def hook(request: pytest.FixtureRequest, bpf_load: Any, bpf_object_path: Any) -> Any:
    """The hook under test with its log as in production: from information on."""
    padding = request.config.getoption("pad_hook")
    passes = [Padding(padding)] if padding else []
    return bpf_load(bpf_object_path, map_types=MAP_TYPES, instrument=passes)


@pytest.fixture(params=families.ALL, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """Each kind of connection in turn."""
    return request.param


@pytest.fixture
def unmanaged_mesh(hook: Any, family: Family) -> Iterator[Mesh]:
    """A mesh that does not manage the network namespace the benchmark runs in."""
    mesh = Mesh(hook, family)
    yield mesh
    mesh.close()


@pytest.fixture
def mesh(unmanaged_mesh: Mesh) -> Mesh:
    """A mesh that manages the network namespace the benchmark runs in."""
    unmanaged_mesh.manage()
    return unmanaged_mesh


@pytest.fixture
def empty(bpf_load: Any) -> Callable[[Any], Any]:
    """Return the empty program for the same hook as a given program."""
    built = _BUILD / "empty.bpf.o"
    if not built.exists():
        pytest.fail(f"find the empty programs: {built.name} is not built; run `make -C bench`")
    obj = bpf_load(built)
    return lambda program: obj.programs[f"empty_{program.section.rpartition('/')[2]}"]


@pytest.fixture
def built() -> Path:
    """The directory of what ``make -C bench`` built."""
    return _BUILD
