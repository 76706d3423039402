"""The engine behind ``BPF_PROG_TEST_RUN``: the kernel runs the program with the context as given.

For ``cgroup_sock_addr`` programs this needs the module of ``vm/testrun``; XDP, TC and other types
have a test run in every kernel.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from bpfunit._sys import bpf
from bpfunit._sys.uapi import Cmd, ProgType, TestRunAttr
from bpfunit.engines import RawOutcome, Request, register
from bpfunit.errors import SyscallError
from bpfunit.progtypes.sock_addr import SOCK_ADDR_SIZE

if TYPE_CHECKING:
    from bpfunit.runs.program import Program

ENOTSUPP = 524  # include/linux/errno.h, not known to libc
_SK_OFFSET = 64  # offsetof(struct bpf_sock_addr, sk)

_HINTS = {
    ENOTSUPP: "this kernel has no test run for the program's type; for cgroup/connect and its"
    " kin load bpfunit_testrun.ko before the program (pytest --kernel does it)",
    22: "the context is missing, or contradicts the program's attach type",
    7: "the context is longer than struct bpf_sock_addr and not zero past its end",
    4: "a signal ended the run",
}


class TestRunEngine:
    """Runs through ``bpf(2)``; keeps its buffers, so that a run costs one system call."""

    __test__ = False
    name = "testrun"

    def __init__(self) -> None:
        self._attr = TestRunAttr()
        self._in = ctypes.create_string_buffer(256)
        self._out = ctypes.create_string_buffer(256)
        # our module's data_out: what the hook hands to the system call, 0 or a negative errno
        self._verdict = ctypes.c_int32()

    def run(self, program: Program, request: Request) -> RawOutcome:
        """Run ``program`` once; see :class:`bpfunit.engines.Engine`."""
        attr = self._attr
        ctypes.memset(ctypes.addressof(attr), 0, ctypes.sizeof(attr))
        attr.prog_fd, attr.flags = program.fd, request.flags
        attr.repeat = request.repeat
        ctx = request.ctx
        sock_addr = program.type == ProgType.CGROUP_SOCK_ADDR and request.data is None
        if ctx is not None:
            if sock_addr and request.sock is not None and len(ctx) >= SOCK_ADDR_SIZE:
                fd = request.sock.fileno().to_bytes(8, "little", signed=True)
                ctx = ctx[:_SK_OFFSET] + fd + ctx[_SK_OFFSET + 8 :]
            self._reserve(len(ctx))
            ctypes.memmove(self._in, ctx, len(ctx))
            attr.ctx_in, attr.ctx_size_in = ctypes.addressof(self._in), len(ctx)
            out_size = SOCK_ADDR_SIZE if sock_addr else len(ctx)
            attr.ctx_out, attr.ctx_size_out = ctypes.addressof(self._out), out_size
            if sock_addr:
                attr.data_out = ctypes.addressof(self._verdict)
                attr.data_size_out = ctypes.sizeof(self._verdict)
                self._verdict.value = 0
        data_out = None
        if request.data is not None:
            data_in = ctypes.create_string_buffer(request.data, len(request.data))
            attr.data_in, attr.data_size_in = ctypes.addressof(data_in), len(request.data)
            if request.data_size_out:
                data_out = ctypes.create_string_buffer(request.data_size_out)
                attr.data_out = ctypes.addressof(data_out)
                attr.data_size_out = request.data_size_out
        result = bpf.call(Cmd.PROG_TEST_RUN, attr)
        if result < 0:
            raise SyscallError(f"run {program.name}", -result, _HINTS.get(-result, ""))
        return RawOutcome(
            retval=attr.retval,
            ctx=self._out.raw[: attr.ctx_size_out] if ctx is not None else b"",
            duration_ns=attr.duration,
            data=data_out.raw[: attr.data_size_out] if data_out is not None else b"",
            errno=-self._verdict.value if sock_addr else 0,
        )

    def _reserve(self, size: int) -> None:
        if size > len(self._in):
            self._in = ctypes.create_string_buffer(size)
            self._out = ctypes.create_string_buffer(size)


register("testrun", TestRunEngine)
