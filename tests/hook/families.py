"""The three kinds of connection that the hook tells apart, so that one test covers all of them."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Family:
    """One kind of connection, and addresses that suit it.

    The addresses are written as the hook's maps know them; :meth:`seen` gives the form that a
    connection of this kind shows in its context.
    """

    name: str
    program: str
    tail_array: str
    tail_index: int
    socket_family: socket.AddressFamily
    vip: str
    vip2: str
    pods: tuple[str, ...]
    waypoint: str
    control: str

    @property
    def pod(self) -> str:
        """The first pod's address."""
        return self.pods[0]

    @property
    def mapped(self) -> bool:
        """IPv4 addresses on an IPv6 socket."""
        return self.name == "v4-mapped"

    def seen(self, address: str) -> str:
        """Return the address as it stands in the context of a connection of this kind."""
        return f"::ffff:{address}" if self.mapped else address

    def __str__(self) -> str:
        return self.name


_IPV4_ADDRESSES: dict[str, Any] = {
    "vip": "10.96.0.1",
    "vip2": "10.96.0.2",
    "pods": ("10.244.1.11", "10.244.2.12", "10.244.3.13", "10.244.4.14", "10.244.5.15"),
    "waypoint": "10.244.9.99",
}

IPV4 = Family(
    name="ipv4",
    program="cgroup_connect4_prog",
    tail_array="km_cgr_tailcall",
    tail_index=0,
    socket_family=socket.AF_INET,
    control="0.0.0.2",
    **_IPV4_ADDRESSES,
)

# Every 32-bit word of these addresses differs: a word left out or out of place shows.
IPV6 = Family(
    name="ipv6",
    program="cgroup_connect6_prog",
    tail_array="km_cgr_tail6",
    tail_index=1,
    socket_family=socket.AF_INET6,
    vip="fd00:1:96:2:3:4:5:6",
    vip2="fd00:1:96:2:3:4:5:7",
    pods=tuple(f"fd00:2:244:{n}:a:b:c:{n}{n}" for n in range(1, 6)),
    waypoint="fd00:3:99:1:2:3:4:5",
    control="::2",
)

V4_MAPPED = Family(
    name="v4-mapped",
    program="cgroup_connect6_prog",
    tail_array="km_cgr_tail6",
    tail_index=1,
    socket_family=socket.AF_INET6,
    control="::2",
    **_IPV4_ADDRESSES,
)

ALL = (IPV4, IPV6, V4_MAPPED)


def over(*families: Family) -> pytest.MarkDecorator:
    """Run a test over these families alone instead of all three."""
    return pytest.mark.parametrize("family", families, ids=str)
