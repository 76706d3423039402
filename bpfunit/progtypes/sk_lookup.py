"""``sk_lookup`` programs, which choose the socket of a connection; the kernel runs them (5.13)."""

from __future__ import annotations

import ctypes
import socket
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.objects.maps import Map
from bpfunit.progtypes.base import ContextError, Request, register
from bpfunit.progtypes.native import NativeType
from bpfunit.progtypes.sockmap import cookie_of
from bpfunit.runs.program import Program
from bpfunit.runs.result import Result
from bpfunit.values.net import Endpoint, EndpointLike
from bpfunit.values.records import StructRecord, array_type

_u32 = ctypes.c_uint32
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_CLIENT_PORT = 40000


class SkLookup(StructRecord):
    """``struct bpf_sk_lookup`` of ``include/uapi/linux/bpf.h`` as of Linux 5.17, 72 bytes.

    ``remote_port`` is in network, ``local_port`` in host byte order. Up to Linux 5.17
    ``remote_port`` was a u32 of which no more than 16 bits could be set.
    """

    _fields_: ClassVar[Any] = [
        ("cookie", ctypes.c_uint64),
        ("family", _u32),
        ("protocol", _u32),
        ("remote_ip4", _u32),
        ("remote_ip6", array_type(_u32, 4)),
        ("remote_port", ctypes.c_uint16),
        ("_zero", ctypes.c_uint16),
        ("local_ip4", _u32),
        ("local_ip6", array_type(_u32, 4)),
        ("local_port", _u32),
        ("ingress_ifindex", _u32),
    ]
    _members_: ClassVar[dict[str, Any]] = dict(_fields_)

    def __repr__(self) -> str:
        """Return the fields that say something, addresses as people write them."""
        where = f"local={_shown(self, 'local')}, remote={_shown(self, 'remote')}"
        more = f", ingress_ifindex={self.ingress_ifindex}" if self.ingress_ifindex else ""
        cookie = f", cookie={self.cookie}" if self.cookie else ""
        return f"SkLookup({where}, protocol={self.protocol}{more}{cookie})"


def _shown(context: SkLookup, end: str) -> str:
    version = 6 if context.family == socket.AF_INET6 else 4
    raw = bytes(context)
    start = getattr(SkLookup, f"{end}_ip{version}").offset
    family, size = (socket.AF_INET6, 16) if version == 6 else (socket.AF_INET, 4)
    number = int(getattr(context, f"{end}_port"))
    port = socket.ntohs(number) if end == "remote" else number
    return str(Endpoint(socket.inet_ntop(family, raw[start : start + size]), port))


def _put(context: SkLookup, end: str, endpoint: Endpoint) -> None:
    version = endpoint.ip.version
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    address = socket.inet_pton(family, endpoint.host)
    offset = getattr(SkLookup, f"{end}_ip{version}").offset
    ctypes.memmove(ctypes.addressof(context) + offset, address, len(address))
    port = socket.htons(endpoint.port) if end == "remote" else endpoint.port
    setattr(context, f"{end}_port", port)


class LookupResult(Result):
    """The outcome of a run of an sk_lookup program."""

    @property
    def selection(self) -> int:
        """``SO_COOKIE`` of the socket that the program chose, 0 where it chose none."""
        return int.from_bytes(self.raw_ctx[:8], sys.byteorder)

    def selected(self, where: socket.socket | Map, key: object = ...) -> bool:
        """Tell whether the program passes the connection to this socket, or a map's entry.

        A program that returns SK_PASS and chose none leaves it to the kernel's usual lookup.

        Args:
            where: a socket, or a map of sockets with 8-byte values: the kernel tells whose socket
                an entry is only where a cookie fits.
            key: the entry's key, where ``where`` is a map. The map is asked now.
        """
        if self.verdict != "SK_PASS" or not self.selection:
            return False
        if isinstance(where, Map):
            raw = where.lookup(key)
            return raw is not None and int.from_bytes(raw, sys.byteorder) == self.selection
        return cookie_of(where) == self.selection

    def describe(self) -> list[str]:
        """Return what went in and came out as lines for the report of a failing test."""
        chosen = f"socket with cookie {self.selection}" if self.selection else "no socket"
        lines = [f"verdict {self.verdict}, {chosen}"]
        if self.ctx_in is not None:
            lines.insert(0, f"context in:  {self.ctx_in!r}")
        return lines


