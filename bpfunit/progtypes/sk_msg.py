"""``sk_msg`` programs: a message on its way out of a TCP socket (Linux 4.17).

The kernel asks the program of a sockmap about what one of the map's sockets sends: it goes on,
nowhere, or to another socket, and the program may put bytes in, take some out, or ask to see more.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.sockets import tcp_pair
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.progtypes.base import ContextError, LiveCalls, Request, register
from bpfunit.progtypes.headed import VERSION, HeadedType
from bpfunit.progtypes.sk_msg_live import Crafted, SkMsgCalls
from bpfunit.progtypes.sockmap import Form, RedirectResult, RedirectRun
from bpfunit.runs.program import Program

# struct bpfunit_sk_msg, bpfunit_sk_msg_result of vm/testrun/bpfunit_testrun.h
_HEADER, _RESULT = struct.Struct("=4I16I"), struct.Struct("=iIIIIIQQ")
_SHARED = 1  # BPFUNIT_SK_MSG_SHARED
_FRAGMENTS = 16  # BPFUNIT_SK_MSG_FRAGMENTS
_VERDICTS = ("drop", "pass", "redirect")  # enum bpfunit_sk_msg_verdict
_HEADROOM = 256  # bytes that a program may add by default
_MAX = 65536  # BPFUNIT_SK_MSG_MAX


class _Answer(NamedTuple):
    """``struct bpfunit_sk_msg_result``."""

    err: int
    verdict: int
    size: int
    apply_bytes: int
    cork_bytes: int
    ingress: int
    cookie: int
    inode: int


_FORM = Form(_RESULT, _Answer, _VERDICTS)


class SkMsgResult(RedirectResult):
    """The outcome of a run of an sk_msg program.

    ``errno`` is what the sender's system call ends with: EACCES for a drop.
    """

    form = _FORM
    _answer: _Answer

    @property
    def apply_bytes(self) -> int:
        """For how many bytes the verdict is to hold (``bpf_msg_apply_bytes``), 0 for these."""
        return self._answer.apply_bytes

    @property
    def cork_bytes(self) -> int:
        """How many bytes the program wants to see at once (``bpf_msg_cork_bytes``), or 0."""
        return self._answer.cork_bytes


class SkMsgRun(RedirectRun):
    """One run of a bulk call of an sk_msg program."""

    __slots__ = ()

    form = _FORM


class SkMsgProgram(Program):
    """A program that is asked about what a socket sends."""

    result_class = SkMsgResult
    run_class = SkMsgRun

    def run(
        self,
        data: bytes,
        *,
        sock: socket.socket | None = None,
        fragments: Sequence[int] = (),
        shared: bool = False,
        headroom: int = _HEADROOM,
        repeat: int = 1,
        observe: bool = True,
    ) -> SkMsgResult:
        """Run the program on a message of a socket and return what it did.

        Args:
            data: the message, 1 to 65,536 bytes.
            sock: the connected TCP socket that sends it; by default one of a pair made for the run.
                It need not be in a sockmap.
            fragments: lengths in bytes, up to 16 that add up to the message: of each buffer of
                ``sendmsg(2)``. The program sees the first until it pulls. One by default.
            shared: the pages are somebody else's, as after ``sendfile(2)``: the program sees
                nothing until it pulls.
            headroom: bytes by which the program may lengthen the message.
            repeat: how often to run, each time on the message as crafted.
            observe: see :meth:`bpfunit.Program.run`.

        Raises:
            ContextError: no bytes, too many, or fragments that are not the message.
            SyscallError: the module refused the run: ENOTCONN for a socket that cannot send,
                EPROTOTYPE or EAFNOSUPPORT for one that is not TCP, E2BIG for fragments of too many
                pages; 524 (ENOTSUPP) without the module.
        """
        self.check_open()
        request = self._request(data, fragments, shared, headroom)
        with ExitStack() as stack:
            used = sock if sock is not None else stack.enter_context(tcp_pair())[0]
            result = self.execute(
                request._replace(sock=used, repeat=repeat), observe=observe, data_in=bytes(data)
            )
        return cast("SkMsgResult", result)

    def _request(
        self, data: bytes, fragments: Sequence[int], shared: bool, headroom: int
    ) -> Request:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            self.refuse_input(data)
        data = bytes(data)
        if not 0 < len(data) <= _MAX:
            raise ContextError(
                f"run {self.name}: a message of {len(data)} bytes; 1 to {_MAX} can be crafted"
            )
        lengths = list(fragments)
        if lengths and (min(lengths) < 1 or sum(lengths) != len(data)):
            raise ContextError(
                f"run {self.name}: fragments={lengths} of a message of {len(data)} bytes; give"
                " lengths of 1 and more that add up to it"
            )
        if len(lengths) > _FRAGMENTS:
            raise ContextError(
                f"run {self.name}: {len(lengths)} fragments; {_FRAGMENTS} can be crafted"
            )
        flags = _SHARED if shared else 0
        padding = [0] * (_FRAGMENTS - len(lengths))
        header = _HEADER.pack(VERSION, flags, 0, 0, *lengths, *padding)
        return Request(None, None, 1, header + data, _RESULT.size + len(data) + headroom)

    def as_request(self, given: Any) -> Request:
        """Return the run on one input of :meth:`run_many`: bytes; it takes ``sock``."""
        return self._request(given, (), False, _HEADROOM)


def _crafted(data: bytes) -> Crafted:
    """Read what :meth:`SkMsgProgram.run` has packed."""
    _, flags, _, _, *lengths = _HEADER.unpack_from(data)
    fragments = tuple(length for length in lengths if length)
    return Crafted(data[_HEADER.size :], fragments, bool(flags & _SHARED))


def _live_answer(
    *,
    error: int,
    redirected: bool,
    apply_bytes: int,
    cork_bytes: int,
    ingress: int,
    target: tuple[int, int],
    data: bytes,
) -> bytes:
    """Return what the module would have answered to what a real send did."""
    verdict = "drop" if error else "redirect" if redirected else "pass"
    where = (ingress, *target) if redirected else (0, 0, 0)
    numbers = (-error, _VERDICTS.index(verdict), len(data), apply_bytes, cork_bytes, *where)
    return _RESULT.pack(*numbers) + data


class SkMsgType(HeadedType):
    """What is known of ``BPF_PROG_TYPE_SK_MSG``."""

    live = True
    sections: Mapping[str, int] = {"sk_msg": AttachType.SK_MSG_VERDICT}
    takes = "the message (data=)"
    headers = (_HEADER.size, _RESULT.size)
    hints: Mapping[int, str] = {
        errno.ENOTCONN: "the socket cannot send; take one of bpfunit.tcp_pair()",
        errno.EPROTOTYPE: "the socket is not TCP; take one of bpfunit.tcp_pair()",
        errno.EAFNOSUPPORT: "the socket is not TCP; take one of bpfunit.tcp_pair()",
        errno.E2BIG: "the fragments have too many pages for one message",
    }
    wants_socket = "pass sock=, which sends"
    program_class = SkMsgProgram
    example = 'b"GET / HTTP/1.1"'

    def make_live_calls(self, cgroup: Cgroup) -> LiveCalls:
        """Return the sends of sockets of a sockmap."""
        return SkMsgCalls(_crafted, _live_answer)


register(SkMsgType(ProgType.SK_MSG))
