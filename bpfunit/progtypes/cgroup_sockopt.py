"""``cgroup_sockopt`` programs: the options of sockets (Linux 5.3).

One of ``cgroup/setsockopt`` sees what a caller asks for before the kernel does, and may change it,
deny it or answer itself. One of ``cgroup/getsockopt`` sees what the kernel has answered.

The test run is the module's. By real calls (from Linux 5.18 on) an option of the socket is set or
asked for; an observer behind the program sees what it left and ends the call with EPERM, so that
nothing is set.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

from bpfunit._sys import kernel
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
from bpfunit.progtypes.behind import BODY, Behind, Sight
from bpfunit.progtypes.headed import VERSION, HeadedType
from bpfunit.rewrite import insn as asm
from bpfunit.runs.bulk import BulkRun
from bpfunit.runs.program import Program
from bpfunit.runs.result import Result

# struct bpfunit_sockopt, bpfunit_sockopt_result of vm/testrun/bpfunit_testrun.h
_HEADER, _RESULT = struct.Struct("=4IiiIi16x"), struct.Struct("=5iII4x")
_KEEP, _REPLACE, _BYPASS = range(3)  # enum bpfunit_sockopt_action
_MAX = 4096  # BPFUNIT_SOCKOPT_MAX
_SET_ROOM_MIN = 16  # bytes that a program of setsockopt may write to at least
_PYTHON_MAX = 1024  # the largest buffer of socket.getsockopt()
_CALLS = {
    "setsockopt": AttachType.CGROUP_SETSOCKOPT,
    "getsockopt": AttachType.CGROUP_GETSOCKOPT,
}
_LEVELS = {"SOL_IPV6": 41, "SOL_MPTCP": 284, "SOL_NETLINK": 270, "SOL_UDP": 17}


class _Answer(NamedTuple):
    """``struct bpfunit_sockopt_result``."""

    err: int
    level: int
    optname: int
    optlen: int
    retval: int
    action: int
    size: int


def _answer(data: bytes) -> _Answer:
    return _Answer(*_RESULT.unpack_from(data))


def _verdict(answer: _Answer, retval: int) -> str:
    if not retval:
        return "deny"
    return "bypass" if answer.action == _BYPASS else "allow"


def _value(answer: _Answer, data: bytes, crafted: bytes) -> bytes:
    if answer.action == _REPLACE:
        return data[_RESULT.size :][: answer.optlen]
    return crafted if answer.action == _KEEP and not answer.err else b""


class SockoptResult(Result):
    """The outcome of a run of a cgroup_sockopt program.

    ``errno`` is what the system call ends with; of setsockopt 0 means that the kernel goes on, or
    that the program has answered in its place (``verdict``).

    Attributes:
        optval_in: the value before the run: the caller's, or the kernel's answer.
    """

    def __init__(
        self,
        program: ProgramRef,
        engine: str,
        outcome: RawOutcome,
        ctx_in: Any = None,
        *,
        header: bytes = b"",
        optval_in: bytes = b"",
    ) -> None:
        super().__init__(program, engine, outcome, ctx_in)
        self.optval_in = optval_in
        self._answer = _answer(outcome.data)
        *_, level, optname, _room, failure = _HEADER.unpack(header)
        self._crafted = level, optname, -failure

    @property
    def verdict(self) -> str:
        """What the program said: "allow", "deny", or "bypass", where the kernel is not asked.

        Only setsockopt is bypassed: by ``optlen`` -1.
        """
        return _verdict(self._answer, self.retval)

    @property
    def level(self) -> int:
        """The level after the run: the one that the kernel goes on with."""
        return self._answer.level

    @property
    def optname(self) -> int:
        """The option after the run: the one that the kernel goes on with."""
        return self._answer.optname

    @property
    def optval(self) -> bytes:
        """The value that the kernel sets, or that the caller of getsockopt gets.

        b"" where the call fails, or the kernel is not asked. Linux before 5.18 gives a caller of
        getsockopt the program's bytes even where the call fails.
        """
        return _value(self._answer, self.outcome.data, self.optval_in)

    @property
    def optlen(self) -> int:
        """The length that goes with :attr:`optval`, in bytes."""
        return len(self.optval)

    @property
    def ctx_optlen(self) -> int:
        """``ctx->optlen`` as the program left it: -1 to bypass, 0 for the value as it was."""
        return self._answer.optlen

    @property
    def ctx_retval(self) -> int:
        """``ctx->retval``, or what ``bpf_set_retval()`` set: 0 or a negative errno."""
        return self._answer.retval

    @property
    def untouched(self) -> bool:
        """Whether level, option, value and outcome of the call are as they were."""
        now = (self.level, self.optname, self.errno)
        return (
            self._answer.action != _BYPASS
            and now == self._crafted
            and (self.errno != 0 or self.optval == self.optval_in)
        )

    def describe(self) -> list[str]:
        """Return what went in and came out as lines for the report of a failing test."""
        level, optname, failure = self._crafted
        return [
            f"option in:  {_shown(level, optname, failure, self.optval_in)}",
            f"option out: {_shown(self.level, self.optname, self.errno, self.optval)}"
            f" ({'untouched' if self.untouched else 'changed'}), verdict {self.verdict}",
        ]


def _shown(level: int, optname: int, error: int, value: bytes) -> str:
    more = " …" if len(value) > 64 else ""
    failed = f", {errno.errorcode.get(error, error)}" if error else ""
    return (
        f"level {level}, optname {optname}{failed}, {len(value)} bytes: {value[:64].hex(' ')}{more}"
    )


class SockoptRun(BulkRun):
    """One run of a bulk call of a cgroup_sockopt program."""

    __slots__ = ()

    @property
    def verdict(self) -> str:
        """As :attr:`SockoptResult.verdict`; "" for a run that was refused."""
        answer = self.data
        return _verdict(_answer(answer), self.retval) if answer else ""

    @property
    def changed(self) -> bytes | None:
        """The value that the program puts in place of the crafted one, None where it does not."""
        answer = self.data
        if not answer or _answer(answer).action != _REPLACE:
            return None
        return _value(_answer(answer), answer, b"")


class SockoptProgram(Program):
    """A program that decides on options of sockets."""

    result_class = SockoptResult
    run_class = SockoptRun

    @property
    def call(self) -> str:
        """The call that the program was loaded for: "setsockopt", "getsockopt"; "" if unknown."""
        return {number: name for name, number in _CALLS.items()}.get(
            AttachType(self.attach_type), ""
        )

    def run(
        self,
        call: str,
        level: str | int,
        optname: str | int,
        optval: bytes | int | None = None,
        *,
        sock: socket.socket | None = None,
        room: int | None = None,
        failure: int = 0,
        repeat: int = 1,
        observe: bool = True,
    ) -> SockoptResult:
        """Run the program on a call of setsockopt(2) or getsockopt(2) and return what it did.

        Nothing is set, and the socket stays as it is but for what the program does to it.

        Args:
            call: "setsockopt" or "getsockopt", for which the program was loaded.
            level: a number, or its name: "SOL_SOCKET", "IPPROTO_TCP".
            optname: a number, or its name: "SO_PRIORITY", "TCP_NODELAY".
            optval: of setsockopt the caller's value; of getsockopt the kernel's answer, by default
                what the kernel answers now for ``sock``. An int is one of C, four bytes in the
                machine's order. Up to 4,096 bytes.
            sock: the socket; of any family. By default a fresh TCP socket.
            room: of getsockopt: how many bytes the caller has room for, by default the answer's
                length, 4 where there is no answer.
            failure: of getsockopt: the errno that the kernel answered instead of a value.
            repeat: how often to run, each time with the value as crafted.
            observe: see :meth:`bpfunit.Program.run`.

        Raises:
            ContextError: a name that there is not, a value that is too long, an answer that is
                longer than the room for it, or a call that the program was not loaded for.
            SyscallError: the module refused the run: EBADF or ENOTSOCK for a descriptor that is no
                socket, EOPNOTSUPP for TCP_ZEROCOPY_RECEIVE; 524 (ENOTSUPP) without the module.
            NotApplicableError: no real call shows this to the program: the kernel answers
                something else, or the value is longer than an observer sees.
        """
        self.check_open()
        with ExitStack() as stack:
            used = sock if sock is not None else stack.enter_context(socket.socket())
            if call == "getsockopt" and optval is None and not failure:
                optval, failure = _ask_kernel(
                    used, _number("level", level), _number("optname", optname), room
                )
            request = self._request(call, level, optname, optval, room, failure)
            assert request.data is not None
            result = self.execute(
                request._replace(sock=used, repeat=repeat),
                observe=observe,
                header=request.data[: _HEADER.size],
                optval_in=request.data[_HEADER.size :],
            )
        return cast("SockoptResult", result)

    def _request(
        self,
        call: str,
        level: str | int,
        optname: str | int,
        optval: bytes | int | None = None,
        room: int | None = None,
        failure: int = 0,
    ) -> Request:
        refuse = f"run {self.name}"
        if call not in _CALLS:
            raise ContextError(f'{refuse}: call={call!r}; write "setsockopt" or "getsockopt"')
        if self.attach_type and call != self.call:
            raise ContextError(f"{refuse} on {call}: it was loaded for {self.call}")
        if isinstance(optval, int):
            optval = struct.pack("=i", optval)
        value = bytes(optval or b"")
        get = call == "getsockopt"
        if not get and (room is not None or failure):
            raise ContextError(f"{refuse}: room= and failure= are of getsockopt")
        if failure and value:
            raise ContextError(f"{refuse}: the kernel gives a value or fails; leave out optval")
        if not 0 <= failure < _MAX:
            raise ContextError(f"{refuse}: failure={failure} is no errno; write errno.ENOPROTOOPT")
        space = (len(value) or 4 if room is None else room) if get else 0
        if len(value) > _MAX or not 0 <= space <= _MAX:
            raise ContextError(
                f"{refuse}: {max(len(value), space)} bytes; a program sees up to {_MAX} of a value"
            )
        if get and len(value) > space:
            raise ContextError(f"{refuse}: the answer has {len(value)} bytes, and room={space}")
        numbers = _number("level", level), _number("optname", optname)
        header = _HEADER.pack(VERSION, 0, 0, 0, *numbers, space, -failure)
        size = space if get else max(len(value), _SET_ROOM_MIN)
        return Request(None, None, 1, header + value, _RESULT.size + size)

    def as_request(self, given: Any) -> Request:
        """Return the run on one input of :meth:`run_many`: the first arguments of :meth:`run`.

        It takes ``sock``. Of getsockopt the answer has to be given.
        """
        if not isinstance(given, (tuple, list)):
            self.refuse_input(given)
        return self._request(*given)


def _number(what: str, given: str | int) -> int:
    """Return the number of a level or an option by its name in C."""
    if isinstance(given, int):
        return int(given)
    found = getattr(socket, given, None) if given.isupper() else None
    found = _LEVELS.get(given, found)
    if not isinstance(found, int):
        raise ContextError(
            f'{what} {given!r}: no such name in Python\'s socket module; write "SOL_SOCKET",'
            ' "SO_PRIORITY", or the number'
        )
    return int(found)


def _ask_kernel(
    sock: socket.socket, level: int, optname: int, room: int | None
) -> tuple[bytes | None, int]:
    """Return what the kernel answers: a value, or None and an errno."""
    try:
        return sock.getsockopt(level, optname, min(room or _PYTHON_MAX, _PYTHON_MAX)), 0
    except OSError as error:
        return None, error.errno or 0


class SockoptType(HeadedType):
    """What is known of ``BPF_PROG_TYPE_CGROUP_SOCKOPT``."""

    sections: Mapping[str, int] = {
        "cgroup/setsockopt": AttachType.CGROUP_SETSOCKOPT,
        "cgroup/getsockopt": AttachType.CGROUP_GETSOCKOPT,
    }
    takes = 'a call with its arguments ("setsockopt", "SOL_SOCKET", "SO_PRIORITY", 3)'
    verdicts = ALLOW
    headers = (_HEADER.size, _RESULT.size)
    hints: Mapping[int, str] = {
        errno.EOPNOTSUPP: "the program has cgroup storage (before 5.18), or the option is"
        " TCP_ZEROCOPY_RECEIVE, which comes to the program by another way, or not at all",
        errno.ENOTCONN: "the socket is closed or not a full one; take a fresh one",
    }
    program_class = SockoptProgram
    example = '"setsockopt", "SOL_SOCKET", "SO_PRIORITY", 3'

    def __init__(self, number: int) -> None:
        super().__init__(number)
        # before bpf_get_retval() nothing shows what a program decided without setting the option
        self.live = kernel.version() >= (5, 18)

    def call_leaves_traces(self, attach_type: int) -> bool:
        """Nothing is set: the observer ends the call before the kernel does."""
        return False

    def make_live_calls(self, cgroup: Cgroup) -> LiveCalls | None:
        """Return setsockopt(2) and getsockopt(2) on the run's socket, before 5.18 None."""
        return SockoptCalls(cgroup) if self.live else None


