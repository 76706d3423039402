"""``kprobe`` and ``tracepoint`` programs: crafted registers and records, and what is refused."""

from __future__ import annotations

import platform
import struct
import sys
from collections.abc import Callable

import pytest

from bpfunit import ContextError, NotFoundError, Object, SyscallError
from bpfunit.progtypes.kprobe import KprobeProgram, PtRegs
from bpfunit.progtypes.tracepoint import TracepointProgram, event_fields

from ..objects import of_registers

pytestmark = pytest.mark.guest

Load = Callable[..., Object]


@pytest.fixture
def obj(no_bpf_leaks: None, bpf_load: Load) -> Object:
    return bpf_load(of_registers("tracing"))


# ---- kprobe


def test_a_kprobe_gets_the_arguments_of_its_function(obj: Object) -> None:
    result = obj.programs.opens.run(-100, 0x1234)
    assert (result.retval, result.verdict, result.errno) == (1, "stored", 0)
    assert result.untouched
    assert result.ctx.argument(1) == 0x1234
    assert obj.programs.opens.run(3, 0x1234).verdict == "filtered out"
    assert obj.maps.seen.snapshot() == {0x1234: 2}


def test_a_kretprobe_gets_what_was_returned(obj: Object) -> None:
    assert obj.programs.opened.run(ret=5).retval == 0
    assert obj.programs.opened.run(ret=-2).retval == 1
    assert obj.programs.opened.run(ret=-2, repeat=3).ctx.returned == 2**64 - 2
    assert obj.maps.seen.snapshot() == {5: 1, 2**64 - 2: 4}


def test_other_registers_go_by_their_names(obj: Object) -> None:
    other = "args" if platform.machine() == "s390x" else "sp"
    crafted = obj.programs.opens.craft(1, 2, regs={other: 3})
    assert isinstance(crafted, PtRegs)
    assert (crafted.argument(0), crafted.argument(1), getattr(crafted, other)) == (1, 2, 3)
    assert getattr(obj.programs.opens.run(ctx=crafted).ctx, other) == 3
    with pytest.raises(NotFoundError, match="spp"):
        obj.programs.opens.craft(regs={"spp": 3})


def test_many_hits_in_one_call(obj: Object) -> None:
    runs = obj.programs.opens.run_many([(-100, 7), (1, 7), 5]).raise_for_errors()
    assert [run.retval for run in runs] == [1, 0, 0]
    assert obj.maps.seen.snapshot() == {7: 2, 0: 1}
    assert runs.native


def test_a_slip_in_registers_is_said(obj: Object) -> None:
    program = obj.programs.opens
    assert isinstance(program, KprobeProgram)
    with pytest.raises(ContextError, match=r"9 arguments; [568] are in registers"):
        program.run(*range(9))
    with pytest.raises(ContextError, match="does not fit a register of 64 bits"):
        program.run(1 << 64)
    with pytest.raises(SyscallError, match="the registers are missing"):
        program.run(ctx=None)


# ---- tracepoint


def test_a_tracepoint_gets_the_fields_of_its_event(obj: Object) -> None:
    result = obj.programs.enters.run(dfd=-100, flags=0x42)
    assert (result.retval, result.verdict) == (1, "stored")
    assert obj.programs.enters.run(flags=0x42).verdict == "filtered out"
    assert obj.maps.seen.snapshot() == {0x42: 2}


def test_text_of_any_length_is_where_the_record_says(obj: Object) -> None:
    result = obj.programs.execs.run(filename="/bin/ls", pid=7)
    assert result.retval == 1
    assert obj.maps.seen.snapshot() == {int.from_bytes(b"/bin/ls\0", sys.byteorder): 1}


def test_a_record_may_be_given_whole(obj: Object) -> None:
    record = struct.pack("=Q5q", 0, 257, -100, 0, 9, 0)
    assert obj.programs.enters.run(record).retval == 1
    runs = obj.programs.enters.run_many([record, {"flags": 9}]).raise_for_errors()
    assert [run.retval for run in runs] == [1, 0]
    assert obj.maps.seen.snapshot() == {9: 3}


def test_a_record_that_is_too_short_says_what_attaching_says(obj: Object) -> None:
    with pytest.raises(SyscallError, match="reads past the end of the record"):
        obj.programs.enters.run(bytes(24))
    with pytest.raises(SyscallError, match="first 8 bytes are not 0"):
        obj.programs.enters.run(b"\1" * 64)


def test_fields_are_those_that_tracefs_lists(obj: Object) -> None:
    fields = event_fields("sched/sched_process_exec")
    assert fields["pid"].size == 4
    assert fields["filename"].type.startswith("__data_loc char[]")
    program = obj.programs.execs
    assert isinstance(program, TracepointProgram)
    with pytest.raises(NotFoundError, match="file_name"):
        program.run(file_name="x")
    with pytest.raises(NotFoundError, match="sched/sched_process_exec"):
        program.run(event="sched/sched_process_exek")
    with pytest.raises(ContextError, match="does not fit"):
        program.run(pid=1 << 32)
    with pytest.raises(ContextError, match="a whole record, and pid besides"):
        program.run(bytes(64), pid=1)


def test_an_event_may_be_named(obj: Object) -> None:
    crafted = obj.programs.enters.craft("sched/sched_process_exit", comm="init", pid=1)
    fields = event_fields("sched/sched_process_exit")
    assert crafted[fields["comm"].offset :][:16] == b"init".ljust(16, b"\0")
    assert obj.programs.enters.run(event="syscalls/sys_enter_openat", flags=1).retval == 0
