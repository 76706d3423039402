"""Types whose runs by the module are made of a header and a payload: docs/module-types.md.

Their contexts have no field for a descriptor, so ``data_in`` begins with ``struct bpfunit_head`` of
vm/testrun/bpfunit_testrun.h, and ``data_out`` with the errno that the hook hands on.
"""

from __future__ import annotations

import struct

from bpfunit.progtypes.base import ContextError, ProgramType, RawOutcome, Request

VERSION = 1  # BPFUNIT_TESTRUN_VERSION
_SOCK = 8  # offset of the descriptor in struct bpfunit_head
_FD, _ERR = struct.Struct("=I"), struct.Struct("=i")


class HeadedType(ProgramType):
    """A type that is run on a socket, whose descriptor goes into the header.

    Attributes:
        wants_socket: what to do about a bulk call without one.
    """

    wants_socket = "pass sock="

    def encode(self, request: Request) -> tuple[bytes | None, bytes | None]:
        """Return ``data_in`` with the socket's descriptor in its header.

        Raises:
            ContextError: there is no socket.
        """
        data = request.data
        if request.sock is None:
            raise ContextError(f"run {self.name} programs many times: {self.wants_socket}")
        if data is not None and len(data) >= self.headers[0]:
            fd = _FD.pack(request.sock.fileno() & 0xFFFFFFFF)
            data = data[:_SOCK] + fd + data[_SOCK + _FD.size :]
        return request.ctx, data

    def decode(self, retval: int, ctx: bytes, data: bytes, duration_ns: int | None) -> RawOutcome:
        """Take the hook's error out of the answer; the type's result does the rest."""
        err = _ERR.unpack_from(data)[0] if len(data) >= self.headers[1] else 0
        return RawOutcome(retval, ctx, duration_ns, data, -min(err, 0))