# What the observer copies: level, optname, optlen, bytes to optval_end, and the first of these.
_SIGHT = struct.Struct("=iiii")
_SEEN_MAX = 256
_FIELDS = {24: 0, 28: 4, 32: 8}  # offsets in struct bpf_sockopt, and in the sight
_TCP_ZEROCOPY_RECEIVE = 35


def _look() -> list[asm.Insn]:
    """Copy what there is to see of the context (r6) to the record (r7)."""
    code: list[asm.Insn] = []
    for offset, to in _FIELDS.items():
        code += [asm.load(4, 1, 6, offset), asm.store(4, 7, BODY + to, 1)]
    code += [asm.load(8, 2, 6, 8), asm.load(8, 3, 6, 16), asm.mov_reg(4, 3)]
    code += [asm.Insn(asm.ALU64 | 0x10 | asm.SRC_REG, 4, 2), asm.store(4, 7, BODY + 12, 4)]
    each = 5
    for n in range(_SEEN_MAX):
        past = asm.Insn(asm.JMP | asm.JGT | asm.SRC_REG, 4, 3, (_SEEN_MAX - n) * each - 3)
        code += [asm.mov_reg(4, 2), asm.alu_imm(asm.ADD, 4, n + 1), past]
        code += [asm.load(1, 5, 2, n), asm.store(1, 7, BODY + _SIGHT.size + n, 5)]
    return code


