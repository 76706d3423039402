"""sk_msg: the original destination goes in front of the first message to a waypoint."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from bpfunit import faults

from .world import World, tlv

ERROR = "error: cannot tell a waypoint where a connection was going: message dropped"


@pytest.mark.parametrize(
    "crafted",
    [{}, {"fragments": [1, 4]}, {"fragments": [4, 1]}, {"shared": True}],
    ids=["whole", "short first buffer", "short last buffer", "shared pages"],
)
def test_first_message_has_the_destination_in_front(world: World, crafted: dict[str, Any]):
    client = world.going_to(world.family.vip, 8081)

    run = world.encode.run(b"GET /", sock=client, **crafted)

    assert (run.verdict, run.errno) == ("pass", 0)
    assert run.data == tlv(world.family, world.family.vip, 8081) + b"GET /"
    assert run.log == []


def test_that_it_was_told_is_noted(world: World):
    client = world.going_to(world.family.vip, 8081, connect_ns=3)
    expected = world.obj.maps.km_sockstorage[client]

    run = world.encode.run(b"GET /", sock=client)

    expected.has_encoded = True
    assert bytes(run.storage("km_sockstorage")) == bytes(expected)


def test_second_message_goes_as_it_is(world: World):
    client = world.going_to(world.family.vip, 8081)
    world.encode.run(b"GET /", sock=client)

    run = world.encode.run(b"and more", sock=client)

    assert (run.verdict, run.untouched) == ("pass", True)


def test_message_that_goes_to_no_waypoint_goes_as_it_is(world: World):
    client = world.going_to(world.family.vip, 8081, via_waypoint=False)

    run = world.encode.run(b"GET /", sock=client)

    assert (run.verdict, run.untouched) == ("pass", True)
    assert not run.storage("km_sockstorage").has_encoded


def test_message_of_a_socket_without_storage_goes_as_it_is(world: World):
    run = world.encode.run(b"GET /", sock=world.connected().client)

    assert (run.verdict, run.untouched) == ("pass", True)
    assert run.storage("km_sockstorage") is None


def test_message_is_dropped_when_it_cannot_grow(load_world: Callable[..., World]):
    world = load_world(instrument=[faults.stub("bpf_msg_push_data", returns=-errno.ENOMEM)])
    client = world.going_to(world.family.vip, 8081)

    run = world.encode.run(b"a message that is longer than what goes in front", sock=client)

    assert (run.verdict, run.errno, run.untouched) == ("drop", errno.EACCES, True)
    assert run.log == [ERROR]
    assert not run.storage("km_sockstorage").has_encoded


@pytest.mark.parametrize("crafted", [{}, {"shared": True}], ids=["short", "shared pages"])
def test_message_without_room_in_front_is_dropped(
    load_world: Callable[..., World], crafted: dict[str, Any]
):
    world = load_world(instrument=[faults.stub("bpf_msg_push_data", returns=0)])
    client = world.going_to(world.family.vip, 8081)

    run = world.encode.run(b"GET /", sock=client, **crafted)

    assert (run.verdict, run.errno, run.untouched) == ("drop", errno.EACCES, True)
    assert run.log == [ERROR]
    assert not run.storage("km_sockstorage").has_encoded
