"""sk_lookup: no packet, the context says who connects to what; needs Linux 5.13."""

from __future__ import annotations

import socket

import pytest

from bpfunit import ip

SK_DROP, SK_PASS = 0, 1
SO_COOKIE = 57  # include/uapi/asm-generic/socket.h

pytestmark = [pytest.mark.guest, pytest.mark.needs(since="5.13")]


@pytest.fixture
def steering(bpf_load, built):
    return bpf_load(built("sk_lookup_range"))


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def lookup(steering, port):
    return steering.types.bpf_sk_lookup(
        family=socket.AF_INET,
        protocol=socket.IPPROTO_TCP,
        local_ip4=ip("127.0.0.1"),
        local_port=port,
        remote_ip4=ip("127.0.0.2"),
        remote_port=socket.htons(40000),
    )


def test_a_port_of_the_range_reaches_the_server(steering, listener):
    steering.maps.server[0] = listener
    result = steering.programs.steer.run(ctx=lookup(steering, 7500))
    assert result.retval == SK_PASS
    assert result.ctx.cookie == listener_cookie(listener)


def test_a_port_outside_is_left_to_the_usual_lookup(steering, listener):
    steering.maps.server[0] = listener
    result = steering.programs.steer.run(ctx=lookup(steering, 8000))
    assert (result.retval, result.ctx.cookie) == (SK_PASS, 0)


def test_without_a_server_the_range_is_closed(steering):
    assert steering.programs.steer.run(ctx=lookup(steering, 7000)).retval == SK_DROP


def listener_cookie(listener):
    return int.from_bytes(listener.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
