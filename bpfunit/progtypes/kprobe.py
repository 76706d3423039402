"""``kprobe`` programs, which see the registers where a probe was hit; run by the module.

Probes are hit wherever the kernel comes by, so there is no ordinary call that brings about crafted
registers: the type runs by test run alone.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Mapping
from typing import Any, ClassVar

from bpfunit._arch import native
from bpfunit._sys.uapi import ProgType
from bpfunit.errors import NotFoundError
from bpfunit.progtypes.base import ContextError, ProgramType, Request, register
from bpfunit.progtypes.headed import VERSION
from bpfunit.runs.program import Program
from bpfunit.runs.result import Result
from bpfunit.values.records import StructRecord, array_type

_u64 = ctypes.c_uint64
# struct bpfunit_tracing of vm/testrun/bpfunit_testrun.h
_HEADER = struct.Struct("=4IQ")

_REGISTERS = native().registers
_FIELDS: tuple[tuple[str, Any], ...] = tuple(
    (name, array_type(_u64, length) if length else _u64) for name, length in _REGISTERS.fields
)


class PtRegs(StructRecord):
    """``struct pt_regs`` of this machine: 64-bit registers by the kernel's names.

    x86-64: ``di``, ``si``, ``ax``, ``ip``, ``sp``, …; arm64: ``regs`` (x0 to x30), ``sp``, ``pc``,
    ``pstate``; s390x: ``args``, ``psw`` (mask and address), ``gprs`` (0 to 15).
    """

    _fields_: ClassVar[Any] = list(_FIELDS)
    _members_: ClassVar[dict[str, Any]] = dict(_FIELDS)

    def argument(self, number: int) -> int:
        """Return an argument of the probed function, counted from 0."""
        return self._get(_REGISTERS.arguments[number])

    @property
    def returned(self) -> int:
        """What the probed function returned, or what ``bpf_override_return()`` has it return."""
        return self._get(_REGISTERS.returned)

    def _get(self, place: tuple[str, int]) -> int:
        found = getattr(self, place[0])
        return int(found if isinstance(found, int) else found[place[1]])


def header(cookie: int) -> bytes | None:
    """Return the ``data_in`` of a tracing program's run, None where there is nothing to say."""
    return _HEADER.pack(VERSION, 0, 0, 0, cookie) if cookie else None


class KprobeProgram(Program):
    """A program on kprobes, uprobes or their returns: the registers where one was hit."""

    def run(
        self,
        *args: int,
        ret: int | None = None,
        regs: Mapping[str, int] | None = None,
        cookie: int = 0,
        ctx: Any = ...,
        repeat: int = 1,
        observe: bool = True,
    ) -> Result:
        """Run the program as if its probe was hit, and return what it did.

        Args:
            *args: the arguments of the probed function, as ``PT_REGS_PARM1()`` and its kin see
                them: up to 6 on x86-64, 8 on arm64, 5 on s390x. Negative numbers are two's
                complement.
            ret: what the function returned, for a program on its return (``PT_REGS_RC()``).
            regs: other registers by the kernel's names, ``{"ip": 0xffffffff81000000}``.
            cookie: what ``bpf_get_attach_cookie()`` returns (Linux 5.15).
            ctx: the whole context instead: a :class:`PtRegs` or bytes.
            repeat: how often to run, each time with the registers as crafted.
            observe: see :meth:`bpfunit.Program.run`.

        Returns:
            The result: ``verdict`` says what perf makes of the return value, "filtered out" or
            "stored"; ``ctx.returned`` is what ``bpf_override_return()`` wrote.

        Raises:
            ContextError: more arguments than registers for them, or an unknown register.
            SyscallError: the module refused the run: EOPNOTSUPP for a kprobe_multi or uprobe_multi
                program and one that may sleep; 524 (ENOTSUPP) without the module.
        """
        self.check_open()
        context = self.craft(*args, ret=ret, regs=regs) if ctx is ... else ctx
        raw = None if context is None else bytes(context)
        request = Request(raw, None, repeat, header(cookie))
        result: Result = self.execute(request, context, observe=observe)
        return result

    def craft(
        self, *args: int, ret: int | None = None, regs: Mapping[str, int] | None = None
    ) -> PtRegs:
        """Return the registers that :meth:`run` would craft, to alter them or to run many."""
        found = PtRegs()
        most = len(_REGISTERS.arguments)
        if len(args) > most:
            raise ContextError(
                f"run {self.name}: {len(args)} arguments; {most} are in registers, others are on"
                " the stack"
            )
        for place, value in zip(_REGISTERS.arguments, args, strict=False):
            self._set(found, place, value)
        if ret is not None:
            self._set(found, _REGISTERS.returned, ret)
        for name, value in (regs or {}).items():
            if name not in PtRegs._members_:
                raise NotFoundError(
                    f"craft registers for {self.name}", name, list(PtRegs._members_)
                )
            self._set(found, (name, 0), value)
        return found

    def _set(self, found: PtRegs, place: tuple[str, int], value: int) -> None:
        if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
            raise ContextError(f"run {self.name}: {value!r} does not fit a register of 64 bits")
        value &= (1 << 64) - 1
        name, index = place
        if isinstance(getattr(found, name), int):
            setattr(found, name, value)
        else:
            getattr(found, name)[index] = value

    def as_context(self, given: Any) -> PtRegs:
        """Return the context of one input of :meth:`run_many`: one argument, or several."""
        return self.craft(*given) if isinstance(given, (tuple, list)) else self.craft(given)


class KprobeType(ProgramType):
    """What is known of ``BPF_PROG_TYPE_KPROBE``.

    Sections of programs that are attached or run otherwise (several at once, sleeping, usdt) are
    left to libbpf.
    """

    sections: Mapping[str, int] = dict.fromkeys(("kprobe", "kretprobe", "uprobe", "uretprobe"), 0)
    named_sections = True
    context = PtRegs
    takes = "the arguments of the probed function, or registers (ctx=)"
    verdicts: Mapping[int, str] = {0: "filtered out", 1: "stored"}
    hints: Mapping[int, str] = {
        errno.EINVAL: "the registers are missing",
        errno.E2BIG: "the context is longer than struct pt_regs and not zero past its end",
        errno.EOPNOTSUPP: "the program runs with another context (kprobe_multi, uprobe_multi,"
        " session) or may sleep (uprobe.s), or this kernel knows no cookies (Linux 5.15)",
    }
    program_class = KprobeProgram

    def ctx_size_out(self, ctx_size_in: int) -> int:
        """Return room for the kernel's structure, whose tail belongs to the kernel alone."""
        return max(ctx_size_in, 512)


register(KprobeType(ProgType.KPROBE))
