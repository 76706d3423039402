"""How the engine live runs cgroup_sock programs: by making, binding and closing a socket.

The hook hands nothing to whoever made the call but whether it may go on. So a ``fexit`` program on
the kernel's own runner takes what the hook returns and the socket's fields, and a program of the
same type attached behind the tested one copies the socket's storage, which a socket that was denied
or closed takes with it.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from bpfunit import netns
from bpfunit._sys import bpf, sockets, uapi
from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType, MapType, ProgType
from bpfunit.engines import NotApplicableError, ProgramRef, RawOutcome, Request
from bpfunit.engines.sockets import face, like, put_back, twin
from bpfunit.engines.state import ProgramState
from bpfunit.errors import NotFoundError, SyscallError
from bpfunit.objects.maps import Map
from bpfunit.progtypes import watching
from bpfunit.rewrite import insn as asm
from bpfunit.values import kernelbtf

_CURRENT_PID_TGID, _SK_STORAGE_GET, _PROBE_READ_KERNEL = 14, 107, 113  # enum bpf_func_id
_RUNNER = "__cgroup_bpf_run_filter_sk"

# The record, in the one value of a memory-mapped array: whose call, then what was seen of it.
# Behind it come the storages, each with a word first that says whether there is one.
_RECORD = struct.Struct("=QIi4I")
_THREAD, _EXITS, _RETVAL, _FIELDS, _BEHIND = 0, 8, 12, 16, 28
_VALUES_MAX = 16384  # bytes of all the storages that a program has for its sockets
_SIZE = _RECORD.size + _VALUES_MAX

Values = Mapping[int, "bytes | None"]  # by the map's id


class Seen(NamedTuple):
    """What was seen of one call: the hook's end, device, mark and priority, the storages."""

    hook: int
    fields: tuple[int, int, int]
    values: Values


def _read(to: int, offset: int) -> list[asm.Insn]:
    """Copy a word from behind r8, a kernel pointer, into the record behind r7."""
    return [
        *(asm.mov_reg(1, 7), asm.alu_imm(asm.ADD, 1, to), asm.mov_imm(2, 4)),
        *(asm.mov_reg(3, 8), asm.alu_imm(asm.ADD, 3, offset), asm.call(_PROBE_READ_KERNEL)),
    ]


def _program(map_fd: int, body: Sequence[asm.Insn], result: int, *, with_thread: bool) -> bytes:
    """Return a program that does this for calls of the thread in the record alone."""
    head = [asm.mov_reg(6, 1), *([asm.call(_CURRENT_PID_TGID)] if with_thread else [])]
    head += [*asm.load_map_value(7, map_fd, 0), asm.load(8, 1, 7, _THREAD)]
    not_ours = asm.Insn(asm.JMP | asm.JNE | asm.SRC_REG, 0, 1, len(body))
    if not with_thread:  # 5.10 does not tell this type who asks: whoever does while we ask
        not_ours = asm.branch_imm(asm.JEQ, 1, 0, len(body))
    return asm.encode([*head, not_ours, *body, asm.mov_imm(0, result), asm.exit_()])


def _exit(map_fd: int) -> bytes:
    """Take what the runner returns, behind its two arguments, and the socket's fields."""
    offsets = (
        kernelbtf.offset("sock", "__sk_common", "skc_bound_dev_if"),
        kernelbtf.offset("sock", "sk_mark"),
        kernelbtf.offset("sock", "sk_priority"),
    )
    body = [
        *(asm.load(4, 1, 7, _EXITS), asm.alu_imm(asm.ADD, 1, 1), asm.store(4, 7, _EXITS, 1)),
        *(asm.load(8, 1, 6, 16), asm.store(4, 7, _RETVAL, 1), asm.load(8, 8, 6, 0)),
        *(one for n, offset in enumerate(offsets) for one in _read(_FIELDS + 4 * n, offset)),
    ]
    return _program(map_fd, body, 0, with_thread=True)


def _behind(storages: Sequence[Map]) -> list[asm.Insn]:
    """Copy the storages of the socket, the context (r6), into the record (r7)."""
    code = [asm.store_imm(4, 7, _BEHIND, 1)]
    at = _RECORD.size
    for one in storages:
        copy = [asm.store_imm(4, 7, at, 1)]
        done = 0
        while done < one.value_size:
            size = next(s for s in (8, 4, 2, 1) if one.value_size - done >= s)
            copy += [asm.load(size, 1, 0, done), asm.store(size, 7, at + 8 + done, 1)]
            done += size
        code += [*asm.load_map_fd(1, one.fd), asm.mov_reg(2, 6), asm.mov_imm(3, 0)]
        code += [asm.mov_imm(4, 0), asm.call(_SK_STORAGE_GET)]
        code += [asm.branch_imm(asm.JEQ, 0, 0, len(copy)), *copy]
        at += _room(one)
    return code


