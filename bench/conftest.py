"""Fixtures of the benchmarks: the hook's mesh, and the empty programs that give the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
def hook(bpf_load: Any, bpf_object_path: Any) -> Any:
    """The hook under test with its log as in production: from information on."""
    return bpf_load(bpf_object_path, map_types=MAP_TYPES)


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
