"""How the engine live runs sk_reuseport programs: by a real packet to the group, or a close(2).

The program is attached to the group for the time of a run, and a packet comes over the loopback
interface. A ``fexit`` program on the kernel's own runner takes what the program was given and what
it chose; one at the door of the receiver (``cgroup_skb``) sees who gets the packet, and drops it:
nothing is delivered. A connection migrates when a listener of ours, put into the group, is closed
before anybody has accepted it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from bpfunit import netns
from bpfunit._sys import bpf, sockets, uapi
from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType, Cmd, MapType, ProgType
from bpfunit.engines import NotApplicableError, ProgramRef, RawOutcome, Request
from bpfunit.engines.sockets import face, like, put_back
from bpfunit.errors import NotFoundError, SyscallError
from bpfunit.progtypes import watching
from bpfunit.progtypes.sock_addr.arrange import raw_socket, route, scope
from bpfunit.progtypes.watching import Code, our_tcp_sockets
from bpfunit.rewrite import insn as asm
from bpfunit.values import kernelbtf

_PASS = 1  # SK_PASS
_RUNNER, _ATTACHER = "bpf_run_sk_reuseport", "reuseport_attach_prog"
_SO_ATTACH, _SO_DETACH, _SO_COOKIE = 52, 68, 57  # include/uapi/asm-generic/socket.h
_SO_MARK = 36
_MARK = 0x39F0117A  # of our packets, by which the observers know them
_DELIVERY_SECONDS = 0.5  # loopback delivers within the send; a loaded guest may defer it
_SECONDS = 5
_GET_COOKIE, _SELECT, _PROBE_READ_KERNEL, _CURRENT_PID_TGID = 46, 82, 113, 14  # bpf_func_id
_PACKET_MAX = 4096

# The record, in the one value of a memory-mapped array: what is wanted, then what was seen.
_W_PROG, _W_MARK, _W_TRANSPORT, _W_OPEN, _W_THREAD = 0, 4, 8, 12, 16
_RUNS, _EXITS, _RETVAL, _HASH, _LEN, _NONLINEAR, _COPIED, _DOOR = range(24, 56, 4)
_FORMER, _ATTACHED = 56, 60
_CHOSEN, _COOKIE, _INODE, _SCRATCH = 64, 72, 80, 88
_DOOR_COOKIE = 96
_CONTENT = 104
_SIZE = _CONTENT + _PACKET_MAX


@dataclass(frozen=True)
class Crafted:
    """What the run is made of.

    ``packet`` begins with its IP header, and ``transport`` bytes in front of the next one.
    ``migrating`` is a descriptor, -1 where a packet comes.
    """

    packet: bytes
    transport: int
    hash: int
    migrating: int


class Seen(NamedTuple):
    """What the kernel made of a run: the verdict, the socket, the hash that the program saw.

    ``retval`` is the program's own; None of one without BTF.
    """

    verdict: str
    cookie: int
    inode: int
    hash: int
    retval: int | None


def _read(to: int, size: int, offset: int) -> list[asm.Insn]:
    """Copy from behind r8, a kernel pointer, into the record behind r7."""
    return [
        *(asm.mov_reg(1, 7), asm.alu_imm(asm.ADD, 1, to), asm.mov_imm(2, size)),
        *(asm.mov_reg(3, 8), asm.alu_imm(asm.ADD, 3, offset), asm.call(_PROBE_READ_KERNEL)),
    ]


def _follow(*offsets: int) -> list[asm.Insn]:
    """Let r8 be the pointer that lies behind it, and so on."""
    return [
        one
        for offset in offsets
        for one in (*_read(_SCRATCH, 8, offset), asm.load(8, 8, 7, _SCRATCH))
    ]


def _hash_argument() -> int:
    """Return which argument of the kernel's runner the hash is: behind the migrating socket."""
    try:
        kernelbtf.offset("sk_reuseport_kern", "migrating_sk")  # 5.14
    except NotFoundError:
        return 4
    return 5


