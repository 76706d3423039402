"""How the engine live runs socket-address programs: attached to a cgroup, on the way of a call."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from bpfunit._sys.cgroup import Cgroup
from bpfunit.engines import NotApplicableError, ProgramRef, RawOutcome, Request
from bpfunit.errors import BpfunitError, SyscallError
from bpfunit.progtypes.sock_addr import arrange
from bpfunit.progtypes.sock_addr.calls import CALLS, Case
from bpfunit.progtypes.sock_addr.context import HOOKS, SOCK_ADDR_SIZE
from bpfunit.progtypes.sock_addr.crafted import Crafted, context_bytes, words_of
from bpfunit.progtypes.sock_addr.probes import ALWAYS_PROCEED, Probes, Sighting

_SO_COOKIE = 57  # include/uapi/asm-generic/socket.h, since Linux 4.12


class SockAddrCalls:
    """The calls behind the hooks of socket-address programs, with what observes them.

    Args:
        cgroup: the one that the process's sockets belong to.
    """

    def __init__(self, cgroup: Cgroup) -> None:
        # the observers and their record are one an attach type, the cgroup is one for all
        self._lock = threading.RLock()
        self._cgroup = cgroup
        # all at once, so that whoever counts open descriptors around a test finds no new ones
        self._probes = {attach_type: Probes(attach_type) for attach_type in HOOKS}

    @contextmanager
    def attached(self, program: ProgramRef) -> Iterator[Callable[[Request], RawOutcome]]:
        """Keep a program attached within the block; yield what runs one request by a real call.

        This is the quick way to many runs: attaching takes the kernel longer than a call does.
        Other sockets of the process go through the program too, meanwhile; runs of other threads
        wait.

        Raises:
            NotApplicableError: the attach type is no INET one, or nothing shows the program's
                return value.
            SyscallError: the kernel refused to attach the program.
        """
        if program.attach_type not in HOOKS:
            raise NotApplicableError(
                f"run {program.name} on the engine live: it runs cgroup_sock_addr programs of the"
                " INET attach types only; use the engine testrun"
            )
        probes = self._probes[program.attach_type]
        with self._lock, probes.watching_exit(program.fd) as exit_seen:
            if not (exit_seen or probes.with_retval or program.attach_type in ALWAYS_PROCEED):
                raise NotApplicableError(
                    f"run {program.name} on the engine live: nothing on this kernel shows the"
                    " return value of a program without BTF; build it with -g, or use Linux 5.18"
                )
            fds = (probes.before, program.fd, probes.behind)
            with _Attachment(self._cgroup, program.attach_type, fds) as attachment:
                yield lambda request: _run_one(program, request, probes, attachment)

    def close(self) -> None:
        """Unload the observers."""
        while self._probes:
            self._probes.popitem()[1].close()


class _Attachment:
    """Programs attached on demand, and detached at the end of a ``with`` block at the latest."""

    def __init__(self, cgroup: Cgroup, attach_type: int, prog_fds: tuple[int, ...]) -> None:
        self._make = partial(cgroup.attached, attach_type, *prog_fds)
        self._stack = ExitStack()
        self._on = False

    def ensure(self) -> None:
        """Attach, unless it is so."""
        if not self._on:
            self._stack.enter_context(self._make())
            self._on = True

    def drop(self) -> None:
        """Detach, unless it is so."""
        self._stack.close()
        self._on = False

    def __enter__(self) -> _Attachment:
        """Return self, nothing attached yet."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Detach."""
        self.drop()


def _run_one(
    program: ProgramRef, request: Request, probes: Probes, attachment: _Attachment
) -> RawOutcome:
    """Make the calls of one request and put together what was seen."""
    context = _complete(program, request)
    crafted = Crafted(program.attach_type, words_of(context))
    spent, runs = 0, max(request.repeat, 1)
    with _socket(crafted, request.sock) as sock:
        case = Case(crafted, sock, ours=request.fresh or request.sock is None)
        for _ in range(runs):
            sighting = _call(case, probes, attachment)
            spent += sighting.behind.stamp - sighting.before.stamp
    return RawOutcome(
        retval=_retval(program, sighting),
        ctx=context_bytes(crafted, sighting.behind.words, context),
        duration_ns=spent // runs,
        errno=_errno(program, crafted, sighting),
    )


