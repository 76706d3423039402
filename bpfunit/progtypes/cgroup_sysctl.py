"""``cgroup_sysctl`` programs: files below /proc/sys (Linux 5.2), run by the module.

The program is asked before a process of its cgroup reads or writes one: it knows the name, the
current value and the new one, which it may replace.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.progtypes.base import ContextError, ProgramRef, RawOutcome, Request, register
from bpfunit.progtypes.headed import VERSION, HeadedType
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
    updated: int
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
        """Whether the program put a new value in place (``bpf_sysctl_set_new_value``)."""
        return bool(self._answer.updated)

    @property
    def new(self) -> bytes | None:
        """The new value after the run: the caller's, or the program's; None for a read."""
        if self.new_in is None:
            return None
        return self.outcome.data[_RESULT.size :] if self.replaced else self.new_in

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
    def replaced_by(self) -> bytes | None:
        """The new value that the program put in place, None where it did not."""
        answer = self.data
        if not answer or not _answer(answer).updated:
            return None
        return answer[_RESULT.size :]


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
        if len(name.encode()) > _NAME_MAX:
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
        payload = [name.encode(), current, new or b""]
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
    verdicts: Mapping[int, str] = {0: "deny", 1: "allow"}
    headers = (_HEADER.size, _RESULT.size)
    hints: Mapping[int, str] = {
        errno.EOPNOTSUPP: "the program has cgroup storage",
        errno.E2BIG: "the name has too many parts",
    }
    program_class = SysctlProgram
    example = '"net/ipv4/tcp_mem", write="1 2 3"'

    def encode(self, request: Request) -> tuple[bytes | None, bytes | None]:
        """Return ``data_in`` as it is: there is no socket."""
        return request.ctx, request.data


register(SysctlType(ProgType.CGROUP_SYSCTL))
