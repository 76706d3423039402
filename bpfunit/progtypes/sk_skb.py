"""``sk_skb`` programs: the parser and the verdict of a sockmap (Linux 4.14), run by the module.

They see what came in on a TCP socket. A parser says how long a message is, a verdict whether it is
passed on, dropped, or redirected to another socket.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

from bpfunit._sys.sockets import tcp_pair
from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.progtypes.base import ContextError, Request, register
from bpfunit.progtypes.headed import VERSION, HeadedType
from bpfunit.progtypes.sockmap import Form, RedirectResult, RedirectRun
from bpfunit.runs.program import Program

# struct bpfunit_sk_skb, bpfunit_sk_skb_result of vm/testrun/bpfunit_testrun.h
_HEADER, _RESULT = struct.Struct("=4I3I20x"), struct.Struct("=iIIIIIQQ")
_HOOKS = {"parser": 1, "verdict": 2}
_VERDICTS = ("drop", "pass", "redirect", "parsed")  # enum bpfunit_sk_skb_verdict
_HEADROOM = 256  # bytes that a program may add by default
_MAX = 65536  # BPFUNIT_SK_SKB_MAX


class _Answer(NamedTuple):
    """``struct bpfunit_sk_skb_result``."""

    err: int
    verdict: int
    size: int
    ingress: int
    priority: int
    tc_index: int
    cookie: int
    inode: int


_FORM = Form(_RESULT, _Answer, _VERDICTS)


class SkSkbResult(RedirectResult):
    """The outcome of a run of an sk_skb program."""

    form = _FORM
    _answer: _Answer

    @property
    def length(self) -> int:
        """What a parser returned: bytes of the message, 0 for more data, or a negative errno."""
        return self.retval

    @property
    def priority(self) -> int:
        """``skb->priority`` after the run."""
        return self._answer.priority

    @property
    def tc_index(self) -> int:
        """``skb->tc_index`` after the run."""
        return self._answer.tc_index


class SkSkbRun(RedirectRun):
    """One run of a bulk call of an sk_skb program."""

    __slots__ = ()

    form = _FORM


class SkSkbProgram(Program):
    """A parser or verdict of a sockmap: what came in on a socket."""

    result_class = SkSkbResult
    run_class = SkSkbRun

    @property
    def hook(self) -> str:
        """As what the program was loaded: "parser", "verdict"; "verdict" where nobody said."""
        return "parser" if self.attach_type == AttachType.SK_SKB_STREAM_PARSER else "verdict"

    def run(
        self,
        data: bytes,
        *,
        sock: socket.socket | None = None,
        hook: str | None = None,
        linear: int = 0,
        priority: int = 0,
        headroom: int = _HEADROOM,
        repeat: int = 1,
        observe: bool = True,
    ) -> SkSkbResult:
        """Run the program on what came in on a socket and return what it did.

        Args:
            data: the bytes that came in, without headers; 1 to 65,536.
            sock: the connected TCP socket that received them; by default one of a pair made for
                the run. It need not be in a sockmap.
            hook: "parser" or "verdict", where the section (``sk_skb``) says neither.
            linear: how many bytes in front lie between ``data`` and ``data_end``. Real programs see
                none on loopback, and have to pull.
            priority: ``skb->priority``.
            headroom: bytes by which the program may lengthen the data.
            repeat: how often to run, each time on the data as crafted.
            observe: see :meth:`bpfunit.Program.run`.

        Raises:
            ContextError: no bytes, more linear bytes than there are, or another hook than the
                program was loaded for.
            SyscallError: the module refused the run: ENOTCONN for a socket without another end,
                EPROTOTYPE or EAFNOSUPPORT for one that is not TCP, EOPNOTSUPP for a parser that can
                change the data, which Linux 7.2 does not attach; 524 (ENOTSUPP) without the module.
        """
        self.check_open()
        request = self._request(data, hook, linear, priority, headroom)
        with ExitStack() as stack:
            used = sock if sock is not None else stack.enter_context(tcp_pair())[1]
            result = self.execute(
                request._replace(sock=used, repeat=repeat),
                observe=observe,
                data_in=bytes(data),
            )
        return cast("SkSkbResult", result)

    def _request(
        self, data: bytes, hook: str | None, linear: int, priority: int, headroom: int
    ) -> Request:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            self.refuse_input(data)
        data = bytes(data)
        wanted = hook or self.hook
        if wanted not in _HOOKS:
            raise ContextError(f'run {self.name}: hook={wanted!r}; write "parser" or "verdict"')
        if hook and self.attach_type and hook != self.hook:
            raise ContextError(
                f"run {self.name} as {hook}: it was loaded as {self.hook}"
                f" ({self.program_type.attach_name(self.attach_type)})"
            )
        if not 0 < len(data) <= _MAX:
            raise ContextError(
                f"run {self.name}: {len(data)} bytes came in; 1 to {_MAX} can be crafted"
            )
        if not 0 <= linear <= len(data):
            raise ContextError(f"run {self.name}: linear={linear} of {len(data)} bytes")
        header = _HEADER.pack(VERSION, 0, 0, 0, _HOOKS[wanted], linear, priority)
        return Request(None, None, 1, header + data, _RESULT.size + len(data) + headroom)

    def as_request(self, given: Any) -> Request:
        """Return the run on one input of :meth:`run_many`: bytes; it takes ``sock``."""
        return self._request(given, None, 0, 0, _HEADROOM)


class SkSkbType(HeadedType):
    """What is known of ``BPF_PROG_TYPE_SK_SKB``."""

    sections: Mapping[str, int] = {
        "sk_skb": 0,
        "sk_skb/stream_parser": AttachType.SK_SKB_STREAM_PARSER,
        "sk_skb/stream_verdict": AttachType.SK_SKB_STREAM_VERDICT,
        "sk_skb/verdict": AttachType.SK_SKB_VERDICT,
    }
    takes = "the bytes that came in (data=)"
    signed = True
    headers = (_HEADER.size, _RESULT.size)
    hints: Mapping[int, str] = {
        errno.EOPNOTSUPP: "the program is a parser that can change the data, and this kernel"
        " attaches none (Linux 7.2); let it read with bpf_skb_load_bytes()",
        errno.ENOTCONN: "the socket has no other end; take one of bpfunit.tcp_pair()",
        errno.EPROTOTYPE: "the socket is not TCP; take one of bpfunit.tcp_pair()",
        errno.EAFNOSUPPORT: "the socket is not TCP; take one of bpfunit.tcp_pair()",
    }
    wants_socket = "pass sock=, which received it"
    program_class = SkSkbProgram
    example = 'b"GET / HTTP/1.1"'


register(SkSkbType(ProgType.SK_SKB))
