"""How a run goes: repetition, time, signals, sharing the processor and the socket, the verdict."""

from __future__ import annotations

import errno
import os
import platform
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfunit._sys.uapi import AttachType
from bpfunit.errors import SyscallError
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun
from .rawrun import Cells, RawProgram

pytestmark = pytest.mark.guest

GET_RETVAL, SET_RETVAL = 186, 187
MODULE = Path("/sys/module/bpfunit_testrun")
FOREVER = 0xFFFFFFFF


def increment_port() -> list[Insn]:
    return [
        asm.load(4, 2, 1, rawrun.USER_PORT),
        asm.alu_imm(asm.ADD, 2, 1),
        asm.store(4, 1, rawrun.USER_PORT, 2),
    ]


def returning(value: int) -> list[Insn]:
    return [asm.mov_imm(0, value), asm.exit_()]


@contextmanager
def alarm_after(seconds: float) -> Iterator[None]:
    """Send the caller a signal whose handler does nothing: a system call ends with EINTR."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("repeat", "runs"), [(0, 1), (1, 1), (2, 2), (1000, 1000)])
def test_each_repetition_starts_from_the_crafted_address(repeat: int, runs: int) -> None:
    cells = Cells()
    with cells, RawProgram(rawrun.count(cells) + increment_port() + rawrun.ALLOW) as program:
        crafted = program.craft(dst="10.0.0.1:80")
        answer = program.run(crafted, repeat=repeat)
        assert cells.read()[0] == runs
        assert answer.ctx.user_port == crafted.user_port + 1


def test_duration_is_that_of_one_run() -> None:
    slow = [asm.mov_imm(0, 1)] + [asm.alu_imm(asm.MUL, 0, 1)] * 3000 + [asm.exit_()]
    with RawProgram(rawrun.ALLOW) as quick, RawProgram(slow) as program:
        crafted = program.craft(dst="10.0.0.1:80")
        empty = min(quick.run(crafted, repeat=500).duration for _ in range(5))
        started = time.monotonic_ns()
        answer = program.run(crafted, repeat=500)
        elapsed = time.monotonic_ns() - started
        assert empty < answer.duration
        assert 500 * answer.duration <= elapsed


def test_signal_ends_a_long_run() -> None:
    with Cells() as cells, RawProgram(rawrun.count(cells) + rawrun.ALLOW) as program:
        started = time.monotonic()
        with alarm_after(0.3), pytest.raises(SyscallError) as ended:
            program.run(program.craft(dst="10.0.0.1:80"), repeat=FOREVER)
        assert ended.value.errno == errno.EINTR
        assert 0.2 < time.monotonic() - started < 10
        assert 0 < cells.read()[0] < FOREVER


def test_killed_process_leaves_a_long_run() -> None:
    with Cells() as cells, RawProgram(rawrun.count(cells) + rawrun.ALLOW) as program:
        crafted = program.craft(dst="10.0.0.1:80")
        child = os.fork()
        if child == 0:
            try:
                program.run(crafted, repeat=FOREVER)
            finally:
                os._exit(1)  # an exception would unwind into the copy of the worker
        deadline = time.monotonic() + 20
        while cells.read()[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        runs = cells.read()[0]
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert runs > 0, "the child ended, or hung, before the program ran"
        assert status == -signal.SIGKILL
        ended = cells.read()[0]
        time.sleep(0.1)
        assert cells.read()[0] == ended, "the program runs on without its process"


def test_others_get_the_processor_and_the_socket_during_a_long_run() -> None:
    """Another thread uses the very socket of a run that would take hours."""
    progress: list[int] = []
    cells, sock = Cells(), socket.socket()
    with cells, sock, RawProgram(rawrun.count(cells) + rawrun.ALLOW) as program:
        crafted = program.craft(dst="10.0.0.1:80")
        crafted.sk = sock.fileno()

        def use_the_socket() -> None:
            while cells.read()[0] == 0:  # until the run is on
                time.sleep(0.01)
            for value in range(20):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 10000 + value)  # lock_sock()
                progress.append(value)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

        thread = threading.Thread(target=use_the_socket)
        with alarm_after(20):
            thread.start()
            with pytest.raises(SyscallError) as ended:
                program.run(crafted, repeat=FOREVER)
        assert ended.value.errno == errno.EINTR
        assert len(progress) == 20, "the socket's lock was not to be had"
        thread.join()


def test_two_long_runs_share_one_socket() -> None:
    finished: list[int] = []
    with RawProgram(rawrun.ALLOW) as program, socket.socket() as sock:
        crafted = program.craft(dst="10.0.0.1:80")
        crafted.sk = sock.fileno()

        def run() -> None:
            finished.append(program.run(crafted, repeat=300_000).retval)

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert finished == [1, 1, 1]


@pytest.mark.parametrize(
    ("attach_type", "retval", "err"),
    [
        (AttachType.CGROUP_INET4_CONNECT, 1, 0),
        (AttachType.CGROUP_INET4_CONNECT, 0, -errno.EPERM),
        (AttachType.CGROUP_INET6_CONNECT, 0, -errno.EPERM),
        (AttachType.CGROUP_UDP4_SENDMSG, 0, -errno.EPERM),
        (AttachType.CGROUP_INET4_BIND, 1, 0),
        (AttachType.CGROUP_INET4_BIND, 0, -errno.EPERM),
    ],
    ids=str,
)
def test_verdict_becomes_the_errno_of_the_call(attach_type: int, retval: int, err: int) -> None:
    with RawProgram(returning(retval), attach_type) as program:
        answer = program.run(program.craft())
        assert (answer.retval, answer.err) == (retval, err)


@pytest.mark.parametrize(("retval", "err"), [(3, 0), (2, -errno.EPERM)])
def test_second_bit_of_binds_verdict_is_no_permission(retval: int, err: int) -> None:
    """Bit 1 is BPF_RET_BIND_NO_CAP_NET_BIND_SERVICE of 5.12: a low port without the capability."""
    with unless_older_than(5, 12), RawProgram(returning(retval), AttachType.CGROUP_INET4_BIND) as p:
        answer = p.run(p.craft())
        assert (answer.retval, answer.err) == (retval, err)


@pytest.mark.parametrize(
    "attach_type",
    [
        AttachType.CGROUP_UDP4_RECVMSG,
        AttachType.CGROUP_UDP6_RECVMSG,
        AttachType.CGROUP_INET4_GETPEERNAME,
        AttachType.CGROUP_INET6_GETSOCKNAME,
    ],
    ids=str,
)
def test_hooks_that_cannot_refuse_hold_their_programs_to_1(attach_type: int) -> None:
    """The verifier's rule, which is why the module needs none of its own."""
    with pytest.raises(SyscallError) as refused:
        RawProgram(returning(0), attach_type)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("verdict", "chosen", "err"),
    [
        (1, -errno.EACCES, -errno.EACCES),
        (0, -errno.EACCES, -errno.EACCES),
        (0, 0, -errno.EPERM),
        (1, 0, 0),
    ],
)
def test_program_chooses_the_errno(verdict: int, chosen: int, err: int) -> None:
    """bpf_set_retval(), bpf_get_retval(): 5.18."""
    code = [asm.mov_imm(1, chosen), rawrun.call(SET_RETVAL), *returning(verdict)]
    with unless_older_than(5, 18), RawProgram(code) as program:
        assert program.run(program.craft(), repeat=3).err == err


