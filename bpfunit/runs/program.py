"""Programs: run them with a crafted context, once or many times."""

from __future__ import annotations

import errno
import socket
from contextlib import nullcontext
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from bpfunit import engines
from bpfunit._sys import bpf, uapi
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.engines import Request
from bpfunit.errors import BpfunitError, SyscallError
from bpfunit.progtypes import native
from bpfunit.progtypes.sock_addr import HOOKS, BpfSockAddr, ContextError, Hook, craft
from bpfunit.runs.observation import Session
from bpfunit.runs.result import Result
from bpfunit.values.net import EndpointLike

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bpfunit.objects.maps import Map
    from bpfunit.runs.bulk import BulkResult

_DEFAULT_DATA_ROOM = 256  # bytes that a packet program may add in front of or behind the packet
# the smallest Ethernet frame: what a packet program gets when the test does not care
_ANY_PACKET = bytes(64)


class Program:
    """One loaded program.

    Args:
        fd: its descriptor, which the program does not own.
        name: the name shown; by default the kernel's (15 characters).
        attach_type: ``enum bpf_attach_type`` that it was loaded for, None where nobody knows.
        section: the ELF section, "" where there is none.
        session: the observers of its object.
    """

    def __init__(
        self,
        fd: int,
        name: str | None = None,
        attach_type: int | None = None,
        section: str = "",
        session: Session | None = None,
    ) -> None:
        info = bpf.object_info(f"inspect program {name or fd}", fd, uapi.ProgInfo())
        self.fd = fd
        self.name = name or info.name.decode()
        self.type: int = _prog_type(info.type)
        self.id = int(info.id)
        self.section = section
        self._attach_type = attach_type
        self.session = session or Session()

    @classmethod
    def from_fd(
        cls, fd: int, attach_type: str | int | None = None, *, maps: Iterable[Map] = ()
    ) -> Program:
        """Wrap a program of someone else's, for example bcc's ``load_func(…).fd``; it stays theirs.

        Args:
            fd: the descriptor.
            attach_type: what it was loaded for, for socket-address programs: "connect4",
                "cgroup/connect4" or the number. The kernel does not tell it.
            maps: maps to look into after each run: socket storages, ring buffers, program arrays.

        Raises:
            SyscallError: ``fd`` is not a BPF program.
            NotFoundError: there is no such attach type.
        """
        bpf.require_bpf_fd("wrap program", fd, "prog")
        if isinstance(attach_type, str):
            attach_type = attach_type_of(attach_type)
        program = cls(fd, attach_type=attach_type)
        program.session.name = program.name
        program.session.watch({one.name: one for one in maps})
        return program

    @property
    def attach_type(self) -> int:
        """The attach type's number; 0 where nobody knows it."""
        return self._attach_type or 0

    @property
    def hook(self) -> Hook:
        """The hook that a socket-address program is for.

        Raises:
            BpfunitError: the program has another type, or its attach type is not known.
        """
        found = HOOKS.get(self.attach_type)
        if self.type != ProgType.CGROUP_SOCK_ADDR or found is None:
            known = self._attach_type is not None
            remedy = "" if known else '; say it: Program.from_fd(fd, "cgroup/connect4")'
            raise BpfunitError(
                f"run {self.name}: an address can be crafted for cgroup_sock_addr programs, this is"
                f" {_type_name(self.type)}, attach type {_attach_name(self._attach_type)}{remedy}"
            )
        return found

    def __repr__(self) -> str:
        return f"<program {self.name}: {self.section or _type_name(self.type)}, fd {self.fd}>"

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
        data: bytes | None = None,
        data_room: int = _DEFAULT_DATA_ROOM,
        repeat: int = 1,
        observe: bool = True,
    ) -> Result:
        """Run the program with a crafted context and return what it did.

        A socket-address program gets a context made of ``dst``, ``src``, ``type``, ``proto`` and
        ``family``, and a socket of that kind, whose storage is on the result. A packet program
        (XDP, TC, cgroup_skb, …) gets ``data`` and, where its type takes one, ``ctx``.

        Args:
            dst: the address and port that the program sees and may rewrite: "10.96.0.1:80",
                "[fd00::1]:80" or ("10.96.0.1", 80).
            src: source address, sendmsg programs only.
            type: socket type, SOCK_STREAM by default (SOCK_DGRAM for sendmsg and recvmsg).
            proto: protocol that the socket has; that of ``type`` by default.
            family: the socket's family, by default that of the hook.
            sock: run on this socket, whose family, type and protocol the context then has.
            ctx: the whole context instead: a structure, bytes, or None to pass none at all.
            data: the packet, packet programs only.
            data_room: bytes by which the packet may grow.
            repeat: how often to run; each run starts from the crafted context.
            observe: collect log lines, ring-buffer records, printed lines, tail calls and the
                branches taken. Observed runs of one object wait for one another, so that each gets
                its own; with False runs of several threads are in the kernel at the same time, and
                asking the result for any of these raises NotObservedError. On the engine ``both``
                such a run is one of ``testrun``.

        Raises:
            SyscallError: the kernel refused the run; ``errno`` says why (EINVAL without a context,
                524 when nothing gives this program type a test run).
            ContextError: addresses that the hook never sees.
            NotApplicableError: this engine cannot produce such a run.
        """
        self.check_open()
        if self.type == ProgType.CGROUP_SOCK_ADDR and data is None:
            context = self._context(ctx, dst, src, type, proto, family, sock)
        else:
            if dst is not None or src is not None:
                raise ContextError(
                    f"run {self.name}: an address is crafted for cgroup_sock_addr programs, this is"
                    f" {_type_name(self.type)}; give it a packet (data=) or a context (ctx=)"
                )
            context = None if ctx is ... else ctx
            if data is None and self.type in native.PACKET_TYPES:
                data = _ANY_PACKET
        raw = None if context is None else bytes(context)
        own = None
        if sock is None and isinstance(context, BpfSockAddr) and not context.sk:
            sock = own = socket_for(context)
        engine = self.engine(observe=observe)
        room = len(data) + data_room if data is not None else 0
        try:
            with self.session.observing() if observe else nullcontext():
                if observe:
                    self.session.before()
                outcome = engine.run(
                    self, Request(raw, sock, repeat, data, room, fresh=own is not None)
                )
                result = Result(
                    program=self.name,
                    engine=engine.name,
                    retval=outcome.retval,
                    errno=outcome.errno,
                    duration_ns=outcome.duration_ns,
                    raw_ctx=outcome.ctx,
                    ctx_in=context,
                    data=outcome.data,
                    retval_note=native.retval_note(self.type, self.attach_type),
                )
                if observe:
                    self.session.after(result, sock)
                else:
                    self.session.read_storages(result.unobserved(), sock)
        except BpfunitError as error:
            self.session.remember(f"{self.name}({context!r}): {error}")
            raise
        finally:
            if own is not None:
                own.close()
        return result

    def _context(
        self,
        ctx: Any | EllipsisType,
        dst: EndpointLike | None,
        src: EndpointLike | str | None,
        type: int | None,
        proto: int | None,
        family: int | None,
        sock: socket.socket | None,
    ) -> Any:
        if ctx is not ...:
            return ctx
        if sock is not None:
            type, proto, family = sock.type, socket_protocol(sock), int(sock.family)
        return craft(self.hook, dst=dst, src=src, type=type, proto=proto, family=family)

    def engine(self, *, observe: bool) -> engines.Engine:
        """Return the engine of this program's runs.

        Types that no call reaches through a cgroup have the kernel's test run alone. Comparing
        needs the maps to itself: a run that others may make at the same time is not compared.
        """
        if self.type != ProgType.CGROUP_SOCK_ADDR:
            return engines.get("testrun")
        chosen = engines.get(self.session.engine)
        return engines.get("testrun") if chosen.name == "both" and not observe else chosen

    def check_open(self) -> None:
        """Refuse to run a program whose object is closed.

        Raises:
            SyscallError: EBADF, it is.
        """
        if self.fd < 0:
            raise SyscallError(f"run {self.name}", errno.EBADF, "its object is closed")

    def craft(self, dst: EndpointLike | None = None, **options: Any) -> BpfSockAddr:
        """Return the context that :meth:`run` would craft, to alter it or to run many."""
        return craft(self.hook, dst=dst, **options)

    def run_many(self, contexts: Iterable[Any] | bytes, **options: Any) -> BulkResult:
        """Run once for each context, without a Python round trip per field.

        See :func:`bpfunit.runs.bulk.run_many` for the options and the result.
        """
        from bpfunit.runs.bulk import run_many

        return run_many(self, contexts, **options)


