"""The hook's behaviour in plain Python, written from its description and not from its C.

:func:`step` takes a mesh, a socket's memory and one call of a program, and returns every outcome
that the description allows: more than one only where the hook chooses an endpoint at random.
Addresses are bytes in network order, 4 or 16 in a call and always 16 in the maps; ports are host
order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

CONNECT4, CONNECT6 = "cgroup_connect4_prog", "cgroup_connect6_prog"
SENDMSG4, RECVMSG4 = "bpf_redirect_dns_send", "bpf_restore_dns_recv"

JOIN_PORT, LEAVE_PORT, DNS_PORT = 929, 930, 53
CONTROL = {4: bytes([0, 0, 0, 2]), 16: bytes(15) + b"\x02"}
MAPPED_PREFIX = bytes(10) + b"\xff\xff"
DNS_PROXY = 0
RANDOM, STRICT, FAILOVER = 0, 1, 2


class Address(bytes):
    """4 or 16 bytes that print as people write them: a failing case is to be read."""

    def __repr__(self) -> str:
        mapped = len(self) == 16 and self.startswith(MAPPED_PREFIX)
        return f"::ffff:{ip_address(bytes(self[12:]))}" if mapped else str(ip_address(bytes(self)))


NO_ADDRESS = Address(16)


@dataclass(frozen=True)
class Backend:
    """One entry of km_backend."""

    address: Address
    waypoint: Address = NO_ADDRESS
    waypoint_port: int = 0


@dataclass(frozen=True)
class Service:
    """One entry of km_service: (service port, target port) by slot, endpoint counts by priority."""

    policy: int = RANDOM
    counts: tuple[int, ...] = (0,) * 7
    ports: tuple[tuple[int, int], ...] = ()
    waypoint: Address = NO_ADDRESS
    waypoint_port: int = 0


@dataclass
class World:
    """What the maps hold, and whether the caller's network namespace is managed."""

    managed: bool = True
    frontends: dict[Address, int] = field(default_factory=dict)
    services: dict[int, Service] = field(default_factory=dict)
    endpoints: dict[tuple[int, int, int], int] = field(default_factory=dict)
    backends: dict[int, Backend] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One call of a program: the address and port are the source for recvmsg4."""

    program: str
    address: Address
    port: int
    tcp: bool = True


@dataclass(frozen=True)
class Memory:
    """A socket's storage; ``observed`` counts the connects whose time was taken."""

    exists: bool = False
    observed: int = 0
    via_waypoint: bool = False
    original: tuple[Address, int] | None = None


@dataclass(frozen=True)
class Outcome:
    """What one call did: where the connection goes, what the socket remembers, who is managed."""

    address: Address
    port: int
    memory: Memory
    managed: bool
    tail_call: bool = False


@dataclass(frozen=True)
class _Route:
    """A success of traffic control; no address means that the destination stays."""

    address: Address | None = None
    port: int = 0
    via_waypoint: bool = False


def step(world: World, memory: Memory, call: Call) -> list[Outcome]:
    """Return the outcomes that the description allows for one call."""
    untouched = Outcome(call.address, call.port, memory, world.managed)
    if call.address == CONTROL[len(call.address)]:
        if call.port == JOIN_PORT:
            return [replace(untouched, managed=True)]
        if call.port == LEAVE_PORT:
            return [replace(untouched, managed=False)]
    if not world.managed:
        return [untouched]
    if call.program == RECVMSG4:
        return [_dns_answer(world, untouched)]
    if call.program != CONNECT6 and call.port == DNS_PORT:
        return [_dns_question(world, untouched)]
    if call.program == SENDMSG4 or not call.tcp:
        return [untouched]

    observed = replace(memory, exists=True, observed=memory.observed + 1)
    start = replace(untouched, memory=observed)
    outcomes = [start if route is None else _follow(route, start) for route in _routes(world, call)]
    return list(dict.fromkeys(outcomes))


def _dns_question(world: World, start: Outcome) -> Outcome:
    proxy = world.backends.get(DNS_PROXY)
    if proxy is None:
        return start
    memory = _remember(start.memory, start.address, start.port, via_waypoint=False)
    return replace(start, address=Address(proxy.address[:4]), memory=memory)


def _dns_answer(world: World, start: Outcome) -> Outcome:
    if start.port != DNS_PORT or DNS_PROXY not in world.backends:
        return start
    saved = start.memory.original
    address = saved[0] if saved else Address(4)
    return replace(start, address=address, memory=replace(start.memory, exists=True))


def _remember(memory: Memory, address: Address, port: int, *, via_waypoint: bool) -> Memory:
    return replace(
        memory,
        exists=True,
        via_waypoint=memory.via_waypoint or via_waypoint,
        original=memory.original or (address, port),
    )


def _follow(route: _Route, start: Outcome) -> Outcome:
    memory = _remember(start.memory, start.address, start.port, via_waypoint=route.via_waypoint)
    if route.address is None:
        return replace(start, memory=memory)
    address = route.address
    if len(start.address) == 4:
        address = Address(address[:4])
    elif start.address.startswith(MAPPED_PREFIX) and not address.startswith(MAPPED_PREFIX):
        address = Address(MAPPED_PREFIX + address[:4])
    return replace(
        start, address=address, port=route.port, memory=memory, tail_call=route.via_waypoint
    )


def _routes(world: World, call: Call) -> Iterator[_Route | None]:
    """Yield the possible results of traffic control; None is «leave it alone»."""
    upstream = world.frontends.get(_map_key(call.address))
    if upstream is None:
        yield None
    elif upstream in world.services:
        yield from _service_routes(world, call, upstream)
    elif upstream in world.backends:
        backend = world.backends[upstream]
        if backend.waypoint_port:
            yield _Route(backend.waypoint, backend.waypoint_port, via_waypoint=True)
        else:
            yield _Route()
    else:
        yield None


def _map_key(address: bytes) -> Address:
    if address.startswith(MAPPED_PREFIX):
        address = address[12:]
    return Address(address.ljust(16, b"\0"))


def _service_routes(world: World, call: Call, service_id: int) -> Iterator[_Route | None]:
    service = world.services[service_id]
    if any(service.waypoint[:4]) and service.waypoint_port:
        yield _Route(service.waypoint, service.waypoint_port, via_waypoint=True)
        return
    if service.policy not in (RANDOM, STRICT, FAILOVER):
        yield None
        return
    priority = 0
    if service.policy == FAILOVER:
        priority = next((prio for prio, count in enumerate(service.counts) if count), 0)
    if not service.counts[priority]:
        yield _Route() if service.policy == RANDOM else None
        return
    for index in range(1, service.counts[priority] + 1):
        uid = world.endpoints.get((service_id, priority, index))
        yield _endpoint_route(world, call, service, uid)


def _endpoint_route(world: World, call: Call, service: Service, uid: int | None) -> _Route | None:
    backend = None if uid is None else world.backends.get(uid)
    if backend is None:
        return None
    if backend.waypoint_port:
        return _Route(backend.waypoint, backend.waypoint_port, via_waypoint=True)
    # the unused slots of a service are zero: they hold port 0
    slots = (*service.ports, *[(0, 0)] * (10 - len(service.ports)))
    for service_port, target_port in slots:
        if service_port == call.port:
            return _Route(backend.address, target_port)
    return None
