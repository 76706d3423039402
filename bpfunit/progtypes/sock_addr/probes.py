"""The programs that watch a real hook: before and behind the tested one, and at its end.

*before* and *behind* are programs of the tested one's attach type in the same cgroup, so the kernel
runs them on the very ``bpf_sock_addr_kern`` that it gives the tested program. Each copies the whole
context into a record. *behind* also ends the call: it returns 0, so that nothing is connected,
bound or sent. *exit* is a ``fexit`` program (BPF trampolines, Linux 5.5) on the tested program
itself and takes its return value, which the kernel folds into an errno before anybody can see it.

All three look only at the one socket whose cookie the record names.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from bpfunit._sys import bpf, uapi
from bpfunit._sys.uapi import AttachType, MapType, ProgType
from bpfunit.errors import BpfunitError, SyscallError
from bpfunit.progtypes import watching
from bpfunit.progtypes.sock_addr.context import HOOKS
from bpfunit.progtypes.sock_addr.program import SOCK_ADDR
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

# The verifier holds these to the return value 1 (check_return_code() in kernel/bpf/verifier.c).
ALWAYS_PROCEED = frozenset(
    number
    for number, hook in HOOKS.items()
    if hook.call in ("recvmsg", "getpeername", "getsockname")
)

# struct bpf_sock_addr in front of the socket pointer, in 32-bit words
WORDS = 15

# The record, in the one value of a memory-mapped array. A side is what one of the two sees.
_SIDE = struct.Struct("=QII15I")  # stamp, seen, hook's return value so far, context
_COOKIE, _ARMED, _EXITS, _RETVAL = 0, 8, 12, 16
_BEFORE, _BEHIND = 24, 24 + 80
_STAMP, _SEEN, _HOOK, _CTX = 0, 8, 12, 16
_SIZE = _BEHIND + 80

_KTIME_GET_NS, _SOCKET_COOKIE, _GET_RETVAL = 5, 46, 186
_JNE, _JEQ = 0x50, 0x10


@dataclass(frozen=True)
class Side:
    """What one observer saw.

    ``stamp`` is a monotonic time in ns, ``hook_retval`` what the hook would return so far (None
    before Linux 5.18), ``words`` the context.
    """

    stamp: int
    hook_retval: int | None
    words: tuple[int, ...]


@dataclass(frozen=True)
class Sighting:
    """One passage of the watched socket through the hook."""

    before: Side
    behind: Side
    retval: int | None


class ProbeError(BpfunitError):
    """The kernel refused a program that the engine live needs."""


def _observer(attach_type: int, map_fd: int, side: int, with_retval: bool) -> bytes:
    """Assemble *before* (``side`` is ``_BEFORE``) or *behind*."""
    behind = side == _BEHIND
    body: list[Insn] = [asm.load(8, 1, 7, _COOKIE)]
    body += [asm.call(_KTIME_GET_NS), asm.store(8, 7, side + _STAMP, 0)]
    if with_retval:
        body += [asm.call(_GET_RETVAL), asm.store(4, 7, side + _HOOK, 0)]
    for offset in SOCK_ADDR.readable_words(attach_type):
        # word by word: Linux 5.10 allows no wider access to every field
        body += [asm.load(4, 1, 6, offset), asm.store(4, 7, side + _CTX + offset, 1)]
    body += [
        asm.load(4, 1, 7, side + _SEEN),
        asm.alu_imm(asm.ADD, 1, 1),
        asm.store(4, 7, side + _SEEN, 1),
        asm.store_imm(4, 7, _ARMED, 0 if behind else 1),
    ]
    if behind and attach_type not in ALWAYS_PROCEED:
        body += [asm.mov_imm(0, 0), asm.exit_()]
    else:
        body += [asm.mov_imm(0, 1), asm.exit_()]
    head = [asm.mov_reg(6, 1), asm.call(_SOCKET_COOKIE), *asm.load_map_value(7, map_fd, 0)]
    head += [asm.load(8, 1, 7, _COOKIE), Insn(asm.JMP | _JNE | asm.SRC_REG, 0, 1, len(body) - 1)]
    return asm.encode([*head, *body[1:], asm.mov_imm(0, 1), asm.exit_()])


def _exit_watcher(map_fd: int, retval_offset: int) -> bytes:
    """Assemble the ``fexit`` program; its context holds the return value at ``retval_offset``."""
    body = [
        asm.load(4, 1, 7, _EXITS),
        asm.alu_imm(asm.ADD, 1, 1),
        asm.store(4, 7, _EXITS, 1),
        asm.load(8, 1, 6, retval_offset),
        asm.store(4, 7, _RETVAL, 1),
    ]
    head = [asm.mov_reg(6, 1), *asm.load_map_value(7, map_fd, 0), asm.load(4, 1, 7, _ARMED)]
    head += [asm.branch_imm(_JEQ, 1, 0, len(body))]
    return asm.encode([*head, *body, asm.mov_imm(0, 0), asm.exit_()])


class Probes:
    """The observers of one attach type, with the record they write.

    Args:
        attach_type: a sock_addr attach type (``AttachType``).

    Raises:
        ProbeError: the kernel refused an observer.
    """

    def __init__(self, attach_type: int) -> None:
        self.attach_type = attach_type
        self._fds: list[int] = []
        self._map = self._own(
            bpf.map_create("bpfunit_seen", MapType.ARRAY, 4, _SIZE, 1, uapi.BPF_F_MMAPABLE)
        )
        self._memory = mmap.mmap(self._map, mmap.PAGESIZE)
        self.with_retval = attach_type not in ALWAYS_PROCEED
        try:
            self.before = self._load("before", _BEFORE)
            self.behind = self._load("behind", _BEHIND)
        except ProbeError:
            self.close()
            raise

    def _own(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _load(self, name: str, side: int) -> int:
        code = _observer(self.attach_type, self._map, side, self.with_retval)
        fd, log = bpf.prog_load(
            f"bpfunit_{name}", ProgType.CGROUP_SOCK_ADDR, self.attach_type, code
        )
        if fd < 0 and self.with_retval:
            self.with_retval = False  # bpf_get_retval is there since Linux 5.18
            return self._load(name, side)
        if fd < 0:
            error = SyscallError(f"load the observer {name} the program", -fd)
            raise ProbeError(f"{error}\n{log}")
        return self._own(fd)

    @contextlib.contextmanager
    def watching_exit(self, prog_fd: int) -> Iterator[bool]:
        """Record the program's return value within the block; yield whether that is possible.

        It is not for a program without BTF, or on a kernel without ``CONFIG_DEBUG_INFO_BTF``.
        """
        function = watching.main_function(prog_fd)
        if not function:
            yield False
            return
        # For the kernel a program whose BTF does not fit its use has five untyped arguments
        # (btf_distill_func_proto()), else the one that it has; 40 is out of bounds for the latter.
        for offset in (40, 8):
            watcher = self._load_exit_watcher(prog_fd, function, offset)
            if watcher >= 0:
                break
        else:
            yield False
            return
        try:
            link = watching.link(watcher)
            if link < 0:
                yield False
                return
            try:
                yield True
            finally:
                os.close(link)
        finally:
            os.close(watcher)

    def _load_exit_watcher(self, prog_fd: int, function: int, offset: int) -> int:
        code = _exit_watcher(self._map, offset)
        return watching.load("bpfunit_exit", AttachType.TRACE_FEXIT, code, function, prog_fd)

    def arm(self, cookie: int) -> None:
        """Forget what was seen, and watch the socket with this cookie (``SO_COOKIE``)."""
        self._memory[:_SIZE] = struct.pack("=Q", cookie).ljust(_SIZE, b"\0")

    def disarm(self) -> None:
        """Let every socket pass: no socket has the cookie 0."""
        self.arm(0)

    def read(self) -> Sighting | None:
        """Return what was seen since :meth:`arm`, or None if the hook did not run on that socket.

        Raises:
            ProbeError: it ran more than once, so that no single sighting tells what happened.
        """
        raw = self._memory[:_SIZE]
        before, behind = (_SIDE.unpack_from(raw, at) for at in (_BEFORE, _BEHIND))
        if not before[1] and not behind[1]:
            return None
        if (before[1], behind[1]) != (1, 1):
            raise ProbeError(
                f"watch the hook: expected one passage, saw {before[1]} before and {behind[1]}"
                " behind the program; let no other thread use the socket during the run"
            )
        exits, retval = struct.unpack_from("=II", raw, _EXITS)
        sides = [Side(s[0], s[2] if self.with_retval else None, s[3:]) for s in (before, behind)]
        return Sighting(sides[0], sides[1], retval if exits else None)

    def close(self) -> None:
        """Unload the observers."""
        self._memory.close()
        while self._fds:
            os.close(self._fds.pop())
