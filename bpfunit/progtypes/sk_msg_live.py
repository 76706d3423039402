"""How the engine live runs sk_msg programs: on a sockmap of its own, on the way of a send.

The socket is entered, the message sent, and what comes out is read where it arrives: at the other
end, or at the socket that it is redirected to. A ``fentry`` and a ``fexit`` program on the tested
one take what it saw, what it returned, and what it asked of the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bpfunit._sys import bpf, sockets, sockmap, uapi
from bpfunit._sys.uapi import AttachType, Cmd, MapType
from bpfunit.engines import NotApplicableError, ProgramRef, RawOutcome, Request
from bpfunit.errors import NotFoundError, SyscallError
from bpfunit.progtypes import watching
from bpfunit.progtypes.watching import our_tcp_sockets
from bpfunit.rewrite import insn as asm
from bpfunit.values import kernelbtf

_PASS = 1  # SK_PASS
_INGRESS = 1  # BPF_F_INGRESS in sk_msg.flags
_SECONDS = 5  # for loopback, which answers at once
_BYTES_MAX = 65536
_KTIME_GET_NS, _PROBE_READ_KERNEL = 5, 113  # enum bpf_func_id

# The record, in the one value of a memory-mapped array.
_RECORD = struct.Struct("=4I2Q6I4Q2Q2Q")
_ARMED, _SEEN, _EXITS, _RETVAL = 0, 4, 8, 12
_DATA_IN, _DATA_END_IN = 16, 24
_SIZE_IN, _APPLY, _CORK, _FLAGS, _SIZE_OUT, _COPIED = 32, 36, 40, 44, 48, 52
_REDIRECTED, _COOKIE, _POINTER, _INODE = 56, 64, 72, 80
_DATA_OUT, _DATA_END_OUT = 88, 96
_STAMP_IN, _STAMP_OUT = 104, 112
_CONTENT = 120
_VALUE_SIZE = _CONTENT + _BYTES_MAX


class _Sighting(NamedTuple):
    """One passage of a message; the order is the record's."""

    armed: int
    seen: int
    exits: int
    retval: int
    data_in: int
    data_end_in: int
    size_in: int
    apply_bytes: int
    cork_bytes: int
    flags: int
    size_out: int
    copied: int
    redirected: int
    cookie: int
    pointer: int
    inode: int
    data_out: int
    data_end_out: int
    stamp_in: int
    stamp_out: int


@dataclass(frozen=True)
class Crafted:
    """What the run is made of."""

    message: bytes
    fragments: tuple[int, ...]
    shared: bool


def _read(to: int, size: int, offset: int) -> list[asm.Insn]:
    """Copy from behind r8, a kernel pointer, into the record behind r7."""
    return [
        *(asm.mov_reg(1, 7), asm.alu_imm(asm.ADD, 1, to), asm.mov_imm(2, size)),
        *(asm.mov_reg(3, 8), asm.alu_imm(asm.ADD, 3, offset), asm.call(_PROBE_READ_KERNEL)),
    ]


def _stamp(to: int) -> list[asm.Insn]:
    return [asm.call(_KTIME_GET_NS), asm.store(8, 7, to, 0)]


def _count(at: int) -> list[asm.Insn]:
    return [asm.load(4, 1, 7, at), asm.alu_imm(asm.ADD, 1, 1), asm.store(4, 7, at, 1)]


def _program(map_fd: int, body: list[asm.Insn]) -> bytes:
    head = [asm.mov_reg(6, 1), *asm.load_map_value(7, map_fd, 0), asm.load(4, 1, 7, _ARMED)]
    head += [asm.branch_imm(asm.JEQ, 1, 0, len(body)), *body]
    return asm.encode([*head, asm.mov_imm(0, 0), asm.exit_()])


def _entry(map_fd: int) -> bytes:
    member = partial(kernelbtf.offset, "sk_msg")
    body = [
        asm.load(8, 8, 6, 0),  # the message, the program's first argument
        *_count(_SEEN),
        *_read(_DATA_IN, 8, member("data")),
        *_read(_DATA_END_IN, 8, member("data_end")),
        *_read(_SIZE_IN, 4, member("sg", "size")),
        *_stamp(_STAMP_IN),
    ]
    return _program(map_fd, body)


