"""The engine behind ``BPF_PROG_TEST_RUN``: the kernel runs the program with the context as given.

For ``cgroup_sock_addr`` programs this needs the module of ``vm/testrun``; XDP, TC and other types
have a test run in every kernel.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from typing import TYPE_CHECKING

from bpfunit._sys import bpf
from bpfunit._sys.uapi import Cmd, ProgType, TestRunAttr
from bpfunit.engines import NotApplicableError, RawOutcome, Request, get, register
from bpfunit.errors import SyscallError
from bpfunit.progtypes import native
from bpfunit.progtypes.sock_addr import SOCK_ADDR_SIZE

if TYPE_CHECKING:
    from bpfunit.runs.program import Program

ENOTSUPP = 524  # include/linux/errno.h, not known to libc
_SK_OFFSET = 64  # offsetof(struct bpf_sock_addr, sk)

_HINTS = {
    ENOTSUPP: "this kernel has no test run for the program's type; for cgroup/connect and its"
    " kin load bpfunit_testrun.ko before the program (pytest --kernel does it)",
    errno.EINVAL: "the context is missing, or contradicts the program's attach type",
    errno.E2BIG: "the context is longer than struct bpf_sock_addr and not zero past its end",
    errno.EINTR: "a signal ended the run",
}
# The kernel offers its whole structure and says ENOSPC where the caller's UAPI knows a shorter one.
_CONTEXT_ROOM = mmap.PAGESIZE


class TestRunEngine:
    """Runs through ``bpf(2)``; its buffers are of each run, so that threads may run at once."""

    __test__ = False
    name = "testrun"

    def run(self, program: Program, request: Request) -> RawOutcome:
        """Run ``program`` once; see :class:`bpfunit.engines.Engine`."""
        if program.type == ProgType.CGROUP_SOCK_ADDR and request.data is None:
            return _run_sock_addr(program, request)
        if program.type == ProgType.CGROUP_SKB and native.packet_end_is_missing():
            raise NotApplicableError(
                f"run {program.name} on the engine testrun: in this kernel's own test run of"
                " cgroup_skb data_end is NULL, so that the program would see an empty packet; Linux"
                " 6.16 is right, and so is bpfunit_testrun.ko, loaded before the program"
            )
        return _run_native(program, request)


def _run_sock_addr(program: Program, request: Request) -> RawOutcome:
    """Run by the module, whose ``data_out`` is what the hook hands to the system call."""
    attr = TestRunAttr(prog_fd=program.fd, flags=request.flags, repeat=request.repeat)
    verdict = ctypes.c_int32()
    ctx, ctx_out = request.ctx, b""
    if ctx is not None:
        if request.sock is not None and len(ctx) >= SOCK_ADDR_SIZE:
            fd = request.sock.fileno().to_bytes(8, "little", signed=True)
            ctx = ctx[:_SK_OFFSET] + fd + ctx[_SK_OFFSET + 8 :]
        ctx_in = ctypes.create_string_buffer(ctx, len(ctx))
        answer = ctypes.create_string_buffer(SOCK_ADDR_SIZE)
        attr.ctx_in, attr.ctx_size_in = ctypes.addressof(ctx_in), len(ctx)
        attr.ctx_out, attr.ctx_size_out = ctypes.addressof(answer), len(answer)
        attr.data_out = ctypes.addressof(verdict)
        attr.data_size_out = ctypes.sizeof(verdict)
    result = bpf.call(Cmd.PROG_TEST_RUN, attr)
    if result < 0:
        raise SyscallError(f"run {program.name}", -result, _HINTS.get(-result, ""))
    if ctx is not None:
        ctx_out = answer.raw[: attr.ctx_size_out]
    return RawOutcome(attr.retval, ctx_out, attr.duration, errno=-verdict.value)


def _run_native(program: Program, request: Request) -> RawOutcome:
    """Run by the kernel's own test run of the type."""
    shape = native.shape_of(program.type)
    attr = TestRunAttr(prog_fd=program.fd, flags=request.flags)
    attr.repeat = 0 if shape.once else request.repeat
    ctx, data = request.ctx, request.data
    ctx_in = ctx_out = data_out = None
    if ctx is not None:
        ctx_in = ctypes.create_string_buffer(ctx, len(ctx))
        attr.ctx_in, attr.ctx_size_in = ctypes.addressof(ctx_in), len(ctx)
        if shape.answers:
            ctx_out = ctypes.create_string_buffer(max(len(ctx), _CONTEXT_ROOM))
            attr.ctx_out, attr.ctx_size_out = ctypes.addressof(ctx_out), len(ctx_out)
    if data is not None:
        data_in = ctypes.create_string_buffer(data, len(data))
        attr.data_in, attr.data_size_in = ctypes.addressof(data_in), len(data)
        if request.data_size_out:
            data_out = ctypes.create_string_buffer(request.data_size_out)
            attr.data_out, attr.data_size_out = ctypes.addressof(data_out), len(data_out)
    for _ in range(max(request.repeat, 1) if shape.once else 1):
        if shape.once and ctx_in is not None and ctx is not None:
            ctypes.memmove(ctx_in, ctx, len(ctx))
        result = bpf.call(Cmd.PROG_TEST_RUN, attr)
        if result == -ENOTSUPP and get(program.session.engine).name != "testrun":
            raise NotApplicableError(
                f"run {program.name}: this kernel has no test run for its type, and no real call of"
                " the engine connect reaches it"
            )
        if result < 0:
            raise SyscallError(
                f"run {program.name}", -result, _native_hint(-result, program, request, attr)
            )
    answer = b""
    if ctx is not None:
        # what the kernel has and the caller's structure has not is cut
        where = ctx_out if ctx_out is not None else ctx_in
        assert where is not None
        answer = where.raw[: min(attr.ctx_size_out, len(ctx)) if ctx_out is not None else len(ctx)]
    return RawOutcome(
        retval=native.verdict(program.type, attr.retval),
        ctx=answer,
        duration_ns=None if shape.once else attr.duration,
        data=data_out.raw[: attr.data_size_out] if data_out is not None else b"",
    )


def _native_hint(error: int, program: Program, request: Request, attr: TestRunAttr) -> str:
    if error == errno.EINVAL:
        return native.einval_hint(program.type, request.data, context=request.ctx is not None)
    if error == errno.E2BIG:
        return native.e2big_hint(program.type)
    if error == errno.ENOSPC and attr.data_size_out > request.data_size_out:
        grown = attr.data_size_out - len(request.data or b"")
        return (
            f"the packet has {attr.data_size_out} bytes after the run, {grown} more than before:"
            f" say data_room={grown}"
        )
    return _HINTS.get(error, "")


register("testrun", TestRunEngine)
