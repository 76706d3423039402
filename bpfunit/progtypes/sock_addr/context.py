"""The crafted context of a socket-address program: ``struct bpf_sock_addr`` and what fills it.

``type`` and ``protocol`` are those of the socket; every address and port in the structure is in
network byte order, every argument of :func:`craft` in the way people write it.
"""

from __future__ import annotations

import ctypes
import socket
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from bpfunit._sys.uapi import AttachType
from bpfunit.progtypes.base import ContextError
from bpfunit.values.net import Endpoint, EndpointLike, port
from bpfunit.values.records import StructRecord, array_type

_NO_IP4, _NO_IP6 = bytes(4), bytes(16)
SOCK_ADDR_SIZE = 72  # sizeof(struct bpf_sock_addr) since Linux 5.3, which added the sk pointer


class BpfSockAddr(StructRecord):
    """``struct bpf_sock_addr`` of ``include/uapi/linux/bpf.h``: 72 bytes, network byte order."""

    _fields_: ClassVar[Any] = [
        ("user_family", ctypes.c_uint32),
        ("user_ip4", ctypes.c_uint32),
        ("user_ip6", array_type(ctypes.c_uint32, 4)),
        ("user_port", ctypes.c_uint32),
        ("family", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("protocol", ctypes.c_uint32),
        ("msg_src_ip4", ctypes.c_uint32),
        ("msg_src_ip6", array_type(ctypes.c_uint32, 4)),
        ("sk", ctypes.c_uint64),
    ]
    _members_: ClassVar[dict[str, Any]] = dict(_fields_)

    @property
    def user(self) -> Endpoint:
        """The address and port that the program may rewrite.

        Which of the two addresses it is follows from the one that is set, and from ``user_family``
        where none is: connect and bind show their hooks whatever family the caller wrote.
        """
        raw = bytes(self)
        four, six = raw[4:8], raw[8:24]
        is_six = six != _NO_IP6 or (self.user_family == socket.AF_INET6 and four == _NO_IP4)
        return Endpoint(six if is_six else four, socket.ntohs(self.user_port & 0xFFFF))

    @property
    def source(self) -> Endpoint:
        """The source address of a datagram; its port is not part of the context and reads 0."""
        raw = bytes(self.msg_src_ip6) if self.user_family == socket.AF_INET6 else self.msg_src_ip4
        return Endpoint(raw, 0)

    def __repr__(self) -> str:
        shown = [f"user={self.user}", f"family={_family_name(self.user_family)}"]
        if self.family != self.user_family:
            shown.append(f"socket_family={_family_name(self.family)}")
        shown += [f"type={self.type}", f"protocol={self.protocol}"]
        if self.msg_src_ip4 or any(self.msg_src_ip6):
            shown.append(f"source={self.source.host}")
        return f"BpfSockAddr({', '.join(shown)})"


class Hook(NamedTuple):
    """What an attach type of ``cgroup_sock_addr`` programs means for its context."""

    family: int
    call: str  # "connect", "bind", "sendmsg", "recvmsg", "getpeername" or "getsockname"

    @property
    def has_source(self) -> bool:
        """Whether the context carries a source address (``msg_src_ip4``, ``msg_src_ip6``)."""
        return self.call == "sendmsg"

    def may_be_shown(self, user_family: int) -> bool:
        """Whether a call brings an address with this family written into it to the hook."""
        if user_family == self.family:
            return True
        if self.call == "sendmsg" or user_family == socket.AF_UNSPEC:
            return user_family == socket.AF_UNSPEC and self.call in ("sendmsg", "bind")
        # sa_family_t has 16 bits
        return self.call in ("connect", "bind") and user_family <= 0xFFFF

    @property
    def datagram(self) -> bool:
        """Whether the hook sits on a datagram path, so that a UDP socket is the natural default."""
        return self.call in ("sendmsg", "recvmsg")


def _hooks() -> dict[int, Hook]:
    found: dict[int, Hook] = {}
    for attach_type in AttachType:
        protocol, _, call = attach_type.name.removeprefix("CGROUP_").partition("_")
        if call.lower() in ("connect", "bind", "sendmsg", "recvmsg", "getpeername", "getsockname"):
            family = socket.AF_INET6 if protocol.endswith("6") else socket.AF_INET
            found[attach_type] = Hook(int(family), call.lower())
    return found


# attach type number -> its hook, for all INET4/INET6 attach types of cgroup_sock_addr
HOOKS: dict[int, Hook] = _hooks()


def _family_name(family: int) -> str:
    try:
        return socket.AddressFamily(family).name
    except ValueError:
        return str(family)


def craft(
    hook: Hook,
    *,
    dst: EndpointLike | None = None,
    src: EndpointLike | str | None = None,
    family: int | None = None,
    type: int | None = None,
    proto: int | None = None,
    user_family: int | None = None,
) -> BpfSockAddr:
    """Fill a context as the kernel would for this hook.

    Args:
        hook: the hook of the program's attach type.
        dst: the address that the program sees in ``user_ip*`` and ``user_port`` and may rewrite:
            the destination of connect and sendmsg, the local address of bind and getsockname, the
            peer of recvmsg and getpeername. Default: the unspecified address, port 0.
        src: sendmsg only, the source address ("10.0.0.9", or an endpoint whose port is ignored).
        family: the socket's family where it differs (an AF_INET6 socket that sends to IPv4).
        type: SOCK_STREAM by default, SOCK_DGRAM for sendmsg and recvmsg.
        proto: the protocol that the socket reports; by default that of ``type``.
        user_family: the family that the caller wrote into the address, by default that of the hook.
            The kernel looks at it behind the hooks of connect and bind, which see any; of sendmsg
            AF_UNSPEC comes through, too.

    Raises:
        ContextError: an address of the wrong family, a source where the hook has none, or a
            ``user_family`` that no call brings to the hook.
    """
    if isinstance(dst, list):
        dst = tuple(dst)  # as it comes out of JSON; what is cached must be hashable
    # parsing costs more than a run, and most tests dial few addresses
    return BpfSockAddr.from_buffer_copy(
        _crafted_bytes(hook, dst, src, family, type, proto, user_family)
    )


@lru_cache(maxsize=4096)
def _crafted_bytes(
    hook: Hook,
    dst: EndpointLike | None,
    src: EndpointLike | str | None,
    family: int | None,
    type: int | None,
    proto: int | None,
    user_family: int | None,
) -> bytes:
    if type is None:
        type = socket.SOCK_DGRAM if hook.datagram else socket.SOCK_STREAM
    if proto is None:
        default = {socket.SOCK_STREAM: socket.IPPROTO_TCP, socket.SOCK_DGRAM: socket.IPPROTO_UDP}
        proto = default.get(type, 0)  # type: ignore[call-overload]
    context = BpfSockAddr()
    context.user_family = hook.family if user_family is None else user_family
    if not hook.may_be_shown(context.user_family):
        raise ContextError(
            f"craft context: a {hook.call} hook never sees user_family {context.user_family}; the"
            " kernel answers such a call before it, or writes the family itself"
        )
    context.family = hook.family if family is None else family
    context.type = type
    context.protocol = proto
    if dst is not None:
        endpoint = Endpoint.parse(dst)
        _set_address(context, hook, "user_ip", endpoint)
        context.user_port = port(endpoint.port)
    if src is not None:
        if not hook.has_source:
            raise ContextError(
                f"craft context: a {hook.call} hook has no source address; only sendmsg has one"
            )
        text = isinstance(src, str) and (src.count(":") != 1 and not src.startswith("["))
        source = Endpoint(src, 0) if text else Endpoint.parse(src)  # type: ignore[arg-type]
        _set_address(context, hook, "msg_src_ip", source)
    return bytes(context)


def _set_address(context: BpfSockAddr, hook: Hook, field: str, endpoint: Endpoint) -> None:
    address = endpoint.ip
    wanted = 6 if hook.family == socket.AF_INET6 else 4
    if address.version != wanted:
        remedy = f"write [::ffff:{address}]:{endpoint.port}" if wanted == 6 else "use an IPv4 one"
        raise ContextError(
            f"craft context: a {hook.call}{wanted} hook never sees the IPv{address.version} address"
            f" {endpoint}; {remedy}"
        )
    words = address.words()
    setattr(context, f"{field}{wanted}", words[0] if wanted == 4 else words)