def _exit(map_fd: int, retval: int) -> bytes:
    member = partial(kernelbtf.offset, "sk_msg")
    follow = [asm.load(8, 8, 7, _POINTER)]
    body = [
        *_stamp(_STAMP_OUT),
        asm.load(8, 8, 6, 0),
        *_count(_EXITS),
        asm.load(8, 1, 6, retval),
        asm.store(4, 7, _RETVAL, 1),
        *_read(_APPLY, 4, member("apply_bytes")),
        *_read(_CORK, 4, member("cork_bytes")),
        *_read(_FLAGS, 4, member("flags")),
        *_read(_SIZE_OUT, 4, member("sg", "size")),
        *_read(_REDIRECTED, 8, member("sk_redir")),
        *_read(_DATA_OUT, 8, member("data")),
        *_read(_DATA_END_OUT, 8, member("data_end")),
        # the bytes that lie in the message's first piece, for a message that goes nowhere
        asm.load(8, 2, 7, _DATA_END_OUT),
        asm.load(8, 3, 7, _DATA_OUT),
        asm.alu_reg(asm.SUB, 2, 3),
        asm.branch_imm(asm.JGT, 2, _BYTES_MAX, 4),
        asm.store(4, 7, _COPIED, 2),
        *(asm.mov_reg(1, 7), asm.alu_imm(asm.ADD, 1, _CONTENT), asm.call(_PROBE_READ_KERNEL)),
        # of nobody: what cannot be read reads as zeroes
        asm.load(8, 8, 7, _REDIRECTED),
        *_read(_COOKIE, 8, kernelbtf.offset("sock", "__sk_common", "skc_cookie")),
        *_read(_POINTER, 8, kernelbtf.offset("sock", "sk_socket")),
        *(*follow, *_read(_POINTER, 8, kernelbtf.offset("socket", "file"))),
        *(*follow, *_read(_POINTER, 8, kernelbtf.offset("file", "f_inode"))),
        *(*follow, *_read(_INODE, 8, kernelbtf.offset("inode", "i_ino"))),
    ]
    return _program(map_fd, body)