def _room(storage: Map) -> int:
    return 8 + -(-storage.value_size // 8) * 8


class SockCalls:
    """Calls of socket(2), bind(2) and close(2), with what observes them.

    Args:
        cgroup: the one that the process, and so its sockets, are in.
        answer: makes an answer in the layout of the module's, of an error and the fields.
    """

    def __init__(self, cgroup: Cgroup, answer: Callable[[int, Sequence[int]], bytes]) -> None:
        self._cgroup, self._answer = cgroup, answer
        self._lock = threading.RLock()  # one record for all threads
        self._map = bpf.map_create("bpfunit_seen", MapType.ARRAY, 4, _SIZE, 1, uapi.BPF_F_MMAPABLE)
        self._memory = mmap.mmap(self._map, -(-_SIZE // mmap.PAGESIZE) * mmap.PAGESIZE)

    @contextmanager
    def attached(self, program: ProgramRef) -> Iterator[Callable[[Request], RawOutcome]]:
        """Have a program ready within the block; yield what makes one call.

        It is attached for the time of each call only: what the engine itself makes, binds and
        closes around it is not to come by.

        Raises:
            NotApplicableError: nobody knows what the program was loaded for, nothing shows what the
                hook returns, or what the program keeps with its sockets cannot be seen.
        """
        refuse = f"run {program.name} on the engine live"
        if program.attach_type not in _CALLS:
            raise NotApplicableError(f"{refuse}: nobody knows what it was loaded for")
        with self._lock, ExitStack() as stack:
            try:
                runner = kernelbtf.function(_RUNNER)
                fd = watching.load("bpfunit_exit", AttachType.TRACE_FEXIT, _exit(self._map), runner)
                stack.enter_context(watching.attached(fd))
            except (NotFoundError, SyscallError) as error:
                raise NotApplicableError(
                    f"{refuse}: nothing shows what the hook returns: {error}"
                ) from error
            storages = stack.enter_context(ProgramState(program.fd)).storages
            behind = self._load_behind(refuse, program.attach_type, list(storages.values()), stack)
            call = _Call(refuse, self, self._cgroup, program, behind, storages)
            yield lambda request: self._run(call, request)

    def _load_behind(
        self, refuse: str, attach_type: int, storages: Sequence[Map], stack: ExitStack
    ) -> int:
        if sum(map(_room, storages)) > _VALUES_MAX:
            raise NotApplicableError(f"{refuse}: its sockets' storage is of more than 16 KiB")
        body = _behind(storages)
        fd, log = -1, ""
        for with_thread in (True, False):
            code = _program(self._map, body, 1, with_thread=with_thread)
            fd, log = bpf.prog_load("bpfunit_behind", ProgType.CGROUP_SOCK, attach_type, code)
            if fd >= 0:
                stack.callback(os.close, fd)
                return fd
        error = SyscallError("load an observer", -fd, log)
        raise NotApplicableError(f"{refuse}: its sockets' storage cannot be seen: {error}")

    def _run(self, call: _Call, request: Request) -> RawOutcome:
        for _ in range(max(request.repeat, 1)):
            seen = call.made(request)
        error = seen.hook
        if error not in (0, -errno.EPERM):
            name = errno.errorcode.get(-error, str(-error))
            raise NotApplicableError(
                f"{call.refuse}: the program set the errno {name}, and nothing shows what it"
                " returned"
            )
        retval = 0 if error else 1
        if call.program.attach_type == AttachType.CGROUP_INET_SOCK_RELEASE:
            error = 0  # close(2) goes on
        return RawOutcome(retval, b"", None, self._answer(error, seen.fields), -error)

    def watch(self, refuse: str, storages: Mapping[int, Map], call: Callable[[], int]) -> Seen:
        """Make a call of this thread, which gives its errno, and return what was seen of it.

        Raises:
            NotApplicableError: the hook did not come by, or more than once.
        """
        me = os.getpid() << 32 | threading.get_native_id()
        empty = bytes(_SIZE)
        self._memory[:_SIZE] = _RECORD.pack(me, 0, 0, 0, 0, 0, 0).ljust(_SIZE, b"\0")
        try:
            failure = call()
            raw = self._memory[:_SIZE]
        finally:
            self._memory[:_SIZE] = empty
        _, exits, hook, device, mark, priority, behind = _RECORD.unpack_from(raw)
        if not exits or not behind:
            name = errno.errorcode.get(failure, str(failure)) if failure else "success"
            raise NotApplicableError(f"{refuse}: the call ends with {name} and asks no program")
        if exits > 1:
            raise NotApplicableError(f"{refuse}: the kernel asked {exits} times about one call")
        values: dict[int, bytes | None] = {}
        at = _RECORD.size
        for map_id, one in storages.items():
            there = raw[at] != 0
            values[map_id] = raw[at + 8 :][: one.value_size] if there else None
            at += _room(one)
        return Seen(hook, (device, mark, priority), values)

    def close(self) -> None:
        """Give back the record."""
        self._memory.close()
        os.close(self._map)


class _Call:
    """The call that brings the kernel to a program, made as often as wanted."""

    def __init__(
        self,
        refuse: str,
        calls: SockCalls,
        cgroup: Cgroup,
        program: ProgramRef,
        behind: int,
        storages: Mapping[int, Map],
    ) -> None:
        self.refuse, self.program = refuse, program
        self._calls, self._cgroup = calls, cgroup
        self._behind, self._storages = behind, storages

    def made(self, request: Request) -> Seen:
        """Make the call; the request's socket is the one it was made on then, or one like it."""
        if request.ctx is not None or request.flags or request.sock is None:
            raise NotApplicableError(f"{self.refuse}: a real call is about a socket")
        try:
            return _CALLS[self.program.attach_type](self, request.sock, request.fresh)
        except OSError as error:
            if isinstance(error, SyscallError):
                raise
            raise NotApplicableError(f"{self.refuse}: {error}") from error

    def _watch(self, call: Callable[[], int]) -> Seen:
        with self._cgroup.attached(self.program.attach_type, self.program.fd, self._behind):
            return self._calls.watch(self.refuse, self._storages, call)

    def _only_once(self, what: str) -> NotApplicableError:
        return NotApplicableError(
            f"{self.refuse}: {what} comes once in the life of a socket; leave out sock=, and one is"
            " made"
        )

    def create(self, sock: socket.socket, fresh: bool) -> Seen:
        """socket(2)."""
        if not fresh:
            raise self._only_once("socket(2)")
        protocol = sockets.protocol(sock)
        with ExitStack() as stack:
            made: list[socket.socket] = []

            def call() -> int:
                try:
                    made.append(
                        stack.enter_context(socket.socket(sock.family, sock.type, protocol))
                    )
                except OSError as error:
                    return error.errno or 0
                return 0

            with netns.of_socket(sock):
                seen = self._watch(call)
            new = made[0] if made else stack.enter_context(like(sock))
            os.dup2(new.fileno(), sock.fileno(), inheritable=False)
            if not made:
                self._remember(sock, seen.values)
        return seen

    def bind(self, sock: socket.socket, fresh: bool) -> Seen:
        """bind(2), to the address that the socket has."""
        if not fresh:
            raise self._only_once("bind(2)")
        address = _address(sock)
        if address is None:
            raise NotApplicableError(f"{self.refuse}: the socket is not bound")
        self._unbind(sock)
        fd = sock.fileno()
        seen = self._watch(lambda: sockets.bind(fd, address))
        if seen.hook:
            # before Linux 5.17 a bind that was denied keeps its port, and there is no second one
            # (91a760b26926 "net: bpf: Handle return value of ..._POST_BIND()")
            self._unbind(sock)
            if failure := sockets.bind(fd, address):
                raise OSError(failure, os.strerror(failure))
            self._remember(sock, seen.values)
        return seen

    def _unbind(self, sock: socket.socket) -> None:
        """Let a socket be one with the same options that is bound to nothing."""
        with _unbound(sock) as new:
            os.dup2(new.fileno(), sock.fileno(), inheritable=False)

    def release(self, sock: socket.socket, fresh: bool) -> Seen:
        """close(2), of the socket itself where it was made for the run, else of one like it."""
        if not fresh:
            return self._release_like(sock)
        address = _address(sock)
        with _unbound(sock) as new:

            def call() -> int:
                os.dup2(new.fileno(), sock.fileno(), inheritable=False)  # closes what it was
                return 0

            seen = self._watch(call)
        if address is not None and (failure := sockets.bind(sock.fileno(), address)):
            raise OSError(failure, os.strerror(failure))
        self._remember(sock, seen.values)
        return seen

    def _release_like(self, sock: socket.socket) -> Seen:
        second = twin(sock, face(sock))
        if second is None:
            raise NotApplicableError(
                f"{self.refuse}: no second socket is bound or connected like this one, and it is"
                " not to be closed; leave out sock=, and one is made"
            )
        self._remember(second, {n: m.lookup(sock.fileno()) for n, m in self._storages.items()})

        def call() -> int:
            second.close()
            return 0

        seen = self._watch(call)
        self._remember(sock, seen.values)
        return seen

    def _remember(self, sock: socket.socket, values: Values) -> None:
        """Let a socket's storages be these."""
        for map_id, value in values.items():
            one, fd = self._storages[map_id], sock.fileno()
            if value is not None:
                one.update_raw(fd.to_bytes(4, sys.byteorder), value)
            elif one.lookup(fd) is not None:
                del one[fd]


_CALLS: Mapping[int, Callable[[_Call, socket.socket, bool], Seen]] = {
    AttachType.CGROUP_INET_SOCK_CREATE: _Call.create,
    AttachType.CGROUP_INET_SOCK_RELEASE: _Call.release,
    AttachType.CGROUP_INET4_POST_BIND: _Call.bind,
    AttachType.CGROUP_INET6_POST_BIND: _Call.bind,
}


def _address(sock: socket.socket) -> bytes | None:
    """Return what a socket is bound to, None for nothing; a port is what makes the difference."""
    failure, raw = sockets.name(sock.fileno(), "getsockname")
    return raw if not failure and any(raw[2:4]) and sock.type != socket.SOCK_RAW else None


@contextmanager
def _unbound(sock: socket.socket) -> Iterator[socket.socket]:
    """Give a socket with the same options that is bound to nothing."""
    with like(sock) as new:
        put_back(new, face(sock))
        yield new
