"""``cgroup_sock`` programs: sockets that are made, were bound, or go away, run by the module.

The program's context is the socket itself, and what it does to it stays. The engine ``live`` makes,
binds and closes a socket (:mod:`bpfunit.progtypes.cgroup_sock_live`). The hooks are those of
socket(2) (Linux 4.10), of bind(2) once a port is found (4.17), and of close(2) (5.9).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.progtypes.base import (
    ALLOW,
    ContextError,
    LiveCalls,
    ProgramRef,
    RawOutcome,
    Request,
    register,
)
from bpfunit.progtypes.cgroup_sock_live import SockCalls
from bpfunit.progtypes.headed import VERSION, HeadedType
from bpfunit.runs.bulk import BulkRun
from bpfunit.runs.program import Program
from bpfunit.runs.result import Result
from bpfunit.values.net import Endpoint, EndpointLike

# struct bpfunit_sock, bpfunit_sock_result of vm/testrun/bpfunit_testrun.h
_HEADER, _RESULT = struct.Struct("=4I"), struct.Struct("=i3I")
_SO_MARK, _SO_BINDTOIFINDEX = 36, 62  # include/uapi/asm-generic/socket.h
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78  # include/uapi/linux/in.h, in6.h
_POST_BIND = {
    int(AttachType.CGROUP_INET4_POST_BIND): socket.AF_INET,
    int(AttachType.CGROUP_INET6_POST_BIND): socket.AF_INET6,
}
_ANY = {socket.AF_INET: "127.0.0.1:0", socket.AF_INET6: "[::1]:0"}


class SocketFields(NamedTuple):
    """What a program of sock_create or sock_release may change of a socket."""

    bound_dev_if: int
    mark: int
    priority: int

    def __str__(self) -> str:
        return f"bound_dev_if {self.bound_dev_if}, mark {self.mark:#x}, priority {self.priority}"


def _fields_of(sock: socket.socket) -> SocketFields | None:
    """Return the fields as they are now, None of a socket that has no such options."""
    try:
        return SocketFields(
            *(
                sock.getsockopt(socket.SOL_SOCKET, option) & 0xFFFFFFFF
                for option in (_SO_BINDTOIFINDEX, _SO_MARK, socket.SO_PRIORITY)
            )
        )
    except OSError:
        return None  # the module says why


class SockResult(Result):
    """The outcome of a run of a cgroup_sock program.

    ``errno`` is what socket(2) or bind(2) ends with; close(2) goes on whatever its program says,
    so that it is 0 there.

    Attributes:
        fields_in: ``bound_dev_if``, ``mark`` and ``priority`` before the run.
        fields: the same after it. Those of a socket that was passed by ``sock=`` stay with it, but
            for sock_release.
    """

    def __init__(
        self,
        program: ProgramRef,
        engine: str,
        outcome: RawOutcome,
        ctx_in: Any = None,
        *,
        fields_in: SocketFields | None = None,
    ) -> None:
        super().__init__(program, engine, outcome, ctx_in)
        self.fields = SocketFields(*_RESULT.unpack_from(outcome.data)[1:])
        self.fields_in = fields_in or self.fields

    @property
    def bound_dev_if(self) -> int:
        """The device's number that the socket is bound to after the run, 0 for none."""
        return self.fields.bound_dev_if

    @property
    def mark(self) -> int:
        """The socket's mark after the run."""
        return self.fields.mark

    @property
    def priority(self) -> int:
        """The socket's priority after the run."""
        return self.fields.priority

    @property
    def untouched(self) -> bool:
        """Whether device, mark and priority are as they were."""
        return self.fields == self.fields_in

    def describe(self) -> list[str]:
        """Return what went in and came out as lines for the report of a failing test."""
        changed = "untouched" if self.untouched else "changed"
        return [
            f"socket in:  {self.fields_in}",
            f"socket out: {self.fields} ({changed}), verdict {self.verdict}",
        ]


class SockRun(BulkRun):
    """One run of a bulk call of a cgroup_sock program."""

    __slots__ = ()

    @property
    def fields(self) -> SocketFields | None:
        """As :attr:`SockResult.fields`; None for a run that was refused."""
        answer = self.data
        return SocketFields(*_RESULT.unpack_from(answer)[1:]) if answer else None


