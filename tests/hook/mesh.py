"""The words in which the tests speak of a service mesh: services, backends, connections.

A :class:`Mesh` fills the maps of one loaded hook and dials through its programs. It knows the
interface of the hook (map names, BTF types) and nothing of how the hook is written.
"""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from enum import IntEnum
from typing import Any, TypeAlias

from bpfunit import ip, port

from .families import Family

#: The BTF types of what the maps hold: the object itself declares sizes only.
MAP_TYPES: dict[str, tuple[str, str]] = {
    "km_manage": ("manager_key", "__u32"),
    "km_frontend": ("frontend_key", "frontend_value"),
    "km_service": ("service_key", "service_value"),
    "km_endpoint": ("endpoint_key", "endpoint_value"),
    "km_backend": ("backend_key", "backend_value"),
}

JOIN, LEAVE, DNS = 929, 930, 53

#: getsockopt(SOL_SOCKET, …) for the cookie of a socket's network namespace, Linux 5.14.
SO_NETNS_COOKIE = 71

Address = str
Where: TypeAlias = "tuple[Address, int]"


class Policy(IntEnum):
    """How a service chooses among its endpoints (``service_value.lb_policy``)."""

    RANDOM = 0
    STRICT = 1
    FAILOVER = 2


class Mesh:
    """One loaded hook, the maps it reads, and the connections that go through it.

    Args:
        obj: the loaded object.
        family: the kind of connection that :meth:`connect` makes.
    """

    def __init__(self, obj: Any, family: Family) -> None:
        self.obj = obj
        self.family = family
        self.types = obj.types
        self._ids = itertools.count(101)
        self._sockets = ExitStack()

    def close(self) -> None:
        """Close the sockets that connections were made with."""
        self._sockets.close()

    # -- what the control plane writes ------------------------------------------------------------

    def manage(self) -> None:
        """Let the mesh manage the network namespace of the calling thread."""
        cookie = netns_cookie()
        if cookie is None:  # before 5.14 nothing but a BPF program can tell the cookie
            self.join()
        else:
            self.obj.maps.km_manage[{"netns_cookie": cookie}] = 0

    def unmanage(self) -> None:
        """Let the mesh leave every network namespace alone."""
        self.obj.maps.km_manage.clear()

    def frontend(self, address: Address, upstream: int) -> None:
        """Let connections to an address go to a service id or a backend uid."""
        self.obj.maps.km_frontend[ip(address)] = upstream

    def backend(
        self, address: Address, *, waypoint: Where | None = None, uid: int | None = None
    ) -> int:
        """Add a backend, optionally behind a waypoint, and return its uid."""
        uid = next(self._ids) if uid is None else uid
        self.obj.maps.km_backend[uid] = {"addr": ip(address), **self._waypoint(waypoint)}
        return uid

    def service(
        self,
        address: Address,
        *,
        ports: Mapping[int, int] | Sequence[tuple[int, int]],
        policy: int = Policy.RANDOM,
        endpoints: Iterable[Address | int] | Mapping[int, Iterable[Address | int]] = (),
        waypoint: Where | None = None,
        id: int | None = None,
    ) -> int:
        """Add a service behind a frontend and return its id.

        Args:
            address: the address that clients dial.
            ports: service port to target port, at most ten.
            policy: a :class:`Policy`, or another number.
            endpoints: addresses (a backend is made for each) or backend uids; a mapping of them by
                priority where not all are of priority 0.
            waypoint: where the service's connections go first.
            id: the service id; a fresh one by default.
        """
        service_id = next(self._ids) if id is None else id
        by_priority = endpoints if isinstance(endpoints, Mapping) else {0: endpoints}
        counts = [0] * 7
        for priority, members in by_priority.items():
            for member in members:
                counts[priority] += 1
                self.endpoint(service_id, counts[priority], member, priority=priority)
        pairs = list(ports.items() if isinstance(ports, Mapping) else ports)
        self.obj.maps.km_service[service_id] = {
            "prio_endpoint_count": counts,
            "lb_policy": policy,
            "service_port": [port(number) for number, _ in pairs],
            "target_port": [port(number) for _, number in pairs],
            **self._waypoint(waypoint),
        }
        self.frontend(address, service_id)
        return service_id

    def endpoint(
        self, service_id: int, index: int, member: Address | int, *, priority: int = 0
    ) -> None:
        """Put an address (a backend is made for it) or a backend's uid at an endpoint's index."""
        uid = self.backend(member) if isinstance(member, str) else member
        self.obj.maps.km_endpoint[service_id, priority, index] = uid

    def forget_endpoint(self, service_id: int, index: int, *, priority: int = 0) -> None:
        """Take away an endpoint that its service still counts."""
        del self.obj.maps.km_endpoint[service_id, priority, index]

    def dns_proxy(self, address: Address) -> None:
        """Add the DNS proxy: the backend with uid 0."""
        self.backend(address, uid=0)

    def spy(self) -> Any:
        """Put a recording program where this family's waypoint connections go on."""
        return self.tail_array.spy(self.family.tail_index)

    @staticmethod
    def _waypoint(waypoint: Where | None) -> dict[str, Any]:
        if waypoint is None:
            return {}
        address, number = waypoint
        return {"wp_addr": ip(address), "waypoint_port": port(number)}

    # -- what clients do --------------------------------------------------------------------------

    @property
    def program(self) -> Any:
        """The connect program of this family."""
        return self.obj.programs[self.family.program]

    @property
    def tail_array(self) -> Any:
        """The program array that this family's waypoint connections go on through."""
        return self.obj.maps[self.family.tail_array]

    def new_socket(self, type: int = socket.SOCK_STREAM) -> socket.socket:
        """Make a socket of this family, closed after the test."""
        return self._sockets.enter_context(socket.socket(self.family.socket_family, type))

    def connect(
        self,
        address: Address,
        number: int,
        *,
        sock: socket.socket | None = None,
        type: int = socket.SOCK_STREAM,
    ) -> Any:
        """Dial an address, on a fresh socket unless one is given, and return the run's result."""
        where = address if address == self.family.control else self.family.seen(address)
        return self.program.run(dst=(where, number), sock=sock or self.new_socket(type))

    def join(self) -> Any:
        """Make the control connection by which a process joins the mesh."""
        return self.connect(self.family.control, JOIN)

    def leave(self) -> Any:
        """Make the control connection by which a process leaves the mesh."""
        return self.connect(self.family.control, LEAVE)

    def dial(
        self, program: str, address: Address, number: int, *, sock: socket.socket | None = None
    ) -> Any:
        """Run one of the DNS programs on a UDP socket, fresh unless one is given."""
        udp = sock or self.new_socket(socket.SOCK_DGRAM)
        return self.obj.programs[program].run(dst=(address, number), sock=udp)

    def remembered(self, run: Any) -> Where | None:
        """Return the original destination that the run's socket remembers, or None."""
        storage = run.storage("km_sockstorage")
        if storage is None or not storage.has_set_ip:
            return None
        saved = storage.sk_tuple
        if self.family.socket_family == socket.AF_INET:
            return str(ip(saved.ipv4.daddr)), socket.ntohs(saved.ipv4.dport)
        return str(ip(bytes(saved.ipv6.daddr))), socket.ntohs(saved.ipv6.dport)


def netns_cookie() -> int | None:
    """Return the cookie of the calling thread's network namespace; None before Linux 5.14."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(
                probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder
            )
        except OSError:
            return None