class _Case(NamedTuple):
    """What a request asks for."""

    sock: socket.socket
    level: int
    optname: int
    room: int
    failure: int  # 0 or a negative errno
    value: bytes


class SockoptCalls:
    """Calls of setsockopt(2) and getsockopt(2), with the programs that observe them.

    Args:
        cgroup: the one that the process, and so its sockets, are in.
    """

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._lock = threading.RLock()  # one record for all threads
        size = _SIGHT.size + _SEEN_MAX
        self._behind = {
            int(attach_type): Behind(ProgType.CGROUP_SOCKOPT, attach_type, size, _look())
            for attach_type in _CALLS.values()
        }

    @contextmanager
    def attached(self, program: ProgramRef) -> Iterator[Callable[[Request], RawOutcome]]:
        """Keep a program attached within the block; yield what makes one call."""
        refuse = f"run {program.name} on the engine live"
        behind = self._behind.get(program.attach_type)
        if behind is None:
            raise NotApplicableError(f"{refuse}: nobody knows what it was loaded for")

        def run(request: Request) -> RawOutcome:
            case = _case(refuse, request)
            get = program.attach_type == AttachType.CGROUP_GETSOCKOPT
            if get:
                _check_answer(refuse, case)
            with self._cgroup.attached(program.attach_type, program.fd, behind.fd):
                for _ in range(max(request.repeat, 1)):
                    sight = behind.watch(lambda: _call(case, get=get))
            if not sight.seen:
                failure = errno.errorcode.get(sight.failure, str(sight.failure))
                raise NotApplicableError(
                    f"{refuse}: the call ends with {failure} and asks no program; the socket may be"
                    " older than the engine"
                )
            return _outcome(refuse, case, sight, get=get)

        with self._lock:
            yield run

    def close(self) -> None:
        """Unload the observers."""
        for behind in self._behind.values():
            behind.close()


