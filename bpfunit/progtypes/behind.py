"""A program behind another one in a cgroup, which sees what that one left and ends the call.

The real calls of types whose hooks hand no socket to an observer are told from others by the thread
that makes them. Before Linux 5.18 (``bpf_get_retval``) nothing but the end of the call shows what
the program decided, and the call goes through where it allows it.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bpfunit._sys import bpf, uapi
from bpfunit._sys.uapi import MapType
from bpfunit.engines import NotApplicableError
from bpfunit.errors import SyscallError
from bpfunit.progtypes.base import ProgramRef
from bpfunit.rewrite import insn as asm

# The record: the thread to watch, how often it came by, what the hook would return so far (5.18),
# and from BODY on what the type copies.
_HEAD = struct.Struct("=QIi")
_SEEN, _RETVAL = 8, 12
BODY = _HEAD.size
_CURRENT_PID_TGID, _GET_RETVAL = 14, 186  # enum bpf_func_id


class Sight(NamedTuple):
    """One call: its errno, how often the observer saw it, the hook's value, the type's record."""

    failure: int
    seen: int
    hook: int
    record: bytes


class Behind:
    """The observer of one type, loaded.

    Args:
        prog_type, attach_type: of the programs that it stands behind.
        size: bytes of the type's part of the record.
        body: instructions that copy what there is to see: from the context (r6) to the record (r7).
    """

    def __init__(
        self, prog_type: int, attach_type: int, size: int, body: Sequence[asm.Insn]
    ) -> None:
        self._size = BODY + size
        self._map = bpf.map_create(
            "bpfunit_seen", MapType.ARRAY, 4, self._size, 1, uapi.BPF_F_MMAPABLE
        )
        self._memory = mmap.mmap(self._map, -(-self._size // mmap.PAGESIZE) * mmap.PAGESIZE)
        for with_thread, with_retval in ((True, True), (True, False), (False, False)):
            code = _observer(self._map, body, with_thread=with_thread, with_retval=with_retval)
            fd, log = bpf.prog_load("bpfunit_behind", prog_type, attach_type, code)
            if fd >= 0:
                self.fd, self.with_retval = fd, with_retval
                return
        self._memory.close()
        os.close(self._map)
        raise SyscallError(f"load the observer of program type {prog_type}", -fd, log)

    def watch(self, call: Callable[[], int]) -> Sight:
        """Make a call of this thread and return what the observer saw of it.

        Args:
            call: makes it and returns its errno, 0 for none.
        """
        me = os.getpid() << 32 | threading.get_native_id()
        empty = bytes(self._size)
        self._memory[: self._size] = _HEAD.pack(me, 0, 0).ljust(self._size, b"\0")
        try:
            failure = call()
            raw = self._memory[: self._size]
        finally:
            self._memory[: self._size] = empty
        _, seen, hook = _HEAD.unpack_from(raw)
        return Sight(failure, seen, hook, raw[BODY:])

    def error(self, program: ProgramRef, sight: Sight) -> int:
        """Return the errno of the program's verdict: 0 or EPERM.

        Raises:
            NotApplicableError: the program set another one, and nothing shows its verdict.
        """
        error = sight.failure if sight.failure == errno.EPERM else 0
        if self.with_retval:
            error = -sight.hook
        if error not in (0, errno.EPERM):
            raise NotApplicableError(
                f"run {program.name} on the engine live: the program set the errno"
                f" {errno.errorcode.get(error, error)}, and nothing shows what it returned"
            )
        return error

    def close(self) -> None:
        """Unload it."""
        self._memory.close()
        os.close(self.fd)
        os.close(self._map)


def _observer(
    map_fd: int, look: Sequence[asm.Insn], *, with_thread: bool, with_retval: bool
) -> bytes:
    body = [asm.call(_GET_RETVAL), asm.store(4, 7, _RETVAL, 0)] if with_retval else []
    body += look
    body += [asm.load(4, 1, 7, _SEEN), asm.alu_imm(asm.ADD, 1, 1), asm.store(4, 7, _SEEN, 1)]
    # without bpf_get_retval() the call itself has to show whether the program let it pass
    body += [asm.mov_imm(0, 0 if with_retval else 1), asm.exit_()]
    head = [asm.mov_reg(6, 1), *([asm.call(_CURRENT_PID_TGID)] if with_thread else [])]
    head += [*asm.load_map_value(7, map_fd, 0), asm.load(8, 1, 7, 0)]
    not_ours = asm.Insn(asm.JMP | asm.JNE | asm.SRC_REG, 0, 1, len(body))
    if not with_thread:  # 5.10 does not tell these types who asks: whoever does while we ask
        not_ours = asm.branch_imm(asm.JEQ, 1, 0, len(body))
    return asm.encode([*head, not_ours, *body, asm.mov_imm(0, 1), asm.exit_()])
