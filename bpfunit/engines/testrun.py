"""The engine behind ``BPF_PROG_TEST_RUN``: the kernel runs the program with the context as given.

For ``cgroup_sock_addr`` programs this needs the module of ``vm/testrun``; XDP, TC and other types
have a test run in every kernel.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from bpfunit._sys import bpf
from bpfunit._sys.uapi import Cmd, TestRunAttr
from bpfunit.engines import NotApplicableError, ProgramRef, RawOutcome, Request, register
from bpfunit.errors import ENOTSUPP, SyscallError

_HINTS = {
    ENOTSUPP: "this kernel has no test run for the program's type; for cgroup/connect and its"
    " kin load bpfunit_testrun.ko before the program (pytest --kernel does it)",
    errno.EINTR: "a signal ended the run",
}


class TestRunEngine:
    """Runs through ``bpf(2)``; its buffers are of each run, so that threads may run at once."""

    __test__ = False
    name = "testrun"
    is_test_run = True

    def run(self, program: ProgramRef, request: Request) -> RawOutcome:
        """Run ``program`` once; see :class:`bpfunit.engines.Engine`."""
        of_type = program.type
        if reason := of_type.unfit():
            raise NotApplicableError(f"run {program.name} on the engine testrun: {reason}")
        attr = TestRunAttr(prog_fd=program.fd, flags=request.flags, repeat=request.repeat)
        ctx, data = of_type.encode(request)
        ctx_in = ctx_out = data_out = None
        if ctx is not None:
            ctx_in = ctypes.create_string_buffer(ctx, len(ctx))
            attr.ctx_in, attr.ctx_size_in = ctypes.addressof(ctx_in), len(ctx)
            if of_type.answers:
                ctx_out = ctypes.create_string_buffer(of_type.ctx_size_out(len(ctx)))
                attr.ctx_out, attr.ctx_size_out = ctypes.addressof(ctx_out), len(ctx_out)
        if data is not None:
            data_in = ctypes.create_string_buffer(data, len(data))
            attr.data_in, attr.data_size_in = ctypes.addressof(data_in), len(data)
        if capacity := request.data_size_out or of_type.answer_size:
            data_out = ctypes.create_string_buffer(capacity)
            attr.data_out, attr.data_size_out = ctypes.addressof(data_out), capacity
        if of_type.once:
            self._run_once_each(program, request, attr, ctx_in)
        elif (result := bpf.call(Cmd.PROG_TEST_RUN, attr)) < 0:
            raise refused(program, request, attr, -result)
        answer = b""
        if ctx_out is not None and ctx is not None:
            # what the kernel has and the caller's structure has not is cut
            known = max(len(ctx), of_type.context_size)
            answer = ctx_out.raw[: min(attr.ctx_size_out, known)]
        elif ctx_in is not None:
            answer = ctx_in.raw
        retval = attr.retval
        if of_type.signed and retval >> 31:
            retval -= 1 << 32
        return of_type.decode(
            retval,
            answer,
            data_out.raw[: attr.data_size_out] if data_out is not None else b"",
            None if of_type.once else attr.duration,
        )

    @staticmethod
    def _run_once_each(
        program: ProgramRef, request: Request, attr: TestRunAttr, ctx_in: Any
    ) -> None:
        attr.repeat = 0
        crafted = ctx_in.raw if ctx_in is not None else b""
        for _ in range(max(request.repeat, 1)):
            if ctx_in is not None:
                ctypes.memmove(ctx_in, crafted, len(crafted))
            result = bpf.call(Cmd.PROG_TEST_RUN, attr)
            if result < 0:
                raise refused(program, request, attr, -result)

    def prepared(
        self, program: ProgramRef
    ) -> AbstractContextManager[Callable[[Request], RawOutcome]]:
        """Yield what makes one run; nothing has to be kept for it."""
        return nullcontext(partial(self.run, program))


def refused(program: ProgramRef, request: Request, attr: TestRunAttr, error: int) -> SyscallError:
    """Return the error of a test run that the kernel refused, with what to do about it.

    Args:
        program: what was run.
        request: with what.
        attr: what the kernel left in ``data_size_out`` counts.
        error: the errno.
    """
    if error == errno.ENOSPC and request.data and attr.data_size_out > request.data_size_out:
        before, after = program.type.headers
        size = attr.data_size_out - after
        grown = size - (len(request.data) - before)
        hint = (
            f"the packet has {size} bytes after the run, {grown} more than before:"
            f" say headroom={grown}"
        )
    else:
        hint = program.type.hint(error, request) or _HINTS.get(error, "")
    return SyscallError(f"run {program.name}", error, hint)


register("testrun", TestRunEngine)
