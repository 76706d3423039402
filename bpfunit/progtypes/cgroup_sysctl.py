"""``cgroup_sysctl`` programs: files below /proc/sys (Linux 5.2).

The program is asked before a process of its cgroup reads or writes one: it knows the name, the
current value and the new one, which it may replace.

The test run is the module's. By real calls the file is read or written by a thread in the engine's
cgroup. An observer behind the program sees what it left and ends the call with EPERM, so that
nothing is written; before Linux 5.18 (``bpf_get_retval``) the call goes through where the program
allows it, and the value is put back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.engines import NotApplicableError
from bpfunit.progtypes.base import (
    ALLOW,
    ContextError,
    LiveCalls,
    ProgramRef,
    RawOutcome,
    Request,
    register,
)
from bpfunit.progtypes.behind import BODY, Behind
from bpfunit.progtypes.headed import VERSION, HeadedType
from bpfunit.rewrite import insn as asm
from bpfunit.runs.bulk import BulkRun
from bpfunit.runs.program import Program
from bpfunit.runs.result import Result

# struct bpfunit_sysctl, bpfunit_sysctl_result of vm/testrun/bpfunit_testrun.h
_HEADER, _RESULT = struct.Struct("=8Iq"), struct.Struct("=i3Iq")
_WRITE = 1  # BPFUNIT_SYSCTL_WRITE
_NAME_MAX, _VALUE_MAX = 256, 4096  # BPFUNIT_SYSCTL_NAME_MAX, BPFUNIT_SYSCTL_VALUE_MAX
_ROOT = Path("/proc/sys")


class _Answer(NamedTuple):
    """``struct bpfunit_sysctl_result``."""

    err: int
    updated: int  # left out by decode(): the values show it
    size: int
    reserved: int
    position: int


class _Crafted(NamedTuple):
    """What went in."""

    name: str
    current: bytes
    write: bytes | None
    position: int


def _answer(data: bytes) -> _Answer:
    return _Answer(*_RESULT.unpack_from(data))


class SysctlResult(Result):
    """The outcome of a run of a cgroup_sysctl program.

    ``errno`` is what read(2) or write(2) ends with, 0 where the kernel goes on.

    Attributes:
        name: of the file: "net/ipv4/tcp_mem".
        current: the value that the program could read, b"" for none.
        new_in: the value that the caller writes, None for a read.
    """

    def __init__(
        self,
        program: ProgramRef,
        engine: str,
        outcome: RawOutcome,
        ctx_in: Any = None,
        *,
        crafted: _Crafted,
    ) -> None:
        super().__init__(program, engine, outcome, ctx_in)
        self._answer = _answer(outcome.data)
        self.name, self.current, self.new_in, self._position = crafted

    @property
    def replaced(self) -> bool:
        """Whether the program put another value in place (``bpf_sysctl_set_new_value``)."""
        return self.new != self.new_in

    @property
    def new(self) -> bytes | None:
        """The new value after the run: the caller's, or the program's; None for a read."""
        return None if self.new_in is None else self.outcome.data[_RESULT.size :]

    @property
    def file_pos(self) -> int:
        """The position in the file from which the kernel goes on."""
        return self._answer.position

    @property
    def untouched(self) -> bool:
        """Whether the new value and the position are as they were."""
        return self.new == self.new_in and self.file_pos == self._position

    def describe(self) -> list[str]:
        """Return what went in and came out as lines for the report of a failing test."""
        call = "read" if self.new_in is None else "write"
        changed = "untouched" if self.untouched else "changed"
        return [
            f"sysctl in:  {call} {self.name} at {self._position}, current {self.current!r}, new"
            f" {self.new_in!r}",
            f"sysctl out: at {self.file_pos}, new {self.new!r} ({changed}), verdict {self.verdict}",
        ]


class SysctlRun(BulkRun):
    """One run of a bulk call of a cgroup_sysctl program."""

    __slots__ = ()

    @property
    def new(self) -> bytes:
        """The new value after the run: the caller's, or the program's; b"" for a read."""
        return self.data[_RESULT.size :]


class SysctlProgram(Program):
    """A program that is asked about files below /proc/sys."""

    result_class = SysctlResult
    run_class = SysctlRun

    def run(
        self,
        name: str,
        *,
        write: bytes | str | None = None,
        current: bytes | str | None = None,
        file_pos: int = 0,
        repeat: int = 1,
        observe: bool = True,
    ) -> SysctlResult:
        """Run the program on a read or a write of a sysctl and return what it did.

        Nothing is read or written, and there need be no such file.

        Args:
            name: of the file below /proc/sys, "net/ipv4/tcp_mem"; with dots as sysctl(8) has it,
                where it has no slash.
            write: what the caller writes, as it is; by default it reads. A program sees up to
                4,096 bytes.
            current: the value before the call, up to 4,096 bytes; a str gets the newline that the
                kernel's own have. By default what the file holds now, b"" (the kernel could not
                read it) where it cannot be read.
            file_pos: the caller's position in the file.
            repeat: how often to run, each time with the new value and the position as crafted.
            observe: see :meth:`bpfunit.Program.run`.

        Raises:
            ContextError: a name or a value that cannot be.
            SyscallError: the module refused the run; 524 (ENOTSUPP) without the module.
            NotApplicableError: there is no such file, it cannot be opened like that, or it has
                another value than ``current``, so that no real call shows this to the program.
        """
        self.check_open()
        crafted = self._craft(name, write, current, file_pos)
        request = self._request(crafted)._replace(repeat=repeat)
        result = self.execute(request, observe=observe, crafted=crafted)
        return cast("SysctlResult", result)

    def _craft(
        self,
        name: str,
        write: bytes | str | None = None,
        current: bytes | str | None = None,
        file_pos: int = 0,
    ) -> _Crafted:
        if not isinstance(name, str):
            self.refuse_input(name)
        refuse = f"run {self.name}"
        if "/" not in name:
            name = name.replace(".", "/")
        parts = name.split("/")
        if len(parts) < 2 or {"", ".", ".."}.intersection(parts) or "\0" in name:
            raise ContextError(f'{refuse}: {name!r} is no sysctl; write "net/ipv4/tcp_mem"')
        if len(os.fsencode(name)) > _NAME_MAX:
            raise ContextError(f"{refuse}: a name of more than {_NAME_MAX} bytes")
        if isinstance(current, str):
            current = f"{current.rstrip()}\n".encode()
        if current is None:
            current = _current(name)
        new = write.encode() if isinstance(write, str) else write
        if max(len(current), len(new or b"")) > _VALUE_MAX:
            raise ContextError(f"{refuse}: a program sees up to {_VALUE_MAX} bytes of a value")
        if not 0 <= file_pos < 1 << 63:
            raise ContextError(f"{refuse}: file_pos={file_pos} is no position in a file")
        return _Crafted(name, bytes(current), None if new is None else bytes(new), file_pos)

    def _request(self, crafted: _Crafted) -> Request:
        name, current, new, position = crafted
        flags = 0 if new is None else _WRITE
        payload = [os.fsencode(name), current, new or b""]
        header = _HEADER.pack(VERSION, flags, 0, 0, *map(len, payload), 0, position)
        return Request(None, None, 1, header + b"".join(payload), _RESULT.size + _VALUE_MAX)

    def as_request(self, given: Any) -> Request:
        """Return the run on one input of :meth:`run_many`.

        That is a name for a read, or name and new value, and the current one where it is given.
        """
        arguments = (given,) if isinstance(given, str) else tuple(given)
        return self._request(self._craft(*arguments))


def _current(name: str) -> bytes:
    try:
        return _ROOT.joinpath(name).read_bytes()[:_VALUE_MAX]
    except OSError:
        return b""


class SysctlType(HeadedType):
    """What is known of ``BPF_PROG_TYPE_CGROUP_SYSCTL``."""

    sections: Mapping[str, int] = {"cgroup/sysctl": AttachType.CGROUP_SYSCTL}
    takes = 'the name of a sysctl ("net/ipv4/tcp_mem") and what is written (write=)'
    verdicts = ALLOW
    headers = (_HEADER.size, _RESULT.size)
    live = True
    hints: Mapping[int, str] = {
        errno.EOPNOTSUPP: "the program has cgroup storage, which a test run has from Linux 5.18 on",
        errno.E2BIG: "the name has too many parts",
    }
    program_class = SysctlProgram
    example = '"net/ipv4/tcp_mem", write="1 2 3"'

    def encode(self, request: Request) -> tuple[bytes | None, bytes | None]:
        """Return ``data_in`` as it is: there is no socket."""
        return request.ctx, request.data

    def decode(self, retval: int, ctx: bytes, data: bytes, duration_ns: int | None) -> RawOutcome:
        """Leave out whether a value was replaced by its like, which no real call shows."""
        if len(data) >= _RESULT.size:
            data = _RESULT.pack(*_answer(data)._replace(updated=0)) + data[_RESULT.size :]
        return super().decode(retval, ctx, data, duration_ns)

    def make_live_calls(self, cgroup: Cgroup) -> LiveCalls:
        """Return read(2) and write(2) on the file."""
        return SysctlCalls(cgroup)


# What the observer copies: write, file_pos, what the helpers returned, and what they filled in.
_SIGHT = struct.Struct("=IIiii4x")
_NAME, _CURRENT = _SIGHT.size, _SIGHT.size + _NAME_MAX + 8
_ROOM = _VALUE_MAX + 8  # a helper wants a byte more than the value has
_NEW = _CURRENT + _ROOM
_GET_NAME, _GET_CURRENT, _GET_NEW = 101, 102, 103  # enum bpf_func_id


def _look() -> list[asm.Insn]:
    """Copy what there is to see of the context (r6) to the record (r7)."""
    code: list[asm.Insn] = []
    for offset in (0, 4):
        code += [asm.load(4, 1, 6, offset), asm.store(4, 7, BODY + offset, 1)]
    for n, (helper, at, room) in enumerate(
        [
            (_GET_NAME, _NAME, _NAME_MAX + 8),
            (_GET_CURRENT, _CURRENT, _ROOM),
            (_GET_NEW, _NEW, _ROOM),
        ]
    ):
        code += [asm.mov_reg(1, 6), asm.mov_reg(2, 7), asm.alu_imm(asm.ADD, 2, BODY + at)]
        code += [asm.mov_imm(3, room), asm.mov_imm(4, 0)]
        code += [asm.call(helper), asm.store(4, 7, BODY + 8 + 4 * n, 0)]
    return code


class SysctlCalls:
    """Reads and writes of files below /proc/sys, with the program that observes them.

    Args:
        cgroup: the one that the process is in.
    """

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._lock = threading.RLock()  # one record for all threads
        self._behind = Behind(
            ProgType.CGROUP_SYSCTL, AttachType.CGROUP_SYSCTL, _NEW + _ROOM, _look()
        )

    @contextlib.contextmanager
    def attached(self, program: ProgramRef) -> Iterator[Callable[[Request], RawOutcome]]:
        """Keep a program attached within the block; yield what makes one call."""

        def run(request: Request) -> RawOutcome:
            refuse = f"run {program.name} on the engine live"
            crafted = _crafted(refuse, request)
            path = _ROOT.joinpath(crafted.name)
            try:
                fd = os.open(path, os.O_RDONLY if crafted.write is None else os.O_WRONLY)
            except OSError as error:
                raise NotApplicableError(f"{refuse}: open {path}: {error.strerror}") from None
            try:
                for _ in range(max(request.repeat, 1)):
                    outcome = self._run(program, crafted, fd, refuse)
            finally:
                os.close(fd)
            return outcome

        with self._lock:
            yield run

    def _run(self, program: ProgramRef, crafted: _Crafted, fd: int, refuse: str) -> RawOutcome:
        with self._cgroup.attached(AttachType.CGROUP_SYSCTL, program.fd, self._behind.fd):
            sight = self._behind.watch(lambda: _call(fd, crafted))
        if crafted.write is not None and not self._behind.with_retval:
            with contextlib.suppress(OSError):  # it may have come through: put the value back
                os.pwrite(fd, crafted.current, 0)
        if not sight.seen:
            failure = errno.errorcode.get(sight.failure, str(sight.failure))
            raise NotApplicableError(f"{refuse}: the call ends with {failure} before its hook")
        _, position, name_size, current_size, new_size = _SIGHT.unpack_from(sight.record)
        name = os.fsdecode(sight.record[_NAME:][: max(name_size, 0)])
        current = sight.record[_CURRENT:][: max(current_size, 0)]
        if (name, current) != (crafted.name, crafted.current):
            raise NotApplicableError(
                f"{refuse}: the hook sees {name} with {current!r}, crafted was {crafted.name} with"
                f" {crafted.current!r}"
            )
        error = self._behind.error(program, sight)
        new = sight.record[_NEW:][: max(new_size, 0)]
        data = _RESULT.pack(-error, 0, len(new), 0, position) + new
        return RawOutcome(0 if error else 1, b"", None, data, error)

    def close(self) -> None:
        """Unload the observer."""
        self._behind.close()


def _crafted(refuse: str, request: Request) -> _Crafted:
    """Return what a request asks for, if a call can."""
    if request.ctx is not None or request.flags or request.data is None:
        raise NotApplicableError(f"{refuse}: a real call comes with a name and values alone")
    _, flags, _, _, *sizes, _, position = _HEADER.unpack_from(request.data)
    parts, at = [], _HEADER.size
    for size in sizes:
        parts.append(request.data[at : at + size])
        at += size
    if position >> 32:
        raise NotApplicableError(f"{refuse}: a program sees 32 bits of position {position}")
    return _Crafted(os.fsdecode(parts[0]), parts[1], parts[2] if flags & _WRITE else None, position)


def _call(fd: int, crafted: _Crafted) -> int:
    try:
        if crafted.write is None:
            os.pread(fd, _VALUE_MAX, crafted.position)
        else:
            os.pwrite(fd, crafted.write, crafted.position)
    except OSError as error:
        return error.errno or 0
    return 0


register(SysctlType(ProgType.CGROUP_SYSCTL))
