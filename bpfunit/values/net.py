"""Addresses, ports and endpoints: the one place where byte order is turned.

Maps and contexts hold addresses and ports in network byte order. ``ip4("10.0.0.1")`` and
``port(80)`` are integers that, stored in a ``__u32`` of this machine, have their bytes in that
order. ``ip(…)`` is an address that fits any field made for one: ``__u32``, ``__u32[4]``,
``__u8[16]`` or the mesh's ``struct ip_addr``.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from functools import lru_cache
from typing import Any, Union

_IpLike = Union[str, bytes, int, "IP", ipaddress.IPv4Address, ipaddress.IPv6Address]
EndpointLike = Union[str, "tuple[_IpLike, int]", "Endpoint"]


class IP:
    """An IPv4 or IPv6 address that compares with, and can be stored in, whatever holds addresses.

    Args:
        address: text ("10.0.0.1", "fd00::1"), 4 or 16 bytes in network order, an ``ipaddress``
            object, or an int as found in a ``__u32`` field (network byte order, IPv4).

    Raises:
        ValueError: the text or the bytes are not an address.
    """

    __slots__ = ("packed",)

    def __init__(self, address: _IpLike) -> None:
        if isinstance(address, IP):
            self.packed: bytes = address.packed
        elif isinstance(address, int):
            self.packed = address.to_bytes(4, sys.byteorder)
        else:
            self.packed = ipaddress.ip_address(address).packed

    @property
    def version(self) -> int:
        """4 or 6."""
        return 4 if len(self.packed) == 4 else 6

    @property
    def mapped4(self) -> IP | None:
        """The IPv4 address inside a v4-mapped one (``::ffff:a.b.c.d``), or None."""
        prefix = b"\0" * 10 + b"\xff\xff"
        return IP(self.packed[12:]) if self.version == 6 and self.packed[:12] == prefix else None

    def words(self) -> tuple[int, ...]:
        """Return the address as ``__u32`` fields hold it: one word for IPv4, four for IPv6."""
        return tuple(
            int.from_bytes(self.packed[i : i + 4], sys.byteorder)
            for i in range(0, len(self.packed), 4)
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, IP):
            return self.packed == other.packed
        if isinstance(other, int):
            return self.version == 4 and self.words()[0] == other
        if isinstance(other, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
            return self.packed == other.packed
        if isinstance(other, str):
            try:
                return self.packed == ipaddress.ip_address(other).packed
            except ValueError:
                return False
        try:
            raw = bytes(other)  # type: ignore[call-overload]
        except (TypeError, ValueError):
            return NotImplemented
        # "unused bytes zero": an IPv4 address in a 16-byte field is its 4 bytes and 12 zeroes
        return bool(raw == self.packed or raw == self.packed.ljust(16, b"\0"))

    def __hash__(self) -> int:
        return hash(self.packed)

    def __str__(self) -> str:
        text = ipaddress.ip_address(self.packed)
        return f"::ffff:{self.mapped4}" if self.mapped4 else str(text)

    def __repr__(self) -> str:
        return f'ip("{self}")'


def ip(address: _IpLike) -> IP:
    """Return an address that fits any BTF field or struct made for one; see :class:`IP`."""
    return IP(address)


def ip4(address: _IpLike) -> int:
    """Return an IPv4 address as a ``__u32`` field holds it: an int in network byte order.

    Raises:
        ValueError: the address is not IPv4.
    """
    value = IP(address)
    if value.version != 4:
        raise ValueError(f"ip4: {value} is not an IPv4 address; use ip6()")
    return value.words()[0]


def ip6(address: _IpLike) -> tuple[int, int, int, int]:
    """Return an IPv6 address as a ``__u32[4]`` field holds it: four ints in network byte order.

    Raises:
        ValueError: the address is not IPv6; write ``::ffff:a.b.c.d`` for a v4-mapped one.
    """
    value = IP(address)
    if value.version != 6:
        raise ValueError(f"ip6: {value} is not an IPv6 address; v4-mapped is ::ffff:{value}")
    a, b, c, d = value.words()
    return a, b, c, d


def port(number: int) -> int:
    """Return a port (0..65535) as a field in network byte order holds it.

    Raises:
        ValueError: the number is not a port.
    """
    if not 0 <= number <= 0xFFFF:
        raise ValueError(f"port: {number} is out of range 0..65535")
    return socket.htons(number)


@lru_cache(maxsize=4096, typed=True)
def _canonical(address: _IpLike) -> str:
    # kept: tests name few addresses, and compare with each of them often
    return str(IP(address))


@lru_cache(maxsize=4096)
def _parsed_text(text: str) -> Endpoint:
    return Endpoint._parsed(text)


class Endpoint(tuple[str, int]):
    """An address and a port: equal to "10.244.0.5:8080" and to ("10.244.0.5", 8080).

    Args:
        host: the address, text or :class:`IP`.
        port_number: the port in host byte order, as people write it.
    """

    __slots__ = ()

    def __new__(cls, host: _IpLike, port_number: int) -> Endpoint:
        """Make an endpoint, its address in canonical text."""
        if not 0 <= port_number <= 0xFFFF:
            raise ValueError(f"endpoint: port {port_number} is out of range 0..65535")
        return super().__new__(cls, (_canonical(host), port_number))

    @classmethod
    def parse(cls, value: EndpointLike) -> Endpoint:
        """Read "10.96.0.1:80", "[fd00::1]:80" or ("10.96.0.1", 80).

        Raises:
            ValueError: the form or the address is wrong; the message shows the accepted forms.
        """
        if isinstance(value, Endpoint):
            return value
        return _parsed_text(value) if type(value) is str else cls._parsed(value)

    @classmethod
    def _parsed(cls, value: Any) -> Endpoint:
        forms = '"10.96.0.1:80", "[fd00::1]:80" or ("10.96.0.1", 80)'
        try:
            if isinstance(value, tuple):
                host, number = value
                return cls(host, number)
            text, _, digits = value.rpartition(":")
            if not digits.isdigit():
                raise ValueError("it has no port")
            if text.startswith("[") and text.endswith("]"):
                text = text[1:-1]
            elif ":" in text:
                raise ValueError("an IPv6 address is written in brackets")
            return cls(text, int(digits))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"parse endpoint {value!r}: {error}; expected {forms}") from None

    @property
    def ip(self) -> IP:
        """The address."""
        return IP(self[0])

    @property
    def host(self) -> str:
        """The address as text."""
        return self[0]

    @property
    def port(self) -> int:
        """The port in host byte order."""
        return self[1]

    def __eq__(self, other: object) -> bool:
        try:
            return tuple.__eq__(self, Endpoint.parse(other))  # type: ignore[arg-type]
        except ValueError:
            return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return tuple.__hash__(self)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f'"{self}"'


def explain_difference(found: Any, expected: Any) -> list[str] | None:
    """Spell out two unequal endpoints or addresses for an assertion; None for anything else."""
    if isinstance(expected, (Endpoint, IP)) and not isinstance(found, (Endpoint, IP)):
        found, expected = expected, found
    if isinstance(found, IP):
        return [f"address {found} != {expected}", f"  got:      {found}", f"  expected: {expected}"]
    if not isinstance(found, Endpoint):
        return None
    lines = [f"endpoint {found} != {expected}", f"  got:      {found}"]
    try:
        wanted = Endpoint.parse(expected)
    except ValueError as error:
        return [*lines, f"  expected: {expected!r} ({error})"]
    lines.append(f"  expected: {wanted}")
    if wanted.host == found.host:
        lines.append(f"  the address is right, the port is {found.port} instead of {wanted.port}")
        if socket.htons(found.port) == wanted.port:
            lines.append("  the port has its bytes swapped")
    elif wanted.port == found.port:
        lines.append("  the port is right, the address differs")
    if wanted.ip.packed == found.ip.packed[::-1]:
        lines.append("  the address has its bytes swapped")
    return lines