def socket_protocol(sock: socket.socket) -> int:
    """Return the protocol a socket really has (``socket.proto`` may say 0)."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)


def socket_for(context: BpfSockAddr) -> socket.socket | None:
    """Make a socket of the context's family, type and protocol, None where user space cannot."""
    try:
        return socket.socket(context.family, context.type, context.protocol)
    except OSError:
        return None


def attach_type_of(name: str) -> int:
    """Return the number of an attach type by libbpf's section name ("cgroup/connect4").

    Raises:
        NotFoundError: there is none of this name among the socket-address ones.
    """
    from bpfunit.errors import NotFoundError

    names = {
        f"cgroup/{hook.kind}{6 if hook.family == socket.AF_INET6 else 4}": number
        for number, hook in HOOKS.items()
    }
    full = name if name.startswith("cgroup/") else f"cgroup/{name}"
    if full not in names:
        raise NotFoundError("look up attach type", name, sorted(names))
    return int(names[full])


def _prog_type(number: int) -> int:
    try:
        return ProgType(number)
    except ValueError:
        return number


def _type_name(number: int) -> str:
    return str(getattr(number, "name", number)).lower()


def _attach_name(number: int | None) -> str:
    if number is None:
        return "unknown"
    try:
        return AttachType(number).name.lower()
    except ValueError:
        return str(number)
