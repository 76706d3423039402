"""STATE: a followed connection comes to its end, and the maps forget it."""

from __future__ import annotations

import pytest

from .world import World


def test_closed_connection_leaves_the_map_of_connections(world: World):
    client = world.outbound().client
    world.follow.run("active_established", sock=client)

    run = world.follow.run("state", sock=client, args=("established", "close"))

    assert run.retval == 1
    assert world.followed() == []


def test_closed_connection_leaves_its_authorisation(world: World):
    server = world.connected().server
    world.obj.maps.km_auth[world.tuple_of(server)] = 1

    world.follow.run("state", sock=server, args=("established", "close"))

    assert len(world.obj.maps.km_auth) == 0


def test_other_connections_stay(world: World):
    closed, other = world.outbound(), world.outbound()
    for pair in (closed, other):
        world.follow.run("active_established", sock=pair.client)
        world.obj.maps.km_auth[world.tuple_of(pair.server)] = 1

    world.follow.run("state", sock=closed.client)
    world.follow.run("state", sock=closed.server)

    assert world.followed() == [bytes(world.tuple_of(other.client))]
    assert [bytes(key) for key in world.obj.maps.km_auth] == [bytes(world.tuple_of(other.server))]


@pytest.mark.parametrize("state", ["fin_wait1", "close_wait"])
def test_connection_that_is_still_closing_stays(world: World, state: str):
    pair = world.outbound()
    world.follow.run("active_established", sock=pair.client)
    world.obj.maps.km_auth[world.tuple_of(pair.client)] = 1

    run = world.follow.run("state", sock=pair.client, args=("established", state))

    assert run.retval == 1
    assert world.followed() == [bytes(world.tuple_of(pair.client))]
    assert len(world.obj.maps.km_auth) == 1


def test_connection_that_nobody_followed_ends_in_silence(world: World):
    run = world.follow.run("state", sock=world.connected().client)

    assert (run.retval, run.log) == (1, [])
    assert run.storage("km_sockstorage") is None
