"""ACTIVE_ESTABLISHED: a connection that the mesh's workload opened stands."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bpfunit import faults

from .world import Direction, World


def test_success_is_noted(world: World):
    run = world.follow.run("active_established", sock=world.outbound().client)

    storage = run.storage("km_sockstorage")
    assert run.retval == 1
    assert (storage.connect_success, storage.direction) == (1, Direction.OUTBOUND)


def test_connection_through_a_waypoint_is_entered_by_its_tuple(world: World):
    client = world.outbound().client

    run = world.follow.run("active_established", sock=client)

    assert world.followed() == [bytes(world.tuple_of(client))]
    assert run.log == []


def test_connection_through_a_waypoint_is_followed_to_its_end(world: World):
    run = world.follow.run("active_established", sock=world.outbound().client)

    assert run.cb_flags == {"state"}


def test_callbacks_of_others_stay_on(world: World):
    run = world.follow.run("active_established", sock=world.outbound().client, cb_flags=("rtt",))

    assert run.cb_flags == {"state", "rtt"}


def test_connection_without_waypoint_is_not_entered(world: World):
    run = world.follow.run("active_established", sock=world.outbound(via_waypoint=False).client)

    assert run.storage("km_sockstorage").connect_success == 1
    assert (run.cb_flags, world.followed()) == (frozenset(), [])


@pytest.mark.parametrize("direction", [Direction.NONE, Direction.INBOUND])
def test_connection_that_is_not_the_meshs_is_left_alone(world: World, direction: Direction):
    client = world.connected().client
    world.note(client, direction=direction, via_waypoint=True)

    run = world.follow.run("active_established", sock=client)

    assert run.retval == 1
    assert run.storage("km_sockstorage").connect_success == 0
    assert (run.cb_flags, world.followed()) == (frozenset(), [])


def test_who_opens_a_connection_asks_for_no_authorisation(world: World):
    world.manage(world.family.pod)

    run = world.follow.run("active_established", sock=world.outbound().client)

    assert world.asked(run) == []


def test_connection_without_storage_gets_none(world: World):
    run = world.follow.run("active_established", sock=world.connected().client)

    assert run.storage("km_sockstorage") is None
    assert (run.cb_flags, run.log, world.followed()) == (frozenset(), [], [])


def test_full_map_is_logged_and_survived(load_world: Callable[..., World]):
    world = load_world(max_entries={"km_sockhash": 1})
    first, second = world.outbound().client, world.outbound().client
    world.follow.run("active_established", sock=first)

    run = world.follow.run("active_established", sock=second)

    assert (run.retval, run.cb_flags) == (1, frozenset())
    assert run.log == [
        "error: cannot tell a waypoint where a connection was going: km_sockhash refused it"
    ]
    assert world.followed() == [bytes(world.tuple_of(first))]


def test_missing_callbacks_are_logged(load_world: Callable[..., World]):
    world = load_world(instrument=[faults.stub("bpf_sock_ops_cb_flags_set", returns=4)])

    run = world.follow.run("active_established", sock=world.outbound().client)

    assert run.log == ["error: cannot follow a connection to its end: no state callbacks"]