def _runner_exit(map_fd: int) -> bytes:
    """Take what the runner got and gave: (reuse, sk, prog, skb, [migrating_sk,] hash)."""
    member = kernelbtf.offset
    last = _hash_argument()
    code = Code().add(asm.load(4, 1, 7, _W_PROG)).unless(asm.JEQ, 1, None)
    code.add(asm.load(8, 8, 6, 16), *_follow(member("bpf_prog", "aux")))
    code.add(asm.store_imm(8, 7, _SCRATCH, 0), *_read(_SCRATCH, 4, member("bpf_prog_aux", "id")))
    code.add(asm.load(4, 1, 7, _SCRATCH), asm.load(4, 2, 7, _W_PROG)).unless(asm.JNE, 1, 2)
    code.add(asm.load(8, 8, 6, 24), *_read(_SCRATCH, 4, member("sk_buff", "mark")))
    code.add(asm.load(4, 1, 7, _SCRATCH), asm.load(4, 2, 7, _W_MARK)).unless(asm.JNE, 1, 2)
    code.add(asm.load(4, 1, 7, _RUNS), asm.alu_imm(asm.ADD, 1, 1), asm.store(4, 7, _RUNS, 1))
    code.add(asm.load(8, 1, 6, 8 * last), asm.store(4, 7, _HASH, 1))
    code.add(*_read(_LEN, 4, member("sk_buff", "len")))
    code.add(*_read(_NONLINEAR, 4, member("sk_buff", "data_len")))
    # the packet from its IP header on
    code.add(*_follow(member("sk_buff", "data")))
    code.add(asm.load(4, 2, 7, _LEN), asm.load(4, 1, 7, _W_TRANSPORT))
    code.add(asm.mov_reg(3, 8), asm.alu_reg(asm.SUB, 3, 1), asm.alu_reg(asm.ADD, 2, 1))
    code.add(
        asm.branch_imm(asm.JGT, 2, _PACKET_MAX, 4),
        asm.store(4, 7, _COPIED, 2),
        *(asm.mov_reg(1, 7), asm.alu_imm(asm.ADD, 1, _CONTENT), asm.call(_PROBE_READ_KERNEL)),
    )
    # of an error, or of nobody: what cannot be read reads as zeroes
    code.add(asm.load(8, 8, 6, 8 * (last + 1)), asm.store(8, 7, _CHOSEN, 8))
    code.add(*_read(_COOKIE, 8, member("sock", "__sk_common", "skc_cookie")))
    code.add(*_follow(member("sock", "sk_socket"), member("socket", "file")))
    code.add(*_follow(member("file", "f_inode")), *_read(_INODE, 8, member("inode", "i_ino")))
    return code.done(map_fd, 0)


def _program_exit(map_fd: int, retval: int) -> bytes:
    """Take what the tested program itself returns."""
    code = Code().add(asm.load(4, 1, 7, _W_PROG)).unless(asm.JEQ, 1, None)
    code.add(asm.load(4, 1, 7, _EXITS), asm.alu_imm(asm.ADD, 1, 1), asm.store(4, 7, _EXITS, 1))
    code.add(asm.load(8, 1, 6, retval), asm.store(4, 7, _RETVAL, 1))
    return code.done(map_fd, 0)


def _attach_entry(map_fd: int) -> bytes:
    """Take which program the group has so far, as this thread attaches another: (sk, prog)."""
    member = kernelbtf.offset
    code = Code().add(asm.call(_CURRENT_PID_TGID), asm.load(8, 1, 7, _W_THREAD))
    code.unless(asm.JNE, 0, 1)
    code.add(asm.load(8, 8, 6, 0), *_follow(member("sock", "sk_reuseport_cb")))
    code.unless(asm.JEQ, 8, None).add(*_follow(member("sock_reuseport", "prog")))
    code.unless(asm.JEQ, 8, None).add(asm.store_imm(4, 7, _ATTACHED, 1))
    code.add(*_follow(member("bpf_prog", "aux")), *_read(_FORMER, 4, member("bpf_prog_aux", "id")))
    return code.done(map_fd, 0)