class LookupProgram(Program):
    """A program that chooses the socket of a connection or a packet."""

    result_class = LookupResult

    def run(
        self,
        dst: EndpointLike | ctypes.Structure | None = None,
        *,
        src: EndpointLike | None = None,
        protocol: str | int = "tcp",
        ingress_ifindex: int = 0,
        ctx: Any = None,
        repeat: int = 1,
        observe: bool = True,
    ) -> LookupResult:
        """Run the program for a connection, or a datagram, and return what it chose.

        Args:
            dst: the local address and port that somebody connects to, "10.0.0.1:80";
                or a context, as ``ctx``.
            src: the remote ones; by default port 40000 of the address that is connected to.
            protocol: "tcp", "udp", or a number.
            ingress_ifindex: of the device that it came in by (``bpf_sk_lookup`` has it since 5.17).
            ctx: a whole ``struct bpf_sk_lookup`` in place of all of these.
            repeat: how often to run.
            observe: see :meth:`bpfunit.Program.run`.

        Raises:
            ContextError: an address that there is not, ends of two families, or ``ctx`` beside
                addresses.
            SyscallError: the kernel refused the run; 524 (ENOTSUPP) before Linux 5.13.
            NotApplicableError: this engine cannot produce such a run.
        """
        self.check_open()
        if isinstance(dst, (ctypes.Structure, bytes)):
            ctx, dst = dst, None
        if ctx is None:
            ctx = self.craft(
                dst,
                src=src,
                protocol=protocol,
                ingress_ifindex=ingress_ifindex,
            )
        elif dst is not None or src is not None:
            raise ContextError(f"run {self.name}: ctx= has the addresses; leave out dst and src")
        elif isinstance(ctx, str):
            self.refuse_input(ctx)
        request = Request(bytes(ctx), None, repeat)
        return cast("LookupResult", self.execute(request, ctx, observe=observe))

    def craft(
        self,
        dst: EndpointLike | None = None,
        *,
        src: EndpointLike | None = None,
        protocol: str | int = "tcp",
        ingress_ifindex: int = 0,
    ) -> SkLookup:
        """Return the context of a lookup, for :meth:`run_many`; the arguments are those of `run`.

        Raises:
            ContextError: as :meth:`run`.
        """
        try:
            local = Endpoint.parse(self.refuse_input(None) if dst is None else dst)
            remote = Endpoint(local.host, _CLIENT_PORT) if src is None else Endpoint.parse(src)
        except ValueError as error:
            raise ContextError(f"run {self.name}: {error}") from None
        if local.ip.version != remote.ip.version:
            raise ContextError(
                f"run {self.name}: from {remote} to {local}; both are of IPv4, or both of IPv6"
            )
        number = _PROTOCOLS.get(protocol) if isinstance(protocol, str) else protocol
        if number is None:
            raise ContextError(
                f'run {self.name}: protocol={protocol!r}; expected "tcp", "udp" or a number'
            )
        family = socket.AF_INET6 if local.ip.version == 6 else socket.AF_INET
        context = SkLookup(family=family, protocol=number, ingress_ifindex=ingress_ifindex)
        _put(context, "local", local)
        _put(context, "remote", remote)
        return context


class SkLookupType(NativeType):
    """What is known of ``BPF_PROG_TYPE_SK_LOOKUP`` (Linux 5.9)."""

    context = SkLookup
    sections: Mapping[str, int] = {"sk_lookup": AttachType.SK_LOOKUP}
    # what every kernel has: ingress_ifindex came with 5.17
    readable = (
        *("family", "protocol", "remote_ip4", "remote_ip6", "remote_port"),
        *("local_ip4", "local_ip6", "local_port"),
    )
    structure = "bpf_sk_lookup"
    takes = 'where somebody connects to, "10.0.0.1:80", or a context (ctx=)'
    verdicts: Mapping[int, str] = {0: "SK_DROP", 1: "SK_PASS"}
    program_class = LookupProgram
    example = '"10.0.0.1:80"'


register(SkLookupType(ProgType.SK_LOOKUP))
