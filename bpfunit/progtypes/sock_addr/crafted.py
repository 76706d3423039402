"""The crafted context as a real call needs it: a socket address and what else goes with it."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from bpfunit.engines import NotApplicableError
from bpfunit.progtypes.sock_addr.context import HOOKS, SOCK_ADDR_SIZE, BpfSockAddr, Hook
from bpfunit.progtypes.sock_addr.probes import WORDS
from bpfunit.progtypes.sock_addr.program import SOCK_ADDR

_WORDS = struct.Struct(f"={WORDS}I")


def _span(field: str) -> tuple[int, int]:
    """Return the index of a field's first 32-bit word, and how many there are."""
    member = getattr(BpfSockAddr, field)
    return member.offset // 4, member.size // 4


def words_of(context: bytes) -> tuple[int, ...]:
    """Split ``struct bpf_sock_addr`` into its 32-bit words, the socket pointer left out."""
    return _WORDS.unpack_from(context)


def shown(field: str, words: tuple[int, ...]) -> str:
    """Return one field as people write it: addresses as text, ports in host order."""
    first, count = _span(field)
    raw = struct.pack(f"={count}I", *words[first : first + count])
    if field.endswith(("ip4", "ip6")):
        return socket.inet_ntop(socket.AF_INET if count == 1 else socket.AF_INET6, raw)
    value = words[first]
    return str(socket.ntohs(value & 0xFFFF) if field == "user_port" else value)


@dataclass(frozen=True)
class Crafted:
    """A context that a program of ``attach_type`` is to see."""

    attach_type: int
    words: tuple[int, ...]

    @property
    def hook(self) -> Hook:
        """The call and the address family that the attach type stands for."""
        return HOOKS[self.attach_type]

    def _field(self, name: str) -> bytes:
        first, count = _span(name)
        return struct.pack(f"={count}I", *self.words[first : first + count])

    def number(self, name: str) -> int:
        """Return the first word of a field."""
        return self.words[_span(name)[0]]

    @property
    def is_v4(self) -> bool:
        """Whether addresses are IPv4."""
        return self.hook.family == socket.AF_INET

    @property
    def address(self) -> bytes:
        """The address in network byte order, 4 or 16 bytes."""
        return self._field("user_ip4" if self.is_v4 else "user_ip6")

    @property
    def source(self) -> bytes:
        """The source address of sendmsg in network byte order, 4 or 16 bytes."""
        return self._field("msg_src_ip4" if self.is_v4 else "msg_src_ip6")

    @property
    def port(self) -> int:
        """The port in host byte order."""
        return socket.ntohs(self.number("user_port") & 0xFFFF)

    @property
    def text(self) -> str:
        """The address and port as people write them."""
        host = socket.inet_ntop(self.hook.family, self.address)
        return f"{host}:{self.port}" if self.is_v4 else f"[{host}]:{self.port}"

    def sockaddr(self, scope_id: int = 0) -> bytes:
        """Return ``struct sockaddr_in`` or ``sockaddr_in6`` as the call takes it.

        Args:
            scope_id: the interface of a link-local address.
        """
        family, port = self.number("user_family"), struct.pack("!H", self.port)
        if self.is_v4:
            return struct.pack("=H2s4s8x", family, port, self.address)
        return struct.pack("=H2sI16sI", family, port, 0, self.address, scope_id)

    def differences(self, seen: tuple[int, ...]) -> list[str]:
        """Return how a context that the hook saw differs from this one, in words for people.

        A crafted protocol 0 means the protocol that the socket's type has by default.
        """
        found = []
        for field in SOCK_ADDR.readable_fields(self.attach_type):
            first, count = _span(field)
            wanted = self.words[first : first + count]
            if wanted == seen[first : first + count]:
                continue
            if wanted == (0,) and field in ("family", "type", "protocol"):
                continue
            found.append(f"{field} is {shown(field, seen)}, crafted was {shown(field, self.words)}")
        return found

    def refuse(self, reason: str) -> NotApplicableError:
        """Return the error that says why no real call leads to this context."""
        return NotApplicableError(
            f"{self.hook.call}(2) {self.text} on the engine live: {reason}; use the engine testrun"
        )


def context_bytes(crafted: Crafted, seen: tuple[int, ...], template: bytes) -> bytes:
    """Return ``struct bpf_sock_addr`` after a run: what the observer saw over what came in.

    Fields that the attach type cannot see stay as they were crafted, like on the engine testrun.
    """
    words = list(crafted.words)
    for field in SOCK_ADDR.readable_fields(crafted.attach_type):
        first, count = _span(field)
        words[first : first + count] = seen[first : first + count]
    packed = _WORDS.pack(*words)
    return packed + template[len(packed) : SOCK_ADDR_SIZE]
