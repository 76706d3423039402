"""TCP_CONNECT: a connection begins; is it one of the mesh's?"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bpfunit import faults
from bpfunit.progtypes.sock_ops import OPS, tcp_header

from .world import Direction, World

FOLLOWED = {"tcp_connect", "active_established", "passive_established", "state"}


def test_connection_of_a_managed_workload_is_outbound(world: World):
    world.manage(world.family.pod)

    run = world.follow.run("tcp_connect", sock=world.connected().client)

    assert run.retval == 1
    assert run.storage("km_sockstorage").direction == Direction.OUTBOUND


def test_nothing_but_the_direction_is_noted(world: World):
    world.manage(world.family.pod)

    run = world.follow.run("tcp_connect", sock=world.connected().client)

    storage = run.storage("km_sockstorage")
    storage.direction = 0
    assert not any(bytes(storage))
    assert (run.cb_flags, run.log, world.followed()) == (frozenset(), [], [])


def test_what_the_connect_hook_noted_stays(world: World):
    world.manage(world.family.pod)
    client = world.going_to(world.family.vip, 80, connect_ns=7, has_set_ip=True)
    before = world.obj.maps.km_sockstorage[client]

    run = world.follow.run("tcp_connect", sock=client)

    before.direction = Direction.OUTBOUND
    assert bytes(run.storage("km_sockstorage")) == bytes(before)


def test_unmanaged_workload_is_left_alone(world: World):
    run = world.follow.run("tcp_connect", sock=world.connected().client)

    assert run.retval == 1
    assert run.storage("km_sockstorage") is None


def test_it_is_the_workloads_own_address_that_counts(world: World):
    world.manage(world.family.waypoint)
    world.manage(world.family.pods[1])

    run = world.follow.run("tcp_connect", sock=world.connected().client)

    assert run.storage("km_sockstorage") is None


def test_failing_storage_is_logged_and_survived(load_world: Callable[..., World]):
    world = load_world(instrument=[faults.no_storage()])
    world.manage(world.family.pod)

    run = world.follow.run("tcp_connect", sock=world.connected().client)

    assert run.retval == 1
    assert run.log == ["error: cannot follow a new connection: no socket storage"]


@pytest.mark.parametrize("op", sorted(OPS.keys() - FOLLOWED))
def test_other_ops_do_nothing(world: World, op: str):
    world.manage(world.family.pod)
    world.manage("::1" if ":" in world.family.pod else "127.0.0.1")
    packet = {"skb": tcp_header("A")} if op == "parse_hdr_opt" else {}
    sock = None if op == "tcp_listen" else world.outbound().client

    run = world.follow.run(op, sock=sock, **packet)

    assert run.retval == 1
    assert (run.cb_flags, run.log, world.followed()) == (frozenset(), [], [])
    if sock is not None:
        assert run.storage("km_sockstorage").connect_success == 0
