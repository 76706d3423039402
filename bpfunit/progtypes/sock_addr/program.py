"""The type ``cgroup_sock_addr``, its programs, and what a run of one tells."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from bpfunit._sys import sockets
from bpfunit._sys.uapi import ProgType
from bpfunit.errors import BpfunitError, SyscallError
from bpfunit.progtypes.base import (
    ALLOW,
    ProgramType,
    RawOutcome,
    Request,
    SocketFields,
    register,
)
from bpfunit.progtypes.sock_addr.context import (
    HOOKS,
    SOCK_ADDR_SIZE,
    BpfSockAddr,
    Hook,
    craft,
)
from bpfunit.rewrite import ambient
from bpfunit.rewrite.ambient import observers
from bpfunit.runs.bulk import BulkRun
from bpfunit.runs.onecall import OWN_SOCKET, OneCall
from bpfunit.runs.program import Program
from bpfunit.runs.result import Result
from bpfunit.values.net import Endpoint, EndpointLike

if TYPE_CHECKING:
    from bpfunit._sys.cgroup import Cgroup
    from bpfunit.progtypes.base import LiveCalls

_SK = BpfSockAddr.sk.offset
# BPF_CGROUP_UNIX_CONNECT to BPF_CGROUP_UNIX_GETSOCKNAME, uapi linux/bpf.h of 6.7
_ANSWER_SIZE = 4  # struct bpfunit_result of vm/testrun/bpfunit_testrun.h
_KEPT = 4096  # crafted contexts
_UNIX = range(49, 54)
_COMMON = ("user_family", "user_port", "family", "type", "protocol")


class SockAddrResult(Result):
    """The outcome of a run of a socket-address program."""

    _crafted = b""
    _ctx_size = SOCK_ADDR_SIZE

    @cached_property
    def ctx_in(self) -> Any:
        """The context as crafted, None when none was passed."""
        return BpfSockAddr.from_buffer_copy(self._crafted)

    def _context(self) -> Any:
        raw = self.raw_ctx
        if self._crafted and len(raw) == SOCK_ADDR_SIZE:
            return BpfSockAddr.from_buffer_copy(raw)
        return super()._context()

    def _sock_addr(self) -> BpfSockAddr:
        context = self.ctx
        if not isinstance(context, BpfSockAddr):
            raise BpfunitError(
                f"read the address of {self.program}: it ran on bytes; craft a BpfSockAddr"
            )
        return context

    @property
    def dst(self) -> Endpoint:
        """The address and port that the program may rewrite, after the run."""
        return self._sock_addr().user

    @property
    def src(self) -> Endpoint:
        """The source address of a sendmsg context after the run; its port reads 0."""
        return self._sock_addr().source


class SockAddrRun(BulkRun):
    """One run of a socket-address program in a bulk call."""

    @property
    def dst(self) -> Endpoint:
        """The address and port after the run."""
        return cast("BpfSockAddr", self.ctx).user

    @property
    def src(self) -> Endpoint:
        """The source address of a sendmsg context after the run; its port reads 0."""
        return cast("BpfSockAddr", self.ctx).source


class SockAddrProgram(Program):
    """A socket-address program: a crafted address, and a socket of that family and type."""

    result_class = SockAddrResult
    run_class = SockAddrRun

    @cached_property
    def hook(self) -> Hook:
        """The call and the address family that the program is for.

        Raises:
            BpfunitError: its attach type is not known.
        """
        found = HOOKS.get(self.attach_type)
        if found is None:
            known = self._attach_type is not None
            remedy = "" if known else '; say it: Program.from_fd(fd, "cgroup/connect4")'
            raise BpfunitError(
                f"run {self.name}: an address can be crafted for the hooks of cgroup_sock_addr"
                f" programs, this one's attach type is"
                f" {self.program_type.attach_name(self._attach_type)}{remedy}"
            )
        return found

    def run(
        self,
        dst: EndpointLike | None = None,
        src: EndpointLike | str | None = None,
        *,
        type: int | None = None,
        proto: int | None = None,
        family: int | None = None,
        sock: socket.socket | None = None,
        ctx: Any = ...,
        repeat: int = 1,
        observe: bool = True,
    ) -> SockAddrResult:
        """Run the program with a crafted context and return what it did.

        The context is made of ``dst``, ``src``, ``type``, ``proto`` and ``family``; with it comes a
        socket of that family and type, whose storage is on the result.

        Args:
            dst: the address and port that the program sees and may rewrite: "10.96.0.1:80",
                "[fd00::1]:80" or ("10.96.0.1", 80).
            src: source address, sendmsg programs only.
            type: socket type, SOCK_STREAM by default (SOCK_DGRAM for sendmsg and recvmsg).
            proto: protocol that the socket has; that of ``type`` by default.
            family: the socket's family, by default that of the hook.
            sock: run on this socket, whose family, type and protocol the context then has.
            ctx: the whole context instead: a structure, bytes, or None to pass none at all.
            repeat: how often to run; each run starts from the crafted context.
            observe: see :meth:`bpfunit.Program.run`.

        Raises:
            SyscallError: the kernel refused the run; ``errno`` says why (EINVAL without a context,
                524, ENOTSUPP, when the module was not there as the program was loaded).
            ContextError: addresses that the hook never sees.
            NotApplicableError: this engine cannot produce such a run.
        """
        if ctx is ... and sock is None and observe:
            # every test does this, some thousands of times: hence in line what could be called
            observation = self.observation
            try:
                one = observation.prepared[self.ref.fd]
            except KeyError:
                one = self.one_call()
            if one is not None:
                asked = (dst, src, family, type, proto)
                try:
                    crafted = one.crafted[asked]
                except (KeyError, TypeError):
                    crafted = self._crafted(one, asked)
                done = SockAddrResult.__new__(SockAddrResult)
                with observation.lock:
                    if observers or one.is_observed or one.printed is not None:
                        answer = self._run_observed(one, done, crafted, repeat)
                    else:
                        answer = one.in_c(
                            one.address,
                            crafted,
                            None,
                            SOCK_ADDR_SIZE,
                            _ANSWER_SIZE,
                            repeat,
                            OWN_SOCKET,
                        )
                    if answer.__class__ is bytes:
                        done.answer, done._one, done._crafted = answer, one, crafted
                        if one.notes or observation.has_filled_slots:
                            one.note(done)
                        observation.journal.append(done)
                        observation.runs += 1
                        return done
                if answer is not None:
                    raise self._refused(one, answer, crafted)
        self.check_open()
        if ctx is ...:
            if sock is not None:
                type, proto, family = sock.type, sockets.protocol(sock), int(sock.family)
            ctx = craft(self.hook, dst=dst, src=src, type=type, proto=proto, family=family)
        raw = None if ctx is None else bytes(ctx)
        own = None
        if sock is None and isinstance(ctx, BpfSockAddr) and not ctx.sk:
            sock = own = SOCK_ADDR.resource(ctx)
        try:
            request = Request(raw, sock, repeat, fresh=own is not None)
            result = self.execute(request, ctx, observe=observe)
        finally:
            if own is not None:
                own.close()
        return cast("SockAddrResult", result)

    def _crafted(self, one: OneCall, asked: tuple[Any, ...]) -> bytes:
        """Return the bytes of a context, and keep them for the next run with the same."""
        dst, src, family, type, proto = asked
        crafted = bytes(self.craft(dst, src=src, family=family, type=type, proto=proto))
        if not isinstance(dst, list):  # as it comes out of JSON
            if len(one.crafted) == _KEPT:
                one.crafted.clear()
            one.crafted[asked] = crafted
        return crafted

    @staticmethod
    def _run_observed(one: OneCall, result: SockAddrResult, raw: bytes, repeat: int) -> Any:
        """Run on a crafted context, the branches observed, and what is printed kept apart."""
        with ambient.one_run():
            result._observer = observer = ambient.run_observer()
            one.observed_by(observer)
            if one.printed is not None:
                one.printed.drain()
            return one.in_c(
                one.address, raw, None, SOCK_ADDR_SIZE, _ANSWER_SIZE, repeat, OWN_SOCKET
            )

    def _refused(self, one: OneCall, answer: tuple[int, int], raw: bytes) -> SyscallError:
        """Return the error of a run that the kernel refused, and remember it."""
        error = one.refused(answer, raw, None, _ANSWER_SIZE)
        shown = BpfSockAddr.from_buffer_copy(raw)
        self.observation.remember(f"{self.name}({shown!r}): {error}")
        return error

    def craft(self, dst: EndpointLike | None = None, **options: Any) -> BpfSockAddr:
        """Return the context that :meth:`run` would craft, to alter it or to run many."""
        return craft(self.hook, dst=dst, **options)

    def as_context(self, given: Any) -> BpfSockAddr:
        """Return the context of one destination of :meth:`run_many`."""
        return self.craft(given)


class SockAddrType(ProgramType):
    """What is known of ``BPF_PROG_TYPE_CGROUP_SOCK_ADDR`` (Linux 4.17)."""

    context = BpfSockAddr
    sections: Mapping[str, int] = {
        f"cgroup/{hook.call}{6 if hook.family == socket.AF_INET6 else 4}": number
        for number, hook in sorted(HOOKS.items(), key=lambda pair: pair[1].call != "connect")
    }
    takes = "an address (dst=) or a context (ctx=)"
    verdicts = ALLOW
    hints: Mapping[int, str] = {
        errno.EINVAL: "the context is missing, or contradicts the program's attach type",
        errno.E2BIG: "the context is longer than struct bpf_sock_addr and not zero past its end",
    }
    live = True
    compared = 60  # what is in front of the socket pointer and its padding
    answer_size = _ANSWER_SIZE
    socket_fields = SocketFields(fd=_SK, made_of=BpfSockAddr.family.offset)
    program_class = SockAddrProgram
    example = '"192.0.2.1:80"'

    def readable_fields(self, attach_type: int) -> Sequence[str]:
        """Return the members of the context that a program of this attach type may read.

        Source: ``sock_addr_is_valid_access()`` in the kernel's ``net/core/filter.c``.

        Raises:
            BpfunitError: it is none of the type's, so that the context would look empty.
        """
        hook = HOOKS.get(attach_type)
        if attach_type in _UNIX:
            return _COMMON  # their address is not in the context
        if hook is None:
            raise BpfunitError(
                f"read the context: attach type {attach_type} is none that bpfunit knows of a"
                " cgroup_sock_addr program"
            )
        version = 4 if hook.family == socket.AF_INET else 6
        source = (f"msg_src_ip{version}",) if hook.has_source else ()
        return (*_COMMON, f"user_ip{version}", *source)

    def resource(self, context: BpfSockAddr) -> socket.socket | None:
        """Make a socket of the context's family, type and protocol, None where nobody can."""
        try:
            return socket.socket(context.family, context.type, context.protocol)
        except OSError:
            return None

    def encode(self, request: Request) -> tuple[bytes | None, bytes | None]:
        """Return ``ctx_in`` with the socket's descriptor in it, and ``data_in``."""
        ctx = request.ctx
        if ctx is not None and request.sock is not None and len(ctx) >= SOCK_ADDR_SIZE:
            fd = request.sock.fileno().to_bytes(8, sys.byteorder, signed=True)
            ctx = ctx[:_SK] + fd + ctx[_SK + 8 :]
        return ctx, request.data

    def ctx_size_out(self, ctx_size_in: int) -> int:
        """Return the size of the whole context, however much of it went in."""
        return SOCK_ADDR_SIZE

    def decode(self, retval: int, ctx: bytes, data: bytes, duration_ns: int | None) -> RawOutcome:
        """Take the errno out of ``struct bpfunit_result``."""
        verdict = int.from_bytes(data[:4], sys.byteorder, signed=True)
        return RawOutcome(retval, ctx, duration_ns, b"", -verdict)

    def call_leaves_traces(self, attach_type: int) -> bool:
        """Whether the real call binds or connects its socket though it ends in EPERM."""
        return HOOKS[attach_type].call not in ("connect", "bind")

    def make_live_calls(self, cgroup: Cgroup) -> LiveCalls:
        """Return the socket calls whose hooks the programs are for."""
        from bpfunit.progtypes.sock_addr.live import SockAddrCalls

        return SockAddrCalls(cgroup)


SOCK_ADDR = SockAddrType(ProgType.CGROUP_SOCK_ADDR)
register(SOCK_ADDR)
