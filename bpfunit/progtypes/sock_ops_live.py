"""How the engine live runs sock_ops programs: in a cgroup, on the way of a real connection.

The kernel calls sock_ops many times in the life of one connection, and a run is of one op. So a
dispatcher is attached that enters the tested program, by a tail call, at the one op of the one
connection that the run is about. It copies the context before, an observer attached behind it does
so after, and a ``fexit`` program on the kernel's own runner takes what the hook hands on.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bpfunit import netns
from bpfunit._sys import bpf, uapi
from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType, Cmd, MapType, ProgType
from bpfunit.engines import NotApplicableError, ProgramRef, RawOutcome, Request
from bpfunit.errors import NotFoundError, SyscallError
from bpfunit.progtypes import watching
from bpfunit.progtypes.watching import Code
from bpfunit.rewrite import insn as asm
from bpfunit.values import kernelbtf

# struct bpf_sock_ops of include/uapi/linux/bpf.h
_OP, _ARGS, _FAMILY, _REMOTE_PORT, _LOCAL_PORT = 0, 4, 20, 64, 68
_IS_FULLSOCK, _CB_FLAGS, _STATE = 72, 84, 88
_WORDS = (_OP, *range(_ARGS, _ARGS + 16, 4), _FAMILY, _IS_FULLSOCK, _CB_FLAGS, _STATE)
_SET_FLAGS, _KTIME_GET_NS = 59, 5  # enum bpf_func_id
_ACTIVE, _PASSIVE = 4, 5  # BPF_SOCK_OPS_*_ESTABLISHED_CB
_ESTABLISHED = 1  # BPF_TCP_ESTABLISHED
_SECONDS = 5  # for loopback, which answers at once

# The record, in the one value of a memory-mapped array: what is wanted, then what was seen.
_WANTED = struct.Struct("=10I")
_W_OP, _W_LOCAL, _W_REMOTE, _W_CHECK, _W_ARG0, _W_ARG1 = 0, 4, 8, 12, 16, 20
_W_SETUP, _W_SET, _W_FLAGS = 24, 28, 32
_SEEN, _BEHIND_SEEN, _EXITS, _RETVAL = 40, 44, 48, 52
_STAMP_BEFORE, _STAMP_BEHIND = 56, 64
_BEFORE = 72
_BEHIND = _BEFORE + 4 * len(_WORDS)
_SIZE = _BEHIND + 4 * len(_WORDS)

_CLIENTS = ("timeout_init", "rwnd_init", "tcp_connect", "needs_ecn", "active_established")
# what brings an established socket into another state
_LEAVES = {"close": "reset", "fin_wait1": "shut down", "close_wait": "be shut down"}


@dataclass(frozen=True)
class Crafted:
    """What the run is made of.

    ``flags`` are the callback flags wanted, None for those that the socket has. ``states`` are the
    old and the new state of "state". ``extra`` says what no real connection can be told, "" for
    nothing.
    """

    op: str
    number: int
    states: tuple[str, str]
    args: tuple[int, ...]
    flags: int | None
    extra: str


@dataclass(frozen=True)
class Seen:
    """What the tested program left: its answer, and the callbacks that are on."""

    error: int
    replylong: tuple[int, ...]
    cb_flags: int


def _copied(to: int) -> list[asm.Insn]:
    """Copy the words of the context, behind r6, into the record behind r7."""
    pairs = ((asm.load(4, 1, 6, o), asm.store(4, 7, to + 4 * n, 1)) for n, o in enumerate(_WORDS))
    return [one for pair in pairs for one in pair]


def _ours(code: Code) -> Code:
    """Go on for the connection that is wanted alone."""
    for field, wanted in ((_LOCAL_PORT, _W_LOCAL), (_REMOTE_PORT, _W_REMOTE)):
        code.add(asm.load(4, 1, 6, field), asm.load(4, 2, 7, wanted)).unless(asm.JNE, 1, 2)
    return code


def _dispatcher(map_fd: int, array_fd: int) -> bytes:
    code = _ours(Code().add(asm.load(4, 1, 7, _W_OP)).unless(asm.JEQ, 1, None))
    code.add(asm.load(4, 8, 6, _OP))
    # callbacks that are wanted are turned on as soon as the connection stands
    turned_on = [asm.mov_reg(1, 6), asm.load(4, 2, 7, _W_SETUP), asm.call(_SET_FLAGS)]
    for established in (_ACTIVE, _PASSIVE):
        code.add(
            asm.branch_imm(asm.JNE, 8, established, 2 + len(turned_on)),
            asm.load(4, 1, 7, _W_SETUP),
            asm.branch_imm(asm.JEQ, 1, 0, len(turned_on)),
            *turned_on,
        )
    code.add(asm.load(4, 1, 7, _W_OP)).unless(asm.JNE, 8, 1)
    # the arguments, where they are part of what is wanted
    code.add(asm.load(4, 3, 7, _W_CHECK), asm.branch_imm(asm.JEQ, 3, 0, 6))
    for field, wanted in ((_ARGS, _W_ARG0), (_ARGS + 4, _W_ARG1)):
        code.add(asm.load(4, 1, 6, field), asm.load(4, 2, 7, wanted)).unless(asm.JNE, 1, 2)
    code.add(asm.load(4, 1, 7, _SEEN)).unless(asm.JNE, 1, None)
    code.add(asm.store_imm(4, 7, _SEEN, 1))
    set_now = [asm.mov_reg(1, 6), asm.load(4, 2, 7, _W_FLAGS), asm.call(_SET_FLAGS)]
    code.add(asm.load(4, 1, 7, _W_SET), asm.branch_imm(asm.JEQ, 1, 0, len(set_now)), *set_now)
    code.add(*_copied(_BEFORE), asm.call(_KTIME_GET_NS), asm.store(8, 7, _STAMP_BEFORE, 0))
    code.add(asm.mov_reg(1, 6), *asm.load_map_fd(2, array_fd), asm.mov_imm(3, 0))
    code.add(asm.call(asm.HELPER_TAIL_CALL))
    return code.done(map_fd)


def _behind(map_fd: int) -> bytes:
    code = _ours(Code().add(asm.load(4, 1, 7, _SEEN)).unless(asm.JEQ, 1, None))
    code.add(asm.load(4, 1, 7, _BEHIND_SEEN)).unless(asm.JNE, 1, None)
    code.add(asm.call(_KTIME_GET_NS), asm.store(8, 7, _STAMP_BEHIND, 0), *_copied(_BEHIND))
    return code.add(asm.store_imm(4, 7, _BEHIND_SEEN, 1)).done(map_fd)


def _exit(map_fd: int) -> bytes:
    """Take the runner's return value, behind its three arguments."""
    code = Code().add(asm.load(4, 1, 7, _BEHIND_SEEN)).unless(asm.JEQ, 1, None)
    code.add(asm.load(4, 1, 7, _EXITS)).unless(asm.JNE, 1, None)
    code.add(asm.store_imm(4, 7, _EXITS, 1))
    code.add(asm.load(8, 1, 6, 24), asm.store(4, 7, _RETVAL, 1))
    return code.done(map_fd, 0)