def _case(refuse: str, request: Request) -> _Case:
    if request.ctx is not None or request.flags or request.data is None or request.sock is None:
        raise NotApplicableError(f"{refuse}: a real call comes with a socket and an option")
    *_, level, optname, room, failure = _HEADER.unpack_from(request.data)
    case = _Case(request.sock, level, optname, room, failure, request.data[_HEADER.size :])
    if max(room, len(case.value)) > _SEEN_MAX:
        raise NotApplicableError(f"{refuse}: a value of more than {_SEEN_MAX} bytes is not seen")
    return case


def _check_answer(refuse: str, case: _Case) -> None:
    """See that the kernel answers as it was crafted."""
    asked = f"{refuse}: level {case.level}, optname {case.optname}"
    if not case.room:
        raise NotApplicableError(f"{asked}: a caller without room is not asked for")
    if case.level == socket.IPPROTO_TCP and case.optname == _TCP_ZEROCOPY_RECEIVE:
        raise NotApplicableError(f"{asked}: TCP_ZEROCOPY_RECEIVE comes by another way")
    if case.failure == -errno.EPERM:
        raise NotApplicableError(f"{asked}: EPERM of the kernel's is not told from a denial")
    value, failure = _ask_kernel(case.sock, case.level, case.optname, case.room)
    if (value or b"", -failure) != (case.value, case.failure):
        found = errno.errorcode.get(failure, failure) if failure else (value or b"").hex(" ")
        raise NotApplicableError(f"{asked}: the kernel answers {found}")