def test_retval_starts_at_0_in_each_repetition() -> None:
    code = [
        rawrun.call(GET_RETVAL),
        asm.mov_reg(6, 0),
        asm.mov_imm(1, -errno.EACCES),
        rawrun.call(SET_RETVAL),
        asm.mov_imm(0, 1),
        asm.branch_imm(asm.JEQ, 6, 0, 1),
        asm.mov_imm(0, 0),
        asm.exit_(),
    ]
    with unless_older_than(5, 18), RawProgram(code) as program:
        assert program.run(program.craft(), repeat=5).retval == 1


@contextmanager
def unless_older_than(major: int, minor: int) -> Iterator[None]:
    """Expect the block's program to be refused on kernels before this one, and only there."""
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if release >= (major, minor):
        yield
        return
    with pytest.raises(SyscallError) as refused:
        yield
    assert refused.value.errno == errno.EINVAL


def test_module_says_its_version_and_how_many_programs_it_equipped() -> None:
    equipped = MODULE / "parameters" / "programs"
    assert (MODULE / "version").read_text() == "2\n"
    before = int(equipped.read_text())
    with RawProgram(rawrun.ALLOW):
        assert int(equipped.read_text()) == before + 1


def test_module_cannot_be_removed_once_a_program_points_into_it() -> None:
    with RawProgram(rawrun.ALLOW):
        pass
    assert int((MODULE / "refcnt").read_text()) == 1
    removal = subprocess.run(["rmmod", MODULE.name], capture_output=True, text=True, check=False)
    assert removal.returncode != 0
    assert "in use" in removal.stderr
