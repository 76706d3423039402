"""Fixtures of the hook's tests: a loaded hook, and a mesh of each family around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from . import families
from .families import Family
from .mesh import MAP_TYPES, Mesh

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this directory runs BPF programs, and so needs a kernel of its own."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.guest)


@pytest.fixture(params=families.ALL, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """Each kind of connection in turn: IPv4, IPv6, and IPv4 on an IPv6 socket."""
    return request.param


@pytest.fixture
def load_mesh(bpf_load: Any, bpf_object_path: Any, family: Family) -> Iterator[Callable[..., Mesh]]:
    """A function that loads the hook afresh, with options of :func:`bpfunit.load`.

    The maps are empty but for the network namespace that the test runs in, which is managed; the
    log is down to errors.
    """
    with ExitStack() as meshes:

        def load(*, managed: bool = True, log_level: int | None = 0, **options: Any) -> Mesh:
            values = {} if log_level is None else {"bpf_log_level": log_level}
            obj = bpf_load(bpf_object_path, globals=values, map_types=MAP_TYPES, **options)
            mesh = meshes.enter_context(closing(Mesh(obj, family)))
            if managed:
                mesh.manage()
            return mesh

        yield load


@pytest.fixture
def mesh(load_mesh: Callable[..., Mesh]) -> Mesh:
    """A mesh that manages the network namespace the test runs in; what it serves is the test's."""
    return load_mesh()


@pytest.fixture
def unmanaged_mesh(load_mesh: Callable[..., Mesh]) -> Mesh:
    """A mesh that does not manage the network namespace the test runs in."""
    return load_mesh(managed=False)
