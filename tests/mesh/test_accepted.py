"""PASSIVE_ESTABLISHED: a workload of the mesh has accepted a connection."""

from __future__ import annotations

import socket
from collections.abc import Callable

from bpfunit import faults

from .world import Direction, World


def managed(world: World) -> socket.socket:
    """Return a connection that a managed workload, the waypoint, has accepted."""
    world.manage(world.family.waypoint)
    return world.connected().server


def test_authorisation_is_asked_for_once(world: World):
    server = managed(world)

    run = world.follow.run("passive_established", sock=server)

    assert run.retval == 1
    expected = (world.family.socket_family, bytes(world.tuple_of(server)))
    assert world.asked(run) == [expected]


def test_connection_is_inbound_and_stands(world: World):
    run = world.follow.run("passive_established", sock=managed(world))

    storage = run.storage("km_sockstorage")
    assert (storage.direction, storage.connect_success) == (Direction.INBOUND, 1)
    storage.direction = storage.connect_success = 0
    assert not any(bytes(storage))


def test_connection_is_followed_to_its_end(world: World):
    run = world.follow.run("passive_established", sock=managed(world), cb_flags=("rto",))

    assert run.cb_flags == {"state", "rto"}


def test_accepted_connection_sends_no_destination(world: World):
    world.follow.run("passive_established", sock=managed(world))

    assert world.followed() == []


def test_authorisation_that_is_there_stays(world: World):
    server = managed(world)
    world.obj.maps.km_auth[world.tuple_of(server)] = 1

    world.follow.run("passive_established", sock=server)

    assert len(world.obj.maps.km_auth) == 1


def test_unmanaged_workload_is_left_alone(world: World):
    world.manage(world.family.pod)  # the peer is managed, which is its own affair

    run = world.follow.run("passive_established", sock=world.connected().server)

    assert run.retval == 1
    assert run.storage("km_sockstorage") is None
    assert (world.asked(run), run.cb_flags) == ([], frozenset())


def test_failing_storage_is_logged_and_authorisation_asked_for(load_world: Callable[..., World]):
    world = load_world(instrument=[faults.no_storage()])

    run = world.follow.run("passive_established", sock=managed(world))

    assert run.log == ["error: cannot note an accepted connection: no socket storage"]
    assert len(world.asked(run)) == 1
    assert run.cb_flags == {"state"}


def test_full_ring_buffer_is_logged_and_survived(load_world: Callable[..., World]):
    world = load_world(max_entries={"km_auth_request": 4096})
    server = managed(world)

    run = world.follow.run("passive_established", sock=server, repeat=100)  # nobody reads meanwhile

    assert run.retval == 1
    assert 0 < len(world.asked(run)) < 100
    assert set(run.log) == {"error: cannot ask for authorisation: km_auth_request is full"}
    assert len(run.log) + len(world.asked(run)) == 100


def test_connection_that_cannot_ask_is_not_followed(load_world: Callable[..., World]):
    refused = faults.stub("bpf_ringbuf_output", returns=-11, line="&km_auth_request")
    world = load_world(instrument=[refused])

    run = world.follow.run("passive_established", sock=managed(world))

    assert (world.asked(run), run.cb_flags) == ([], frozenset())
    assert run.log == ["error: cannot ask for authorisation: km_auth_request is full"]


def test_missing_callbacks_are_logged(load_world: Callable[..., World]):
    world = load_world(instrument=[faults.stub("bpf_sock_ops_cb_flags_set", returns=4)])

    run = world.follow.run("passive_established", sock=managed(world))

    assert run.log == ["error: cannot follow a connection to its end: no state callbacks"]
