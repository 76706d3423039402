"""``cgroup_device`` programs: whether a device node may be opened or made (Linux 4.15).

The test run is the module's. By real calls a node in a directory of ours is opened, or made, by a
thread in the engine's cgroup. An observer behind the program sees what it saw and ends the call
with EPERM, so that no device is opened; before Linux 5.18 (``bpf_get_retval``) the call goes
through where the program allows it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.engines import NotApplicableError
from bpfunit.progtypes.base import (
    ALLOW,
    ContextError,
    LiveCalls,
    ProgramRef,
    ProgramType,
    RawOutcome,
    Request,
    register,
)
from bpfunit.progtypes.behind import BODY, Behind
from bpfunit.rewrite import insn as asm
from bpfunit.runs.program import Program
from bpfunit.runs.result import Result
from bpfunit.values.records import StructRecord

# include/uapi/linux/bpf.h: BPF_DEVCG_DEV_* and BPF_DEVCG_ACC_*
_NODES = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}
_FORM = re.compile(r"([bc]) +(\d+):(\d+)")
_MAJOR_MAX, _MINOR_MAX = (1 << 12) - 1, (1 << 20) - 1  # MAJOR(), MINORMASK in linux/kdev_t.h


class DeviceContext(StructRecord):
    """``struct bpf_cgroup_dev_ctx``: 12 bytes, host byte order.

    ``access_type`` is the type of the node in the lower 16 bits and the access above them.
    """

    _fields_: ClassVar[Any] = [
        (name, ctypes.c_uint32) for name in ("access_type", "major", "minor")
    ]
    _members_: ClassVar[dict[str, Any]] = dict(_fields_)

    @property
    def words(self) -> tuple[str, str]:
        """The node and the access as :meth:`DeviceProgram.run` takes them."""
        node = {number: letter for letter, number in _NODES.items()}.get(self.access_type & 0xFFFF)
        access = "".join(a for a, bit in _ACCESS.items() if self.access_type >> 16 & bit)
        return f"{node or '?'} {self.major}:{self.minor}", access

    def __repr__(self) -> str:
        node, access = self.words
        return f"DeviceContext({node}, {access or 'no access'})"


class DeviceProgram(Program):
    """A program that grants or denies access to a device node."""

    def run(
        self,
        device: str = "c 1:3",
        access: str = "r",
        *,
        ctx: Any = ...,
        repeat: int = 1,
        observe: bool = True,
    ) -> Result:
        """Run the program on an access to a device and return what it did.

        Args:
            device: type and number of the node as ``devices.allow`` takes them: "c 1:3" for
                /dev/null, "b 8:0" for the first disk.
            access: "r", "w" or "rw" for open(2), "m" for mknod(2), "" for access(2) with X_OK.
            ctx: the whole context instead: a structure, bytes, or None to pass none at all.
            repeat: how often to run.
            observe: see :meth:`bpfunit.Program.run`.

        Returns:
            The result: ``verdict`` is "allow" or "deny", ``errno`` what the system call ends with.

        Raises:
            ContextError: the device or the access cannot be read.
            SyscallError: the module refused the run: EINVAL for an access that no system call asks
                for, as the docs list them; 524 (ENOTSUPP) without the module.
            NotApplicableError: no real call asks for this access.
        """
        self.check_open()
        context = self.craft(device, access) if ctx is ... else ctx
        raw = None if context is None else bytes(context)
        result: Result = self.execute(Request(raw, None, repeat), context, observe=observe)
        return result

    def craft(self, device: str, access: str = "r") -> DeviceContext:
        """Return the context that :meth:`run` would craft, to alter it or to run many."""
        found = _FORM.fullmatch(device.strip()) if isinstance(device, str) else None
        if found is None:
            raise ContextError(
                f'run {self.name}: {device!r} is no device; write its type and number, "c 1:3"'
            )
        if not set(access) <= set(_ACCESS) or len(set(access)) < len(access):
            raise ContextError(
                f'run {self.name}: {access!r} is no access; write "r", "w", "rw", "m" or ""'
            )
        major, minor = int(found[2]), int(found[3])
        if major > _MAJOR_MAX or minor > _MINOR_MAX:
            raise ContextError(
                f"run {self.name}: there is no device {major}:{minor}; numbers go up to"
                f" {_MAJOR_MAX}:{_MINOR_MAX}"
            )
        bits = sum(_ACCESS[letter] for letter in access)
        return DeviceContext(bits << 16 | _NODES[found[1]], major, minor)

    def as_context(self, given: Any) -> DeviceContext:
        """Return the context of one input of :meth:`run_many`: a device, or device and access."""
        return self.craft(given) if isinstance(given, str) else self.craft(*given)


class DeviceType(ProgramType):
    """What is known of ``BPF_PROG_TYPE_CGROUP_DEVICE``."""

    context = DeviceContext
    sections: Mapping[str, int] = {"cgroup/dev": AttachType.CGROUP_DEVICE}
    readable = ("access_type", "major", "minor")
    live = True
    takes = 'a device and an access ("c 1:3", "rw") or a context (ctx=)'
    verdicts = ALLOW
    hints: Mapping[int, str] = {
        errno.EINVAL: "the context is missing, or no system call asks for such an access: mknod"
        " together with reading or writing, or anything of device 0:0",
        errno.E2BIG: "the context is longer than struct bpf_cgroup_dev_ctx and not zero past its"
        " end",
    }
    answer_size = 4  # struct bpfunit_result of vm/testrun/bpfunit_testrun.h
    program_class = DeviceProgram
    example = '"c 1:3", "rw"'

    def ctx_size_out(self, ctx_size_in: int) -> int:
        """Return the size of the whole context, however much of it went in."""
        return self.context_size

    def decode(self, retval: int, ctx: bytes, data: bytes, duration_ns: int | None) -> RawOutcome:
        """Take the errno out of ``struct bpfunit_result``."""
        verdict = int.from_bytes(data[:4], sys.byteorder, signed=True)
        return RawOutcome(retval, ctx, duration_ns, b"", -verdict)

    def make_live_calls(self, cgroup: Cgroup) -> LiveCalls:
        """Return open(2), mknod(2) and access(2) on a node of ours."""
        return DeviceCalls(cgroup)


_WORDS = struct.Struct("=3I")  # the context, as the observer copies it


class DeviceCalls:
    """The calls that ask for a device, with the program that observes them.

    Args:
        cgroup: the one that the process is in.
    """

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._lock = threading.RLock()  # one record for all threads
        body: list[asm.Insn] = []
        for offset in range(0, _WORDS.size, 4):
            body += [asm.load(4, 1, 6, offset), asm.store(4, 7, BODY + offset, 1)]
        self._behind = Behind(ProgType.CGROUP_DEVICE, AttachType.CGROUP_DEVICE, _WORDS.size, body)

    @contextlib.contextmanager
    def attached(self, program: ProgramRef) -> Iterator[Callable[[Request], RawOutcome]]:
        """Keep a program attached within the block; yield what makes one access."""
        with self._lock, tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            node = Path(directory, "node")

            def run(request: Request) -> RawOutcome:
                context, call = self._call_for(program, request, node)
                with self._node_for(context, node):
                    fds = (program.fd, self._behind.fd)
                    with self._cgroup.attached(AttachType.CGROUP_DEVICE, *fds):
                        for _ in range(max(request.repeat, 1)):
                            outcome = self._seen(program, context, call)
                return outcome

            yield run

    def _call_for(
        self, program: ProgramRef, request: Request, node: Path
    ) -> tuple[DeviceContext, Callable[[], int]]:
        refuse = f"run {program.name} on the engine live"
        if request.ctx is None or request.flags or request.data is not None:
            raise NotApplicableError(f"{refuse}: a real call comes with a context and nothing else")
        context: DeviceContext = program.type.decode_context(request.ctx)
        file_types = {1: stat.S_IFBLK, 2: stat.S_IFCHR}
        node_type, access = context.access_type & 0xFFFF, context.access_type >> 16
        number = os.makedev(context.major, context.minor)
        if node_type in file_types and any(request.ctx[12:]) is False:
            if access == _ACCESS["m"]:
                return context, lambda: _errno_of(
                    os.mknod, node, file_types[node_type] | 0o600, number
                )
            flags = {2: os.O_RDONLY, 4: os.O_WRONLY, 6: os.O_RDWR}.get(access)
            if flags is not None:
                return context, lambda: _errno_of(os.open, node, flags | os.O_NONBLOCK)
            if access == 0:
                return context, lambda: _access_errno(node)
        raise NotApplicableError(f"{refuse}: no system call asks for {context!r}")

    @contextlib.contextmanager
    def _node_for(self, context: DeviceContext, node: Path) -> Iterator[None]:
        if context.access_type >> 16 != _ACCESS["m"]:
            file_type = (
                stat.S_IFBLK if context.access_type & 0xFFFF == _NODES["b"] else stat.S_IFCHR
            )
            os.mknod(node, file_type | 0o777, os.makedev(context.major, context.minor))
        try:
            yield
        finally:
            node.unlink(missing_ok=True)

    def _seen(
        self, program: ProgramRef, context: DeviceContext, call: Callable[[], int]
    ) -> RawOutcome:
        sight = self._behind.watch(call)
        if not sight.seen:
            raise NotApplicableError(
                f"run {program.name} on the engine live: the call ends with"
                f" {errno.errorcode.get(sight.failure, sight.failure)} and asks no program about"
                f" {context!r}"
            )
        saw = DeviceContext(*_WORDS.unpack(sight.record))
        if saw != context:
            raise NotApplicableError(
                f"run {program.name} on the engine live: the hook sees {saw!r}, crafted was"
                f" {context!r}"
            )
        error = self._behind.error(program, sight)
        return RawOutcome(0 if error else 1, bytes(saw), None, b"", error)

    def close(self) -> None:
        """Unload the observer."""
        self._behind.close()


def _errno_of(call: Callable[..., Any], *args: Any) -> int:
    try:
        result = call(*args)
    except OSError as error:
        return error.errno or 0
    if isinstance(result, int):
        os.close(result)
    return 0


def _access_errno(node: Path) -> int:
    """``access(2)`` with X_OK; root may, if the node is executable at all."""
    return 0 if os.access(node, os.X_OK) else errno.EPERM


register(DeviceType(ProgType.CGROUP_DEVICE))