def _door(map_fd: int) -> bytes:
    """Note who is about to get our packet, and drop it; let all others pass."""
    code = Code().add(asm.load(4, 1, 7, _W_OPEN)).unless(asm.JEQ, 1, None)
    code.add(asm.load(4, 1, 6, 8), asm.load(4, 2, 7, _W_MARK)).unless(asm.JNE, 1, 2)
    code.add(asm.mov_reg(1, 6), asm.call(_GET_COOKIE), asm.store(8, 7, _DOOR_COOKIE, 0))
    code.add(asm.load(4, 1, 7, _DOOR), asm.alu_imm(asm.ADD, 1, 1), asm.store(4, 7, _DOOR, 1))
    code.add(asm.mov_imm(0, 0), asm.exit_())
    return code.done(map_fd, 1)


def _steering(map_fd: int) -> bytes:
    """Let the one socket of a map get everything."""
    return asm.encode(
        [
            asm.store_imm(4, 10, -4, 0),
            *asm.load_map_fd(2, map_fd),
            *(asm.mov_reg(3, 10), asm.alu_imm(asm.ADD, 3, -4), asm.mov_imm(4, 0)),
            *(asm.call(_SELECT), asm.mov_imm(0, _PASS), asm.exit_()),
        ]
    )


class ReuseportCalls:
    """The packets and closes that bring a system to run sk_reuseport programs, and who watches.

    Args:
        cgroup: the one that the process, and so its sockets, are in.
        crafted: reads what a request is made of.
        answer: makes an answer in the layout of the module's.
        settled: returns a request's data with another hash.
    """

    def __init__(
        self,
        cgroup: Cgroup,
        crafted: Callable[[bytes], Crafted],
        answer: Callable[[Seen], bytes],
        settled: Callable[[bytes, int], bytes],
    ) -> None:
        self._cgroup, self._crafted, self._answer, self._settled = cgroup, crafted, answer, settled
        self._lock = threading.RLock()  # one record for all threads
        self._map = bpf.map_create("bpfunit_seen", MapType.ARRAY, 4, _SIZE, 1, uapi.BPF_F_MMAPABLE)
        self._memory = mmap.mmap(self._map, -(-_SIZE // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._door, log = bpf.prog_load(
            "bpfunit_door", ProgType.CGROUP_SKB, AttachType.CGROUP_INET_INGRESS, _door(self._map)
        )
        if self._door < 0:
            error = -self._door
            self._memory.close()
            os.close(self._map)
            raise SyscallError("load the observer of packets to a group", error, log)

    @contextmanager
    def attached(self, program: ProgramRef) -> Iterator[Callable[[Request], RawOutcome]]:
        """Have a program watched within the block; yield what sends one packet.

        It is attached to the group for the time of each call only.

        Raises:
            NotApplicableError: the kernel has no BTF, so that nothing shows what is chosen.
        """
        refuse = f"run {program.name} on the engine live"
        with self._lock, ExitStack() as stack:
            try:
                for name, kind, code in (
                    (_RUNNER, AttachType.TRACE_FEXIT, _runner_exit),
                    (_ATTACHER, AttachType.TRACE_FENTRY, _attach_entry),
                ):
                    function = kernelbtf.function(name)
                    fd = watching.load("bpfunit_watch", kind, code(self._map), function)
                    stack.enter_context(watching.attached(fd))
                self._watch_return(program, stack)
            except (NotFoundError, SyscallError) as error:
                raise NotApplicableError(
                    f"{refuse}: nothing shows what the kernel chooses: {error}"
                ) from error
            yield lambda request: self._run(refuse, program, request)

    def _watch_return(self, program: ProgramRef, stack: ExitStack) -> None:
        function = watching.main_function(program.fd)
        if not function:
            return  # one without BTF; the kernel tells a drop from the rest
        # the return value is behind five untyped arguments, or one
        for retval in (40, 8):
            code = _program_exit(self._map, retval)
            kind = AttachType.TRACE_FEXIT
            fd = watching.load("bpfunit_exit", kind, code, function, program.fd)
            if fd >= 0:
                break
        stack.enter_context(watching.attached(fd))

    def _run(self, refuse: str, program: ProgramRef, request: Request) -> RawOutcome:
        if request.data is None or request.sock is None or request.flags or request.ctx:
            raise NotApplicableError(
                f"{refuse}: a real packet comes to a group, and has no context"
            )
        crafted = self._crafted(request.data)
        call = _Call(self, self._cgroup, self._door, refuse, program, request.sock, crafted)
        try:
            for _ in range(max(request.repeat, 1)):
                seen = call.made()
        except OSError as error:
            if isinstance(error, SyscallError):
                raise
            raise NotApplicableError(f"{refuse}: {error}") from error
        retval = seen.retval
        if retval is None:
            retval = 0 if seen.verdict == "drop" else _PASS
        failure = errno.ECONNREFUSED if seen.verdict == "drop" else 0
        given = self._settled(request.data, seen.hash)
        return RawOutcome(retval, b"", None, self._answer(seen), failure, given)

    # -- the record

    def arm(self, program: int, mark: int, transport: int) -> None:
        """Forget what was seen, and watch the program of this id, and packets of this mark."""
        wanted = struct.pack("=4I", program, mark, transport, bool(mark))
        self._memory[:_CONTENT] = wanted.ljust(_CONTENT, b"\0")

    def disarm(self) -> None:
        """Look away, and let packets pass."""
        self._memory[:_W_THREAD] = bytes(_W_THREAD)

    def word(self, at: int, form: str = "I") -> int:
        """Return a number of the record."""
        return int(struct.unpack_from(f"={form}", self._memory, at)[0])

    def content(self) -> bytes:
        """Return the packet that the program was given."""
        return self._memory[_CONTENT : _CONTENT + self.word(_COPIED)]

    @contextmanager
    def on_group(self, refuse: str, sock: socket.socket, prog_fd: int) -> Iterator[None]:
        """Have a program on the socket's group within the block, and its former one afterwards.

        Raises:
            NotApplicableError: there is no group, or what it has cannot be attached again.
        """
        me = os.getpid() << 32 | threading.get_native_id()
        self._memory[:_CONTENT] = struct.pack("=16xQ", me).ljust(_CONTENT, b"\0")
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH, prog_fd)
        except OSError as error:
            raise NotApplicableError(
                f"{refuse}: the kernel attaches it to no group of this socket ({error.strerror});"
                " take one of bpfunit.reuseport_group()"
            ) from error
        former = -1
        try:
            if self.word(_ATTACHED):
                former = self._opened(refuse, self.word(_FORMER))
            self._memory[_W_THREAD : _W_THREAD + 8] = bytes(8)
            yield
        finally:
            self.disarm()
            if former >= 0:
                sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH, former)
                os.close(former)
            else:
                sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH, 0)

    def _opened(self, refuse: str, former: int) -> int:
        fd = bpf.call(Cmd.PROG_GET_FD_BY_ID, uapi.ByIdAttr(id=former)) if former else -1
        if fd < 0:
            raise NotApplicableError(
                f"{refuse}: it took the place of a program of the group that nobody else keeps, and"
                " that is gone now; attach that one behind the run, or keep its object"
            )
        return fd

    def close(self) -> None:
        """Unload the observer."""
        self._memory.close()
        os.close(self._door)
        os.close(self._map)


