"""sk_lookup: no packet, only who connects to what; needs Linux 5.13."""

from __future__ import annotations

import socket

import pytest

pytestmark = [pytest.mark.guest, pytest.mark.needs(since="5.13")]


@pytest.fixture
def steering(bpf_load, built):
    return bpf_load(built("sk_lookup_range"))


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_port_of_the_range_reaches_the_server(steering, listener):
    steering.maps.server[0] = listener
    result = steering.programs.steer.run("127.0.0.1:7500", src="127.0.0.2:40000")
    assert result.verdict == "SK_PASS"
    assert result.selected(listener)


def test_a_port_outside_is_left_to_the_usual_lookup(steering, listener):
    steering.maps.server[0] = listener
    result = steering.programs.steer.run("127.0.0.1:8000")
    assert (result.verdict, result.selection) == ("SK_PASS", 0)


def test_without_a_server_the_range_is_closed(steering):
    assert steering.programs.steer.run("127.0.0.1:7000").verdict == "SK_DROP"