class SockProgram(Program):
    """A program that is asked about a socket's making or bind, or told of its end."""

    result_class = SockResult
    run_class = SockRun

    def run(
        self,
        address: EndpointLike | None = None,
        *,
        family: int | None = None,
        type: int = socket.SOCK_STREAM,
        proto: int = 0,
        sock: socket.socket | None = None,
        repeat: int = 1,
        observe: bool = True,
    ) -> SockResult:
        """Run the program on a socket and return what it did.

        Args:
            address: what the socket is bound to, whether a device has that address or not:
                "127.0.0.1:80". Of post_bind4 by default "127.0.0.1:0", of post_bind6 "[::1]:0",
                where the kernel chooses the port; of sock_create there is none.
            family, type, proto: what the socket is made of, as for :class:`socket.socket`; the
                family by default that of the address or the program, else AF_INET.
            sock: the socket instead: any of IPv4 or IPv6. For sock_create a fresh one, for
                post_bind one that is bound and nothing more.
            repeat: how often to run, each time with device, mark and priority as they were.
            observe: see :meth:`bpfunit.Program.run`.

        Raises:
            ContextError: an address that there is not, or a socket together with what makes one.
            OSError: the socket cannot be made or bound.
            SyscallError: the module refused the run: EADDRNOTAVAIL for a socket that is not bound,
                EISCONN for one that is connected or listens, EINVAL for sock_create on one that is
                bound, EOPNOTSUPP for a protocol that binds on its own (raw, ping, MPTCP, SCTP),
                EAFNOSUPPORT for another family; 524 (ENOTSUPP) without the module.
            NotApplicableError: no real call shows this to the program: the socket is the test's,
                and was made or bound already.
        """
        self.check_open()
        if sock is not None and (address is not None or family is not None or proto):
            raise ContextError(
                f"run {self.name}: a socket, and what one is made of; pass one of the two"
            )
        with ExitStack() as stack:
            used = sock or stack.enter_context(self._make(address, family, type, proto))
            request = self.as_request(used)._replace(repeat=repeat, fresh=sock is None)
            result = self.execute(request, observe=observe, fields_in=_fields_of(used))
        return cast("SockResult", result)

    def _make(
        self, address: EndpointLike | None, family: int | None, type: int, proto: int
    ) -> socket.socket:
        refuse = f"run {self.name}"
        wanted = _POST_BIND.get(self.attach_type)
        if address is None and wanted is not None:
            address = _ANY[wanted]
        if address is None:
            return socket.socket(family or socket.AF_INET, type, proto)
        if self.attach_type == AttachType.CGROUP_INET_SOCK_CREATE:
            raise ContextError(f"{refuse}: a socket that is just made has no address")
        try:
            endpoint = Endpoint.parse(address)
        except ValueError as error:
            raise ContextError(f"{refuse}: {error}") from None
        of_address = socket.AF_INET if endpoint.ip.version == 4 else socket.AF_INET6
        family = family or wanted or of_address
        if family != of_address or (wanted is not None and family != wanted):
            raise ContextError(
                f"{refuse}: {endpoint} is an address of IPv{endpoint.ip.version}, and a socket of"
                f" {socket.AddressFamily(wanted or family).name} is bound to another one"
            )
        made = socket.socket(family, type, proto)
        try:
            if family == socket.AF_INET:
                made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            else:
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            made.bind(tuple(endpoint))
        except OSError:
            made.close()
            raise
        return made

    def as_request(self, given: Any) -> Request:
        """Return the run on one input of :meth:`run_many`: a socket."""
        if not isinstance(given, socket.socket):
            self.refuse_input(given)
        header = _HEADER.pack(VERSION, 0, 0, 0)
        return Request(None, given, 1, header, _RESULT.size)


class SockType(HeadedType):
    """What is known of ``BPF_PROG_TYPE_CGROUP_SOCK``."""

    sections: Mapping[str, int] = {
        "cgroup/sock_create": AttachType.CGROUP_INET_SOCK_CREATE,
        "cgroup/sock": AttachType.CGROUP_INET_SOCK_CREATE,
        "cgroup/sock_release": AttachType.CGROUP_INET_SOCK_RELEASE,
        "cgroup/post_bind4": AttachType.CGROUP_INET4_POST_BIND,
        "cgroup/post_bind6": AttachType.CGROUP_INET6_POST_BIND,
    }
    takes = "a socket (sock=), or what one is made of"
    verdicts = ALLOW
    headers = (_HEADER.size, _RESULT.size)
    hints: Mapping[int, str] = {
        errno.EADDRNOTAVAIL: "the socket is not bound; pass an address instead, or bind it first",
        errno.EISCONN: "the socket is connected or listens; the hook sees it before that",
        errno.EINVAL: "the socket is bound already; the hook sees it before that",
        errno.EOPNOTSUPP: "the program has cgroup storage (before 5.18), or the socket's protocol"
        " binds on its own, so that no such program is asked",
        errno.EAFNOSUPPORT: "the socket is of another family than the hook's",
        errno.ENOTCONN: "the socket is no full one; take a fresh one",
    }
    program_class = SockProgram
    example = ""
    live = True
    context_is_socket = True

    def call_leaves_traces(self, attach_type: int) -> bool:
        """bind(2) and close(2) are made on a socket that is as before afterwards."""
        return attach_type == AttachType.CGROUP_INET_SOCK_CREATE

    def make_live_calls(self, cgroup: Cgroup) -> LiveCalls:
        """Return socket(2), bind(2) and close(2) in this cgroup."""
        return SockCalls(cgroup, lambda error, fields: _RESULT.pack(error, *fields))


register(SockType(ProgType.CGROUP_SOCK))
