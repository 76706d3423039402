"""Random meshes and calls for the comparison of the hook with its model.

The pools are small on purpose: what matters is that a call meets a frontend, a port a slot, an id a
service, often enough and in every combination.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import product
from typing import Any

from hypothesis import strategies as st

from . import model
from .model import (
    CONNECT4,
    CONNECT6,
    RECVMSG4,
    SENDMSG4,
    Address,
    Backend,
    Service,
    World,
)

ROUNDS_AT_MOST = 6
CALLS_AT_MOST = 40


def _addresses(*texts: str) -> list[Address]:
    return [Address(ip_address(text).packed) for text in texts]


_IPV4 = _addresses("10.96.0.1", "10.96.0.2", "10.244.1.11", "0.0.0.2")
_IPV6 = _addresses("fd00:1:96:2:3:4:5:6", "fd00:1:96:2:3:4:5:7", "::2", "::99:1", "a60:1::")
_MAPPED = [Address(model.MAPPED_PREFIX + address) for address in _IPV4]
_IN_MAPS = [Address(address.ljust(16, b"\0")) for address in _IPV4] + _IPV6 + _MAPPED
_PORTS = [80, 81, 443, 0x1234, model.DNS_PORT, model.JOIN_PORT, model.LEAVE_PORT]
_IDS = range(6)  # of services and of backends: one number may be both, 0 is the DNS proxy

# TCP twice: that is where the hook has most to do
_PROGRAMS = [(CONNECT4, True), (CONNECT6, True)] * 2 + [
    (CONNECT4, False),
    (CONNECT6, False),
    (SENDMSG4, False),
    (RECVMSG4, False),
]

_DESTINATIONS = {
    program: list(product(_IPV6 + _MAPPED if program == CONNECT6 else _IPV4, _PORTS))
    for program, _ in _PROGRAMS
}


@dataclass(frozen=True)
class Round:
    """Calls of one program in a row, on the socket of this number among those of its program."""

    program: str
    tcp: bool
    socket: int
    calls: tuple[tuple[Address, int], ...]


@dataclass
class Scenario:
    """A mesh and what happens in it, in order; without spies the tail calls' slots are empty."""

    world: World
    spies: bool
    rounds: list[Round]


_ids = st.sampled_from(_IDS)
_map_addresses = st.sampled_from(_IN_MAPS)
_ports = st.sampled_from(_PORTS)
_waypoint_ports = st.sampled_from([0, 0, 15008])

_backends = st.builds(Backend, _map_addresses, _map_addresses, _waypoint_ports)
_services = st.builds(
    Service,
    policy=st.sampled_from([0, 0, 1, 2, 2, 3]),
    counts=st.tuples(*[st.sampled_from([0, 0, 1, 3])] * 7),
    ports=st.lists(st.tuples(_ports, st.integers(1, 0xFFFF)), max_size=10).map(tuple),
    waypoint=st.one_of(st.just(model.NO_ADDRESS), _map_addresses),
    waypoint_port=_waypoint_ports,
)


@st.composite
def _rounds(draw: Callable[..., Any]) -> Round:
    """Draw a walk over the table of all destinations: three draws make a row of calls."""
    program, tcp = draw(st.sampled_from(_PROGRAMS))
    table = _DESTINATIONS[program]
    start, stride = draw(st.integers(0, len(table) - 1)), draw(st.integers(1, len(table) - 1))
    calls = draw(st.integers(1, CALLS_AT_MOST))
    walk = tuple(table[(start + n * stride) % len(table)] for n in range(calls))
    return Round(program, tcp, draw(st.integers(0, 1)), walk)


@st.composite
def scenarios(draw: Callable[..., Any]) -> Scenario:
    """Draw a mesh in which most references lead somewhere, and calls to its addresses."""
    services = draw(st.dictionaries(_ids, _services, max_size=4))
    endpoints = {
        (service_id, priority, index): uid
        for service_id, service in services.items()
        for priority, count in enumerate(service.counts)
        for index in range(1, count + 1)
        if (uid := draw(st.sampled_from([*_IDS, None]))) is not None
    }
    world = World(
        managed=draw(st.sampled_from([True, True, True, False])),
        frontends=draw(st.dictionaries(_map_addresses, _ids, min_size=1, max_size=8)),
        services=services,
        endpoints=endpoints,
        backends=draw(st.dictionaries(_ids, _backends, max_size=6)),
    )
    rounds = [draw(_rounds()) for _ in range(draw(st.integers(1, ROUNDS_AT_MOST)))]
    return Scenario(world, draw(st.booleans()), rounds)