def _call(case: Case, probes: Probes, attachment: _Attachment) -> Sighting:
    """Make one call with the programs attached and return what the observers saw."""
    crafted, call = case.crafted, CALLS[case.crafted.hook.call]
    if not case.ours:
        # what is arranged asks a socket with a past for its addresses, which may be the very hook
        attachment.drop()
    try:
        with call.arranged(case):
            attachment.ensure()
            probes.arm(_cookie(case.sock))
            try:
                failure = call.make(case)
                sighting = probes.read()
            finally:
                probes.disarm()
    except OSError as error:
        if isinstance(error, BpfunitError):
            raise
        raise SyscallError(f"{crafted.hook.call} {crafted.text}", error.errno or 0) from error
    if sighting is None:
        raise crafted.refuse(_why_unseen(case, failure))
    unlike = crafted.differences(sighting.before.words)
    if unlike:
        raise crafted.refuse(f"the hook sees another context: {'; '.join(unlike)}")
    return sighting


def _complete(program: ProgramRef, request: Request) -> bytes:
    """Return the context at its full size, or refuse what only a crafted request can be."""
    refuse = f"run {program.name} on the engine live"
    if request.ctx is None:
        raise NotApplicableError(f"{refuse}: a real call never comes without a context")
    if request.data is not None or request.flags:
        raise NotApplicableError(f"{refuse}: a real call has no packet data and no test-run flags")
    if any(request.ctx[SOCK_ADDR_SIZE:]):
        raise NotApplicableError(f"{refuse}: a real context has {SOCK_ADDR_SIZE} bytes")
    return request.ctx[:SOCK_ADDR_SIZE].ljust(SOCK_ADDR_SIZE, b"\0")


@contextmanager
def _socket(crafted: Crafted, given: socket.socket | None) -> Iterator[socket.socket]:
    """Give the caller's socket, or one made of the crafted family, type and protocol."""
    if given is not None:
        yield given
        return
    made_of = [crafted.number(field) for field in ("family", "type", "protocol")]
    try:
        made = socket.socket(*made_of)
    except OSError as error:
        raise crafted.refuse(
            "no socket of family {}, type {}, protocol {} can be made: {}".format(
                *made_of, os.strerror(error.errno or 0).lower()
            )
        ) from None
    with made:
        yield made


def _cookie(sock: socket.socket) -> int:
    return int(struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0])


def _why_unseen(case: Case, failure: int) -> str:
    """Say why the hook did not run on the socket, and undo a call that went through."""
    doubt = "" if case.ours else ", or the socket was made before the engine, outside of its cgroup"
    if failure and failure != errno.EINPROGRESS:
        name = errno.errorcode.get(failure, str(failure))
        return f"the call ends with {name} before it comes to the hook{doubt}"
    if case.crafted.hook.call == "connect":
        arrange.disconnect(case.sock)
    return f"the kernel runs no such hook for a socket of this family, type and protocol{doubt}"


def _retval(program: ProgramRef, sighting: Sighting) -> int:
    """Return the program's own return value, or what follows from the hook's.

    Raises:
        NotApplicableError: the program chose an error, and nothing shows what it returned besides.
    """
    if sighting.retval is not None:
        return sighting.retval
    told = sighting.behind.hook_retval
    if told and (error := (1 << 32) - told) != errno.EPERM:
        missing = "a BPF JIT" if program.interpreted else "its BTF (build with -g)"
        raise NotApplicableError(
            f"run {program.name} on the engine live: it chose the error"
            f" {errno.errorcode.get(error, error)}, and without {missing} nothing shows whether it"
            " returned 0 or 1"
        )
    return 0 if told else 1


def _errno(program: ProgramRef, crafted: Crafted, sighting: Sighting) -> int:
    """Return the error that the caller would see without our observer, 0 for none."""
    if crafted.attach_type in ALWAYS_PROCEED:
        return 0
    told = sighting.behind.hook_retval
    if told is not None:
        return (1 << 32) - told if told else 0
    # before Linux 5.18 a program grants or denies, no more; bind's other bit is no permission
    allowed = _retval(program, sighting)
    allowed = allowed & 1 if crafted.hook.call == "bind" else allowed
    return 0 if allowed else errno.EPERM
