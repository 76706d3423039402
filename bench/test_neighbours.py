"""What each path of the hook's neighbours costs, per run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from bpfunit.netns import NetworkNamespace
from tests.hook.families import IPV4, IPV6, Family, over
from tests.mesh.world import MAP_TYPES, World
from tests.objects import MESH

ROUNDS = 30


@pytest.fixture
def world(bpf_load: Any, family: Family) -> Iterator[World]:
    """The neighbours with their log as in production, both ends' workloads managed."""
    obj = bpf_load(MESH, map_types=MAP_TYPES)
    with (
        NetworkNamespace(*family.pods, family.waypoint) as namespace,
        namespace.entered(),
        closing(World(obj, family)) as world,
    ):
        world.manage(family.pod)
        world.manage(family.waypoint)
        yield world


def measure(bpf_benchmark: Any, empty: Any, program: Any, *args: Any, **crafted: Any) -> Any:
    """Measure one op or message, again and again on one socket."""

    class Bound:
        """The program with its first argument given: benchmarks take the others by name."""

        def __init__(self, one: Any) -> None:
            self._one, self.name = one, one.name

        def run(self, **options: Any) -> Any:
            return self._one.run(*args, **options)

    return bpf_benchmark(Bound(program), floor=Bound(empty(program)), **crafted)


@pytest.mark.benchmark(group="paths of the sock_ops program")
@over(IPV4, IPV6)
class TestSockOps:
    def test_other_op(self, bpf_benchmark: Any, world: World, empty: Any):
        measure(bpf_benchmark, empty, world.follow, "rtt", sock=world.connected().client)

    def test_connect(self, bpf_benchmark: Any, world: World, empty: Any):
        run = measure(
            bpf_benchmark, empty, world.follow, "tcp_connect", sock=world.connected().client
        )
        assert run.storage("km_sockstorage").direction

    def test_connect_unmanaged(self, bpf_benchmark: Any, world: World, empty: Any):
        client = world.connected().client
        world.obj.maps.km_manage.clear()
        measure(bpf_benchmark, empty, world.follow, "tcp_connect", sock=client)

    def test_connected(self, bpf_benchmark: Any, world: World, empty: Any):
        client = world.outbound(via_waypoint=False).client
        measure(bpf_benchmark, empty, world.follow, "active_established", sock=client)

    def test_connected_through_a_waypoint(self, bpf_benchmark: Any, world: World, empty: Any):
        client = world.outbound().client
        measure(bpf_benchmark, empty, world.follow, "active_established", sock=client)
        assert len(world.followed()) == 1

    def test_accepted(self, bpf_benchmark: Any, world: World, empty: Any):
        server = world.connected().server
        run = measure(bpf_benchmark, empty, world.follow, "passive_established", sock=server)
        assert not run.log

    def test_closed_without_entries(self, bpf_benchmark: Any, world: World, empty: Any):
        measure(bpf_benchmark, empty, world.follow, "state", sock=world.connected().client)


@pytest.mark.benchmark(group="paths of the sk_msg program")
@over(IPV4, IPV6)
class TestSkMsg:
    def test_second_message(self, bpf_benchmark: Any, world: World, empty: Any):
        client = world.going_to(world.family.vip, 80, has_encoded=True)
        run = measure(bpf_benchmark, empty, world.encode, b"GET /", sock=client)
        assert run.untouched

    def test_message_without_storage(self, bpf_benchmark: Any, world: World, empty: Any):
        client = world.connected().client
        measure(bpf_benchmark, empty, world.encode, b"GET /", sock=client)

    def test_first_message(self, bpf_benchmark: Any, world: World, first: Callable[[], Any]):
        bpf_benchmark.record([first().duration_ns for _ in range(ROUNDS)])


@pytest.fixture
def first(world: World) -> Callable[[], Any]:
    """A function that sends the first message of a connection, each time anew."""
    client = world.going_to(world.family.vip, 80)
    storage = world.obj.maps.km_sockstorage[client]

    def send() -> Any:
        world.obj.maps.km_sockstorage[client] = storage
        run = world.encode.run(b"GET /", sock=client)
        assert not run.untouched
        return run

    return send