class _Call:
    """The packet, or the close, that brings the kernel to a program, made as often as wanted."""

    def __init__(
        self,
        calls: ReuseportCalls,
        cgroup: Cgroup,
        door: int,
        refuse: str,
        program: ProgramRef,
        sock: socket.socket,
        crafted: Crafted,
    ) -> None:
        self._calls, self._cgroup, self._door = calls, cgroup, door
        self._refuse, self._program, self._sock = refuse, program, sock
        self._crafted = crafted
        info = bpf.object_info("read program info", program.fd, uapi.ProgInfo())
        self._prog_id = int(info.id)

    def _not_applicable(self, why: str) -> NotApplicableError:
        return NotApplicableError(f"{self._refuse}: {why}")

    def made(self) -> Seen:
        """Make it, and return what the kernel made of it."""
        sock = self._sock
        if sock.type == socket.SOCK_STREAM:
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise self._not_applicable("the socket does not listen")
        elif not sockets.name(sock.fileno(), "getpeername")[0]:
            raise self._not_applicable("a connected socket gets its packets without being chosen")
        return self._migrated() if self._crafted.migrating >= 0 else self._received()

    # -- a packet

    def _received(self) -> Seen:
        calls, crafted = self._calls, self._crafted
        family, target = _target(crafted.packet)
        host = socket.inet_ntop(family, target)
        with ExitStack() as stack:
            stack.enter_context(netns.of_socket(self._sock))
            stack.enter_context(route(target))
            raw = stack.enter_context(raw_socket(family))
            raw.setsockopt(socket.SOL_SOCKET, _SO_MARK, _MARK)
            stack.enter_context(self._cgroup.attached(AttachType.CGROUP_INET_INGRESS, self._door))
            stack.enter_context(calls.on_group(self._refuse, self._sock, self._program.fd))
            calls.arm(self._prog_id, _MARK, crafted.transport)
            stack.callback(calls.disarm)
            to = (host, 0) if family == socket.AF_INET else (host, 0, 0, scope(target))
            raw.sendto(crafted.packet, to)
            seen = self._wait()
            self._check(seen)
            return seen

    def _wait(self) -> Seen:
        """Return what was seen once it is all there is to see."""
        calls, deadline = self._calls, time.monotonic() + _DELIVERY_SECONDS
        while True:
            if calls.word(_RUNS):
                seen = self._seen()
                if seen.verdict == "drop" or calls.word(_DOOR):
                    return seen
            if time.monotonic() > deadline:
                break
            time.sleep(0.001)
        if not calls.word(_RUNS):
            raise self._not_applicable("the kernel asks no program about such a packet")
        raise self._not_applicable(
            "a packet came past the engine's observer, to a socket that was made outside of its"
            " cgroup or that takes no such packet"
        )

    def _seen(self) -> Seen:
        calls = self._calls
        chosen = calls.word(_CHOSEN, "Q")
        retval = calls.word(_RETVAL, "I") if calls.word(_EXITS) else None
        told = calls.word(_HASH)
        if not chosen:
            return Seen("hash", 0, 0, told, retval)
        if chosen > (1 << 64) - 4096:  # ERR_PTR
            return Seen("drop", 0, 0, told, retval)
        cookie = calls.word(_COOKIE, "Q") or calls.word(_DOOR_COOKIE, "Q")
        return Seen("select", cookie, calls.word(_INODE, "Q"), told, retval)

    def _check(self, seen: Seen) -> None:
        """Refuse what is not the run that was wanted."""
        calls, crafted = self._calls, self._crafted
        if (runs := calls.word(_RUNS)) > 1:
            raise self._not_applicable(f"the kernel asked {runs} times about one packet")
        if calls.word(_NONLINEAR):
            raise self._not_applicable("the program does not see the packet in one piece")
        if calls.content() != crafted.packet:
            raise self._not_applicable(
                f"it sees the packet {calls.content().hex(' ', 4)}, crafted was"
                f" {crafted.packet.hex(' ', 4)}"
            )
        if crafted.hash not in (0, seen.hash):
            raise self._not_applicable(
                f"the kernel's hash of this packet is {seen.hash:#x}, crafted was"
                f" {crafted.hash:#x}; leave out hash="
            )
        receiver = calls.word(_DOOR_COOKIE, "Q")
        if seen.verdict == "select" and receiver != seen.cookie:
            raise self._not_applicable(
                "the kernel gives the packet to another socket than the one selected, as of a group"
                " with connected ones"
            )

    # -- a connection whose listener goes away

    def _migrated(self) -> Seen:
        calls = self._calls
        with ExitStack() as stack:
            ours = stack.enter_context(our_tcp_sockets())
            listeners = [one for one in ours if self._is_of_group(one)]
            if any(_readable(one) for one in listeners):
                raise self._not_applicable(
                    "a listener of the group has a connection that nobody has accepted"
                )
            migrating = socket.socket(fileno=os.dup(self._crafted.migrating))
            stack.enter_context(migrating)
            family = migrating.family
            ends = [
                sockets.name(migrating.fileno(), call) for call in ("getsockname", "getpeername")
            ]
            if any(failure for failure, _ in ends):
                raise self._not_applicable("what migrates is not connected")
            (_, near), (_, far) = ends
            stack.enter_context(netns.of_socket(self._sock))
            for end in (near, far):
                stack.enter_context(route(_host(end)))
            leaving = stack.enter_context(self._leaving())
            client = stack.enter_context(socket.socket(family))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            with self._steered(leaving):
                if failure := sockets.bind(client.fileno(), far[:2] + bytes(2) + far[4:]):
                    raise self._not_applicable(f"the other end has no port: {os.strerror(failure)}")
                if failure := sockets.connect(client.fileno(), near):
                    raise self._not_applicable(f"no connection is made: {os.strerror(failure)}")
                if not _readable(leaving, _SECONDS):
                    raise self._not_applicable("no connection comes to the listener that goes")
            with calls.on_group(self._refuse, self._sock, self._program.fd):
                calls.arm(self._prog_id, 0, 0)
                leaving.close()
                runs, seen = calls.word(_RUNS), self._seen()
                calls.disarm()
            client.close()
            for one in listeners:
                if _readable(one):
                    with suppress(OSError):
                        one.accept()[0].close()
        if runs != 1:
            raise self._not_applicable(f"the kernel asked {runs} times about one connection")
        return seen

    def _is_of_group(self, other: socket.socket) -> bool:
        if not other.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return False
        ends = [sockets.name(one.fileno(), "getsockname") for one in (self._sock, other)]
        return ends[0] == ends[1]

    def _leaving(self) -> socket.socket:
        """Return one more listener of the group."""
        made = like(self._sock)
        try:
            put_back(made, face(self._sock))
            _, name = sockets.name(self._sock.fileno(), "getsockname")
            if failure := sockets.bind(made.fileno(), name):
                raise OSError(failure, os.strerror(failure))
            made.listen(1)
        except BaseException:
            made.close()
            raise
        return made

    @contextmanager
    def _steered(self, to: socket.socket) -> Iterator[None]:
        """Let every packet of the group come to one socket within the block."""
        with ExitStack() as stack:
            socks = bpf.map_create("bpfunit_leaving", MapType.REUSEPORT_SOCKARRAY, 4, 4, 1)
            stack.callback(os.close, socks)
            key, value = ctypes.c_uint32(0), ctypes.c_uint32(to.fileno())
            attr = uapi.MapElemAttr(
                map_fd=socks, key=ctypes.addressof(key), value=ctypes.addressof(value)
            )
            bpf.call_checked(f"{self._refuse}: enter a listener", Cmd.MAP_UPDATE_ELEM, attr)
            fd, log = bpf.prog_load(
                "bpfunit_steering",
                ProgType.SK_REUSEPORT,
                AttachType.SK_REUSEPORT_SELECT,
                _steering(socks),
            )
            if fd < 0:
                raise SyscallError(f"{self._refuse}: load what steers", -fd, log)
            stack.callback(os.close, fd)
            stack.enter_context(self._calls.on_group(self._refuse, self._sock, fd))
            yield


def _target(packet: bytes) -> tuple[int, bytes]:
    """Return the family and the address that a packet goes to."""
    if packet[0] >> 4 == 4:
        return socket.AF_INET, packet[16:20]
    return socket.AF_INET6, packet[24:40]


def _host(name: bytes) -> bytes:
    """Return the address in a ``struct sockaddr``, the IPv4 one of a v4-mapped one."""
    family = int.from_bytes(name[:2], sys.byteorder)
    return name[4:8] if family == socket.AF_INET else _unmapped(name[8:24])


def _unmapped(address: bytes) -> bytes:
    return address[12:] if address.startswith(bytes(10) + b"\xff\xff") else address


def _readable(sock: socket.socket, seconds: float = 0) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(1000 * seconds))
