"""The words in which the tests speak of the connect hook's neighbours: workloads, connections."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from enum import IntEnum
from typing import Any, NamedTuple

from bpfunit import ip, port

from ..hook.families import IPV4, Family

#: The types of what the maps hold: the object itself declares sizes only.
MAP_TYPES: dict[str, tuple[str, str]] = {
    "km_manage": ("manager_key", "__u32"),
    "km_sockhash": ("bpf_sock_tuple", "__u32"),
    "km_auth": ("bpf_sock_tuple", "__u32"),
}

WAYPOINT_PORT = 15019
SECONDS = 20  # loopback answers at once; what does not is a failure, and not waited for


class Direction(IntEnum):
    """Who opened a connection (``sock_storage_data.direction``)."""

    NONE = 0
    INBOUND = 1
    OUTBOUND = 2


class Pair(NamedTuple):
    """A connection: the workload's socket, and the waypoint's."""

    client: socket.socket
    server: socket.socket


class World:
    """The neighbours, loaded, and connections between the addresses of a family.

    The calling thread is in a network namespace that has them.

    Args:
        obj: the loaded object.
        family: the kind of connections.
    """

    def __init__(self, obj: Any, family: Family) -> None:
        self.obj = obj
        self.family = family
        self._sockets = ExitStack()

    def close(self) -> None:
        """Close the sockets."""
        self._sockets.close()

    @property
    def follow(self) -> Any:
        """The sock_ops program."""
        return self.obj.programs.mesh_sockops

    @property
    def encode(self) -> Any:
        """The sk_msg program."""
        return self.obj.programs.mesh_sk_msg

    def manage(self, address: str) -> None:
        """Let the mesh manage the workload that has this address."""
        self.obj.maps.km_manage[{"addr": ip(address)}] = 0

    def connected(self) -> Pair:
        """Connect the first pod to the waypoint; nothing of the mesh is attached."""
        family = self.family
        listener = self._sockets.enter_context(listen(family))
        client = self._sockets.enter_context(socket.socket(family.socket_family))
        client.settimeout(SECONDS)
        client.bind((family.seen(family.pod), 0))
        client.connect((family.seen(family.waypoint), listener.getsockname()[1]))
        server = self._sockets.enter_context(listener.accept()[0])
        server.settimeout(SECONDS)
        return Pair(client, server)

    def outbound(self, *, via_waypoint: bool = True) -> Pair:
        """Make a connection that ``tcp_connect`` has found to be the mesh's."""
        pair = self.connected()
        self.note(pair.client, direction=Direction.OUTBOUND, via_waypoint=via_waypoint)
        return pair

    def note(self, sock: socket.socket, **fields: Any) -> None:
        """Write into a socket's storage; other fields are zero."""
        self.obj.maps.km_sockstorage[sock] = fields

    def going_to(self, address: str, number: int, **fields: Any) -> socket.socket:
        """Make a connection through the waypoint that was dialled as this; return the client."""
        sock, storage = self.connected().client, self.obj.types.sock_storage_data()
        storage.via_waypoint = True
        for name, value in fields.items():
            setattr(storage, name, value)
        if self.family is IPV4:
            storage.sk_tuple.ipv4.daddr = ip(address)
            storage.sk_tuple.ipv4.dport = port(number)
        else:
            storage.sk_tuple.ipv6.daddr = ip(self.family.seen(address))
            storage.sk_tuple.ipv6.dport = port(number)
        self.obj.maps.km_sockstorage[sock] = storage
        return sock

    def tuple_of(self, sock: socket.socket) -> Any:
        """Return how the maps know a socket's connection: its own end is the source."""
        own, peer = sock.getsockname()[:2], sock.getpeername()[:2]
        found = self.obj.types.bpf_sock_tuple()
        part = found.ipv4 if self.family is IPV4 else found.ipv6
        part.saddr, part.sport = ip(own[0]), port(own[1])
        part.daddr, part.dport = ip(peer[0]), port(peer[1])
        return found

    def followed(self) -> list[bytes]:
        """Return the connections whose messages are seen."""
        return [bytes(key) for key in self.obj.maps.km_sockhash]

    def asked(self, run: Any) -> list[tuple[int, bytes]]:
        """Return family and tuple of each authorisation that a run has asked for."""
        return requests(run.events.get("km_auth_request", []))


def requests(records: Iterable[bytes]) -> list[tuple[int, bytes]]:
    """Return family and tuple of records of km_auth_request."""
    return [(int.from_bytes(raw[:4], sys.byteorder), bytes(raw[4:])) for raw in records]


def listen(family: Family, number: int = 0) -> socket.socket:
    """Return a listening socket at the waypoint's address, of the clients' family."""
    server = socket.socket(family.socket_family)
    server.settimeout(SECONDS)
    server.bind((family.seen(family.waypoint), number))
    server.listen()
    return server


def tlv(family: Family, address: str, number: int) -> bytes:
    """Return what stands in front of the first message to a waypoint."""
    value = ip(family.seen(address)).packed + struct.pack("!H", number)
    return struct.pack("!BI", 1, len(value)) + value