def _call(case: _Case, *, get: bool) -> int:
    try:
        if get:
            case.sock.getsockopt(case.level, case.optname, case.room)
        else:
            case.sock.setsockopt(case.level, case.optname, case.value)
    except OSError as error:
        return error.errno or 0
    return 0


def _outcome(refuse: str, case: _Case, sight: Sight, *, get: bool) -> RawOutcome:
    """Return what the module would answer: the hook's end of the call by what it saw."""
    level, optname, optlen, size = _SIGHT.unpack_from(sight.record)
    if sight.hook not in (0, -errno.EPERM, case.failure):
        failure = errno.errorcode.get(-sight.hook, str(-sight.hook))
        raise NotApplicableError(
            f"{refuse}: the program set the errno {failure}, and nothing shows what it returned"
        )
    denied = sight.hook == -errno.EPERM
    err, action = sight.hook, _KEEP
    if not err and (optlen > size or optlen < (0 if get else -1)):
        err = -errno.EFAULT
    elif not err and optlen:
        action = _BYPASS if optlen < 0 else _REPLACE
    retval = case.failure if denied else sight.hook
    data = _RESULT.pack(err, level, optname, optlen, retval, action, size)
    data += sight.record[_SIGHT.size :][:size]
    return RawOutcome(0 if denied else 1, b"", None, data, -err)


register(SockoptType(ProgType.CGROUP_SOCKOPT))
