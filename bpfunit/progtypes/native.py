"""Program types without packets that the kernel itself runs, and what its test runs share.

Source: ``bpf_prog_test_run_*()`` in the kernel's ``net/bpf/test_run.c``, ``kernel/bpf/syscall.c``.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from bpfunit._sys import bpf
from bpfunit._sys.uapi import AttachType, Cmd, ProgType, TestRunAttr
from bpfunit.progtypes.base import ProgramType, Request, register


class NativeType(ProgramType):
    """What is known of a type that kernels have a test run of.

    Attributes:
        structure: the C name of the context, for errors; "" where there is none.
    """

    native = True
    structure = ""

    def ctx_size_out(self, ctx_size_in: int) -> int:
        """Return a page or more.

        The kernel offers its whole structure and says ENOSPC where the caller's UAPI knows a
        shorter one.
        """
        return max(ctx_size_in, mmap.PAGESIZE)

    def hint(self, error: int, request: Request) -> str:
        """Say what the kernel's test run of the type has against a request."""
        if error == errno.EINVAL:
            return self.einval_hint(request.data, context=request.ctx is not None)
        if error == errno.E2BIG:
            what = f"this kernel's struct {self.structure}" if self.structure else ""
            what = what or "what this kernel knows"
            return f"the context is longer than {what} and not zero past its end"
        return ""

    def einval_hint(self, data: bytes | None, *, context: bool) -> str:
        """Say what EINVAL means for such a request."""
        if context and self.structure:
            return (
                f"a field of struct {self.structure} that a caller cannot set is not zero, or one"
                " that it can has a value that this kernel refuses"
            )
        if self.once and not context:
            return "the program reads its context (ctx=), and none was given"
        return "the kernel's test run of this type does not take such a request"


class OnceType(NativeType):
    """raw_tracepoint, syscall: one call of the program a run, which takes no time."""

    once = True
    answers = False
    signed = True


class TracingType(NativeType):
    """fentry, fexit, fmod_ret: the kernel calls functions of its own that the programs trace."""

    signed = True

    def retval_note(self, attach_type: int) -> str:
        """Say what ``retval`` is: it is not what the program returned."""
        if attach_type == AttachType.MODIFY_RETURN:
            return (
                "in the lower half the sum of what the kernel's bpf_modify_return_test functions"
                " returned, in the upper half how many had their side effect"
            )
        return "0: the kernel calls the traced functions and drops what programs return"


class StructOpsType(NativeType):
    """struct_ops: functions of a kernel structure."""

    signed = True


for _once in (ProgType.RAW_TRACEPOINT, ProgType.RAW_TRACEPOINT_WRITABLE, ProgType.SYSCALL):
    register(OnceType(_once))
register(TracingType(ProgType.TRACING))
register(StructOpsType(ProgType.STRUCT_OPS))


def told(prog_type: int, attach_type: int, code: bytes) -> int | None:
    """Return what a program's test run tells about an empty packet, None where it has none."""
    fd, _ = bpf.prog_load("bpfunit_ask", prog_type, attach_type, code)
    if fd < 0:
        return None
    try:
        packet = ctypes.create_string_buffer(64)
        attr = TestRunAttr(
            prog_fd=fd, repeat=1, data_in=ctypes.addressof(packet), data_size_in=len(packet)
        )
        result = bpf.call(Cmd.PROG_TEST_RUN, attr)
        return attr.retval if result >= 0 else None
    finally:
        os.close(fd)