class SockOpsCalls:
    """The calls in which a connection comes by sock_ops, with what observes them.

    Args:
        cgroup: the one that the process is in.
        crafted: reads what a request is made of.
        answer: makes an answer in the layout of the module's.
    """

    def __init__(
        self,
        cgroup: Cgroup,
        crafted: Callable[[bytes], Crafted],
        answer: Callable[[Seen], bytes],
    ) -> None:
        self._cgroup, self._crafted, self._answer = cgroup, crafted, answer
        self._lock = threading.RLock()  # one record for all threads
        self._fds: list[int] = []
        self._map = self._own(
            bpf.map_create("bpfunit_seen", MapType.ARRAY, 4, _SIZE, 1, uapi.BPF_F_MMAPABLE)
        )
        self._memory = mmap.mmap(self._map, mmap.PAGESIZE)
        self._array = self._own(bpf.map_create("bpfunit_tested", MapType.PROG_ARRAY, 4, 4, 1))
        try:
            self._programs = tuple(
                self._loaded(name, code)
                for name, code in (
                    ("dispatcher", _dispatcher(self._map, self._array)),
                    ("behind", _behind(self._map)),
                )
            )
        except BaseException:
            self.close()
            raise

    def _own(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _loaded(self, name: str, code: bytes) -> int:
        fd, log = bpf.prog_load(
            f"bpfunit_{name}"[:15], ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS, code
        )
        if fd < 0:
            raise SyscallError(f"load the {name} of sock_ops", -fd, log)
        return self._own(fd)

    @contextmanager
    def attached(self, program: ProgramRef) -> Iterator[Callable[[Request], RawOutcome]]:
        """Have a program where the dispatcher enters it; yield what makes one connection.

        Raises:
            NotApplicableError: the kernel has no BTF, so that nothing shows what the hook returns.
            SyscallError: the kernel does not let the program be entered by a tail call.
        """
        refuse = f"run {program.name} on the engine live"
        with self._lock, ExitStack() as stack:
            try:
                runner = kernelbtf.function("__cgroup_bpf_run_filter_sock_ops")
                fd = watching.load("bpfunit_exit", AttachType.TRACE_FEXIT, _exit(self._map), runner)
                stack.enter_context(watching.attached(fd))
            except (NotFoundError, SyscallError) as error:
                raise NotApplicableError(
                    f"{refuse}: nothing shows what the hook returns: {error}"
                ) from error
            key, value = ctypes.c_uint32(0), ctypes.c_uint32(program.fd)
            slot = uapi.MapElemAttr(
                map_fd=self._array, key=ctypes.addressof(key), value=ctypes.addressof(value)
            )
            bpf.call_checked(f"{refuse}: enter it by a tail call", Cmd.MAP_UPDATE_ELEM, slot)
            stack.callback(bpf.call, Cmd.MAP_DELETE_ELEM, slot)
            stack.enter_context(self._cgroup.attached(AttachType.CGROUP_SOCK_OPS, *self._programs))
            yield lambda request: self._run(refuse, request)

    def _run(self, refuse: str, request: Request) -> RawOutcome:
        if request.data is None or request.sock is None or request.flags or request.ctx:
            raise NotApplicableError(f"{refuse}: a real op is of a socket, and crafted as one")
        crafted = self._crafted(request.data)
        if crafted.extra:
            raise NotApplicableError(f"{refuse}: {crafted.extra}")
        spent, runs = 0, max(request.repeat, 1)
        for _ in range(runs):
            with netns.of_socket(request.sock):
                self._connection(refuse, crafted, request)
            seen, ns = self._seen(refuse, crafted)
            spent += ns
        answer = self._answer(seen)
        return RawOutcome(0 if seen.error else 1, b"", spent // runs, answer, seen.error)

    def _connection(self, refuse: str, crafted: Crafted, request: Request) -> None:
        """Make the connection whose op is wanted; the request's socket is its one end then."""
        assert request.sock is not None
        story = _Story(refuse, crafted, request)
        try:
            with story.ends():
                self._arm(crafted, *story.ports)
                try:
                    story.happen()
                except BaseException:
                    self._memory[:4] = bytes(4)  # look away: the ends go, with ops of their own
                    raise
        except OSError as error:
            if isinstance(error, SyscallError):
                raise
            raise NotApplicableError(f"{refuse}: {error}") from error

    def _arm(self, crafted: Crafted, local: int, remote: int) -> None:
        later = crafted.op == "state"
        flags = crafted.flags or 0
        wanted = (
            *(crafted.number, local, socket.htonl(remote)),
            *(later, *(crafted.args[:2] if later else (0, 0))),
            *(flags if later else 0, not later and crafted.flags is not None, flags, 0),
        )
        self._memory[:_SIZE] = _WANTED.pack(*wanted).ljust(_SIZE, b"\0")

    def _seen(self, refuse: str, crafted: Crafted) -> tuple[Seen, int]:
        raw = self._memory[:_SIZE]
        self._memory[:4] = bytes(4)  # look away
        seen, behind, exits, retval = struct.unpack_from("=3Ii", raw, _SEEN)
        if (seen, behind, exits) != (1, 1, 1):
            raise NotApplicableError(f"{refuse}: no op {crafted.op} comes to pass")
        words = struct.Struct(f"={len(_WORDS)}I")
        before = dict(zip(_WORDS, words.unpack_from(raw, _BEFORE), strict=True))
        after = dict(zip(_WORDS, words.unpack_from(raw, _BEHIND), strict=True))
        if crafted.flags is not None and before[_CB_FLAGS] != crafted.flags:
            raise NotApplicableError(
                f"{refuse}: the kernel has the callback flags {before[_CB_FLAGS]:#x} there, crafted"
                f" were {crafted.flags:#x}"
            )
        reply = tuple(after[at] for at in range(_ARGS, _ARGS + 16, 4))
        stamps = struct.unpack_from("=2Q", raw, _STAMP_BEFORE)
        return Seen(-retval, reply, after[_CB_FLAGS]), stamps[1] - stamps[0]

    def close(self) -> None:
        """Unload the observers."""
        self._memory.close()
        while self._fds:
            os.close(self._fds.pop())


class _Story:
    """One connection, or one listener, made for an op.

    ``ports`` are the ports of the end that the op is called on: its own, and the other one's.
    """

    def __init__(self, refuse: str, crafted: Crafted, request: Request) -> None:
        assert request.sock is not None
        self._refuse, self._crafted, self._sock = refuse, crafted, request.sock
        self._family = request.sock.family
        self._stack = ExitStack()
        self.ports = (0, 0)
        if not request.fresh:
            raise NotApplicableError(
                f"{refuse}: an op comes once in the life of a connection; leave out sock=, and one"
                " is made"
            )

    @contextmanager
    def ends(self) -> Iterator[None]:
        """Have the sockets within the block, before anything happens."""
        with self._stack:
            self._listener = self._new()
            self._client = self._new()
            own, far = self._listener.getsockname()[1], self._client.getsockname()[1]
            of_client = self._crafted.op in (*_CLIENTS, "state")
            self.ports = (far, own) if of_client else (own, far)
            if self._crafted.op == "tcp_listen":
                self.ports = (own, 0)
            yield

    def _new(self) -> socket.socket:
        made = self._stack.enter_context(socket.socket(self._family))
        made.settimeout(_SECONDS)
        made.bind(("::1" if self._family == socket.AF_INET6 else "127.0.0.1", 0))
        return made

    def happen(self) -> None:
        """Do the ordinary thing, and put the socket of the op in the place of the request's."""
        op = self._crafted.op
        self._listener.listen()
        if op == "tcp_listen":
            return self._be(self._listener)
        self._client.connect(self._listener.getsockname())
        server = self._stack.enter_context(self._listener.accept()[0])
        if op in _CLIENTS:
            return self._be(self._client)
        if op == "passive_established":
            return self._be(server)
        return self._leave(server)

    def _leave(self, server: socket.socket) -> None:
        """Bring the client from established into another state."""
        old, new = self._crafted.states
        if old != "established" or new not in _LEAVES:
            raise NotApplicableError(
                f"{self._refuse}: no call of ours brings a socket from {old} to {new}"
            )
        if _LEAVES[new] == "shut down":
            self._client.shutdown(socket.SHUT_WR)
        elif _LEAVES[new] == "be shut down":
            server.shutdown(socket.SHUT_WR)
        else:  # a reset: what lingers for no time is not waited for
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            server.close()
        deadline = time.monotonic() + _SECONDS
        while self._state() == _ESTABLISHED and time.monotonic() < deadline:
            time.sleep(0.001)
        self._be(self._client)

    def _state(self) -> int:
        return int(self._client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])

    def _be(self, sock: socket.socket) -> None:
        """Let the request's socket be this one from now on: its descriptor is."""
        sock.settimeout(self._sock.gettimeout())
        os.dup2(sock.fileno(), self._sock.fileno(), inheritable=False)