class SkMsgCalls:
    """The sends that bring a system to run sk_msg programs, with what observes them.

    Args:
        crafted: reads what a request is made of.
        answer: makes an answer in the layout of the module's, of a sighting and what arrived.
    """

    def __init__(
        self,
        crafted: Callable[[bytes], Crafted],
        answer: Callable[..., bytes],
    ) -> None:
        self._crafted, self._answer = crafted, answer
        self._lock = threading.RLock()  # one record for all threads
        self._map = bpf.map_create(
            "bpfunit_seen", MapType.ARRAY, 4, _VALUE_SIZE, 1, uapi.BPF_F_MMAPABLE
        )
        self._memory = mmap.mmap(self._map, -(-_VALUE_SIZE // mmap.PAGESIZE) * mmap.PAGESIZE)

    @contextmanager
    def attached(self, program: ProgramRef) -> Iterator[Callable[[Request], RawOutcome]]:
        """Keep a program on a sockmap within the block; yield what sends one message.

        Raises:
            NotApplicableError: the program or the kernel has no BTF, so that nothing can watch it.
            SyscallError: the kernel refused to attach it.
        """
        with self._lock, ExitStack() as stack:
            self._watch(program, stack)
            target = bpf.map_create("bpfunit_socks", MapType.SOCKMAP, 4, 4, 1)
            stack.callback(os.close, target)
            stack.enter_context(sockmap.attached(target, program.fd, AttachType.SK_MSG_VERDICT))
            yield lambda request: self._run(program, target, request)

    def _watch(self, program: ProgramRef, stack: ExitStack) -> None:
        refuse = f"run {program.name} on the engine live: nothing can watch it"
        function = watching.main_function(program.fd)
        if not function:
            raise NotApplicableError(f"{refuse}, for it has no BTF; build it with -g")
        try:
            entry = _entry(self._map)
            fd = watching.load(
                "bpfunit_entry", AttachType.TRACE_FENTRY, entry, function, program.fd
            )
            stack.enter_context(watching.attached(fd))
            # as for socket addresses: the return value is behind five untyped arguments, or one
            for retval in (40, 8):
                code = _exit(self._map, retval)
                fd = watching.load(
                    "bpfunit_exit", AttachType.TRACE_FEXIT, code, function, program.fd
                )
                if fd >= 0:
                    break
            stack.enter_context(watching.attached(fd))
        except (NotFoundError, SyscallError) as error:
            raise NotApplicableError(f"{refuse}: {error}") from error

    def _run(self, program: ProgramRef, target: int, request: Request) -> RawOutcome:
        refuse = f"run {program.name} on the engine live"
        if request.data is None or request.sock is None or request.flags or request.ctx:
            raise NotApplicableError(f"{refuse}: a real send is of a socket, and has no context")
        crafted = self._crafted(request.data)
        if len(crafted.fragments) > 1:
            raise NotApplicableError(
                f"{refuse}: the kernel copies what is sent into as few pieces as it can,"
                f" fragments={list(crafted.fragments)} is up to it"
            )
        if crafted.shared:
            raise NotApplicableError(f"{refuse}: it sends bytes, no pages of somebody else's")
        spent, runs = 0, max(request.repeat, 1)
        with ExitStack() as stack:
            ours = stack.enter_context(our_tcp_sockets())
            for _ in range(runs):
                sighting, data = _Passage(self, refuse, target, request.sock, crafted, ours).made()
                spent += sighting.stamp_out - sighting.stamp_in
        retval = sighting.retval
        error = errno.EACCES if retval != _PASS else 0
        answer = self._answer(
            error=error,
            redirected=not error and bool(sighting.redirected),
            apply_bytes=sighting.apply_bytes,
            cork_bytes=sighting.cork_bytes,
            ingress=sighting.flags & _INGRESS,
            target=(sighting.cookie, sighting.inode),
            data=data,
        )
        if request.data_size_out and len(answer) > request.data_size_out:
            raise SyscallError(refuse, errno.ENOSPC, "the message has grown: say headroom=")
        return RawOutcome(retval, b"", spent // runs, answer, error)

    def arm(self, *, on: bool) -> None:
        """Forget what was seen, and watch or look away."""
        self._memory[: _RECORD.size] = struct.pack("=I", on).ljust(_RECORD.size, b"\0")

    def sighting(self) -> _Sighting:
        """Return what was seen since."""
        return _Sighting(*_RECORD.unpack(self._memory[: _RECORD.size]))

    def content(self, size: int) -> bytes:
        """Return the bytes of the message's first piece, as the program left them."""
        return self._memory[_CONTENT : _CONTENT + size]

    def close(self) -> None:
        """Give the record back."""
        self._memory.close()
        os.close(self._map)


class _Passage:
    """One message on its way: sent, seen, and read where it arrives."""

    def __init__(
        self,
        calls: SkMsgCalls,
        refuse: str,
        target: int,
        sock: socket.socket,
        crafted: Crafted,
        ours: list[socket.socket],
    ) -> None:
        self._calls, self._refuse, self._target = calls, refuse, target
        self._sock, self._crafted, self._ours = sock, crafted, ours

    def made(self) -> tuple[_Sighting, bytes]:
        """Send, and return what was seen and what came out."""
        if (peer := _peer(self._sock, self._ours)) is None:
            raise NotApplicableError(
                f"{self._refuse}: nobody can read what arrives; the other end of the socket has to"
                " be one of this process"
            )
        if _waiting(peer):
            raise NotApplicableError(
                f"{self._refuse}: the other end has bytes that nobody has read"
            )
        with self._entered():
            self._calls.arm(on=True)
            try:
                sent, failure = self._send()
                seen = self._calls.sighting()
            finally:
                self._calls.arm(on=False)
            self._check(seen, sent, failure, peer)
            return seen, self._came_out(seen, peer)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        key, value = ctypes.c_uint32(0), ctypes.c_uint32(self._sock.fileno())
        attr = uapi.MapElemAttr(
            map_fd=self._target, key=ctypes.addressof(key), value=ctypes.addressof(value)
        )
        if (result := bpf.call(Cmd.MAP_UPDATE_ELEM, attr)) < 0:
            name = errno.errorcode.get(-result, str(-result))
            raise NotApplicableError(
                f"{self._refuse}: the kernel lets the socket into no sockmap ({name}); it takes"
                " established ones"
            )
        try:
            yield
        finally:
            bpf.call(Cmd.MAP_DELETE_ELEM, attr)

    def _send(self) -> tuple[int, int]:
        """Send the message; return how much of it the kernel took, and the errno."""
        try:
            return self._sock.send(
                self._crafted.message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            ), 0
        except OSError as error:
            return 0, error.errno or 0

    def _check(self, seen: _Sighting, sent: int, failure: int, peer: socket.socket) -> None:
        name = errno.errorcode.get(failure, str(failure))
        if not seen.seen:
            _drain(peer)
            raise NotApplicableError(
                f"{self._refuse}: the send ends with {name} and asks no program"
            )
        wanted = len(self._crafted.message)
        visible = seen.data_end_in - seen.data_in
        said = ""
        if (seen.seen, seen.exits) != (1, 1):
            said = f"the kernel asked it {seen.seen} times about one message"
        elif (visible, seen.size_in) != (wanted, wanted):
            said = f"it sees {visible} bytes of a message of {seen.size_in}, crafted were {wanted}"
        elif seen.cork_bytes > seen.size_out:
            said = "the kernel holds the message back until there is more (bpf_msg_cork_bytes)"
        elif (seen.retval != _PASS) != (failure == errno.EACCES):
            said = f"it returned {seen.retval}, and the send ends with {name if failure else 0}"
        elif not failure and sent != wanted:
            said = f"the kernel took {sent} of {wanted} bytes"
        if said:
            _drain(peer)
            raise NotApplicableError(f"{self._refuse}: {said}")

    def _came_out(self, seen: _Sighting, peer: socket.socket) -> bytes:
        if seen.retval != _PASS:
            if seen.copied != seen.size_out:
                raise NotApplicableError(
                    f"{self._refuse}: it drops a message that it does not see whole: nobody gets it"
                )
            return self._calls.content(seen.size_out)
        receiver: socket.socket | None = peer
        if seen.redirected:
            receiver = next((s for s in self._ours if _inode(s) == seen.inode), None)
            if receiver is not None and not seen.flags & _INGRESS:
                receiver = _peer(receiver, self._ours)
        if receiver is None:
            raise NotApplicableError(
                f"{self._refuse}: it redirects to a socket of another process, where nobody reads"
            )
        got = _received(receiver, seen.size_out)
        if len(got) != seen.size_out:
            raise NotApplicableError(
                f"{self._refuse}: {len(got)} of {seen.size_out} bytes arrive within {_SECONDS} s"
            )
        return got


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def _names(sock: socket.socket) -> tuple[bytes, bytes] | None:
    """Return the socket's ends, IPv4 ones alike whatever the family; None if it has not both."""
    found = []
    for call in ("getsockname", "getpeername"):
        failure, raw = sockets.name(sock.fileno(), call)
        if failure:
            return None
        port, address = raw[2:4], raw[4:8] if sock.family == socket.AF_INET else raw[8:24]
        found.append(port + address.removeprefix(bytes(10) + b"\xff\xff"))
    return found[0], found[1]


def _peer(sock: socket.socket, among: list[socket.socket]) -> socket.socket | None:
    """Return the other end of a connection within this process."""
    ends = _names(sock)
    if ends is None:
        return None
    return next((one for one in among if _names(one) == ends[::-1]), None)


def _received(sock: socket.socket, size: int) -> bytes:
    """Read so many bytes, or what there is when time is up."""
    got, poll, deadline = b"", select.poll(), time.monotonic() + _SECONDS
    poll.register(sock, select.POLLIN)
    while len(got) < size and time.monotonic() < deadline:
        poll.poll(100)
        try:
            more = sock.recv(size - len(got), socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except OSError:
            break
        if not more:
            break
        got += more
    return got


def _waiting(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
    except OSError:
        return False


def _drain(sock: socket.socket) -> None:
    """Throw away what has arrived of a message that does not count."""
    try:
        while sock.recv(_BYTES_MAX, socket.MSG_DONTWAIT):
            pass
    except OSError:
        return
