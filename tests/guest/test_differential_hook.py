"""The engines against each other on the connect hook itself, its maps filled at random."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from bpfunit import engines

from ..hook.families import ALL, Family
from ..hook.mesh import JOIN, LEAVE, MAP_TYPES, Mesh

pytestmark = pytest.mark.guest

# Runs of the hook, for each family; among much fewer than 24, none may be rewritten.
CASES = max(24, int(os.environ.get("BPFUNIT_CASES", "1200")) // 6)
PORTS = (53, 80, 443, 8080)


@pytest.fixture(params=ALL, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """Each kind of connection in turn."""
    return request.param


@pytest.fixture
def mesh(bpf_load: Callable[..., Any], bpf_object_path: Any, family: Family) -> Iterator[Mesh]:
    """The hook on both engines, small maps, every log line."""
    engines.get("live")  # the sockets of the mesh are to be in its cgroup
    small = dict.fromkeys(("km_frontend", "km_endpoint", "km_backend", "km_manage"), 256)
    obj = bpf_load(
        bpf_object_path,
        engine="both",
        map_types=MAP_TYPES,
        max_entries=small,
        globals={"bpf_log_level": 3},
    )
    with closing(Mesh(obj, family)) as mesh:
        yield mesh


def fill(mesh: Mesh, chance: random.Random) -> None:
    """Make a mesh of a few services and backends, some of it missing or contradictory."""
    family = mesh.family
    for name in ("km_frontend", "km_service", "km_endpoint", "km_backend", "km_manage"):
        mesh.obj.maps[name].clear()
    if chance.random() < 0.9:
        mesh.manage()
    waypoint = (family.waypoint, 15019) if chance.random() < 0.3 else None
    backends = [
        mesh.backend(pod, waypoint=waypoint if chance.random() < 0.3 else None)
        for pod in family.pods[: chance.randrange(4)]
    ]
    if chance.random() < 0.3:
        mesh.dns_proxy(family.pods[4])
    if backends and chance.random() < 0.2:
        mesh.frontend(family.vip2, chance.choice(backends))
    missing = [999] * (chance.random() < 0.2)  # an endpoint whose backend is not there
    # one endpoint at most, so that the hook has no choice to make by chance
    endpoints = {chance.randrange(7): (backends + missing)[:1]} if chance.random() < 0.9 else {}
    mesh.service(
        family.vip,
        ports=[(port, 8000 + n) for n, port in enumerate(chance.sample(PORTS, 3))],
        policy=chance.randrange(4),
        endpoints=endpoints,
        waypoint=waypoint,
    )


def test_engines_agree_on_a_random_mesh(mesh: Mesh):
    chance = random.Random(mesh.family.name)
    places = (mesh.family.vip, mesh.family.vip2, mesh.family.pods[0])
    rewritten = 0
    for n in range(CASES):
        if n % 4 == 0:
            fill(mesh, chance)
        sock_type = chance.choice((socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_DGRAM))
        with socket.socket(mesh.family.socket_family, sock_type) as sock:
            for _ in range(chance.choice((1, 1, 2))):  # the second connect of a socket, too
                if chance.random() < 0.1:
                    address, number = mesh.family.control, chance.choice((JOIN, LEAVE))
                else:
                    address, number = chance.choice(places), chance.choice(PORTS)
                run = mesh.connect(address, number, sock=sock)
                assert (run.engine, run.retval) == ("both", 1)
                rewritten += not run.untouched
    assert rewritten
