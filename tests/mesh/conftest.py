"""Fixtures of the neighbours' tests: the loaded object, in a network namespace of its family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from bpfunit.netns import NetworkNamespace

from ..hook import families
from ..hook.families import Family
from ..objects import MESH
from .world import MAP_TYPES, World

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this directory runs BPF programs, and so needs a kernel of its own."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.guest)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option by which the mutants of these programs are tested."""
    parser.getgroup("bpfunit").addoption(
        "--mesh-object", type=Path, default=None, help="the neighbours under test"
    )


@pytest.fixture
def mesh_object(request: pytest.FixtureRequest) -> Path:
    """The object under test."""
    path: Path = request.config.getoption("mesh_object", None) or MESH
    if not path.is_file():
        pytest.fail(f"find the neighbours under test: no {path}; build it (make bpf)")
    return path


@pytest.fixture(params=families.ALL, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """Each kind of connection in turn: IPv4, IPv6, and IPv4 on an IPv6 socket."""
    return request.param


@pytest.fixture(scope="session")
def namespaces() -> Iterator[Callable[[Family], NetworkNamespace]]:
    """A function that gives the network namespace of a family: making one takes 5.10 seconds."""
    with ExitStack() as stack:
        made: dict[str, NetworkNamespace] = {}

        def of(family: Family) -> NetworkNamespace:
            if family.name not in made:
                made[family.name] = stack.enter_context(
                    NetworkNamespace(*family.pods, family.waypoint)
                )
            return made[family.name]

        yield of


@pytest.fixture
def network(family: Family, namespaces: Callable[[Family], NetworkNamespace]) -> Iterator[None]:
    """Have the test in a network namespace with the addresses of pods and waypoint."""
    with namespaces(family).entered():
        yield


@pytest.fixture
def load_world(
    network: None, bpf_load: Any, mesh_object: Path, family: Family
) -> Iterator[Callable[..., World]]:
    """A function that loads the neighbours afresh, with options of :func:`bpfunit.load`.

    The maps are empty; the log is down to errors.
    """
    with ExitStack() as worlds:

        def load(**options: Any) -> World:
            obj = bpf_load(
                mesh_object, globals={"bpf_log_level": 0}, map_types=MAP_TYPES, **options
            )
            return worlds.enter_context(closing(World(obj, family)))

        yield load


@pytest.fixture
def world(load_world: Callable[..., World]) -> World:
    """The neighbours, nobody managed and no connection followed."""
    return load_world()
