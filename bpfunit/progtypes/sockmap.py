"""What the results of sk_msg and sk_skb programs share: a verdict that can be a redirection."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from bpfunit._sys.uapi import MapType
from bpfunit.objects.maps import Map
from bpfunit.progtypes.packet import PacketResult
from bpfunit.runs.bulk import BulkRun

SOCKET_MAPS = (MapType.SOCKMAP, MapType.SOCKHASH)
_SO_COOKIE = 57  # include/uapi/asm-generic/socket.h


class Answer(Protocol):
    """What the module says of a run, in front of the data."""

    @property
    def verdict(self) -> int:
        """What the kernel makes of the run."""
        ...

    @property
    def ingress(self) -> int:
        """Whether it goes to the target's receive queue."""
        ...

    @property
    def cookie(self) -> int:
        """The target's SO_COOKIE, 0 while nobody has asked for it."""
        ...

    @property
    def inode(self) -> int:
        """The ``st_ino`` of the target's descriptors."""
        ...


class Form(NamedTuple):
    """How a type's answers are read.

    Attributes:
        layout: of the C struct.
        answer: what its fields are called.
        verdicts: names of the verdicts, by number.
    """

    layout: struct.Struct
    answer: type[Any]
    verdicts: tuple[str, ...]

    def read(self, data: bytes) -> Any:
        """Return the answer in front of the data."""
        return self.answer(*self.layout.unpack_from(data))


class RedirectResult(PacketResult):
    """The outcome of a run that may send its data elsewhere."""

    form: ClassVar[Form]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._answer: Answer = self.form.read(self.outcome.data)

    @property
    def data(self) -> bytes:
        """The bytes after the run."""
        return self.outcome.data[self.form.layout.size :]

    @property
    def verdict(self) -> str:
        """What the kernel makes of the run: "pass", "drop", "redirect"; "parsed" for a parser.

        That is not the return value alone: SK_PASS with a target set is a redirect, and a program
        that ignores a redirect which failed, and returns SK_PASS, passes.
        """
        return self.form.verdicts[self._answer.verdict]

    @property
    def ingress(self) -> bool:
        """Whether it is redirected to the target's receive queue instead of being sent there."""
        return bool(self._answer.ingress)

    def redirected_to(self, where: socket.socket | Map, key: object = ...) -> bool:
        """Tell whether the program redirects to this socket, or to a map's entry.

        Args:
            where: a socket, or a sockmap or sockhash with 8-byte values: the kernel tells whose
                socket an entry is only where a cookie fits.
            key: the entry's key, where ``where`` is a map. The map is asked now.
        """
        if self.verdict != "redirect":
            return False
        if isinstance(where, Map):
            raw = where.lookup(key)
            return raw is not None and int.from_bytes(raw, sys.byteorder) == self._cookie()
        return self._answer.inode == os.fstat(where.fileno()).st_ino

    def target_entries(self, maps: Iterable[Map]) -> list[tuple[str, object]]:
        """Return name and key of the maps' entries that hold the target, as the maps are now.

        Maps that are no sockmap or sockhash, or have values of 4 bytes, are passed over.
        """
        return [
            (one.name, key)
            for one in maps
            if one.type in SOCKET_MAPS and one.value_size == 8
            for key in one
            if self.redirected_to(one, key)
        ]

    def _cookie(self) -> int | None:
        """The target's cookie; one that nobody had asked for is that of a descriptor of ours."""
        return self._answer.cookie or cookie_of_inode(self._answer.inode)


class RedirectRun(BulkRun):
    """One run of a bulk call of such a program."""

    __slots__ = ()

    form: ClassVar[Form]

    @property
    def data(self) -> bytes:
        """The bytes after the run."""
        return super().data[self.form.layout.size :]

    @property
    def verdict(self) -> str:
        """As :attr:`RedirectResult.verdict`; "" for a run that was refused."""
        answer = super().data
        return self.form.verdicts[self.form.read(answer).verdict] if answer else ""


def cookie_of_inode(inode: int) -> int | None:
    """Return SO_COOKIE of a socket that this process has a descriptor of, None of any other."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if str(entry.readlink()) != f"socket:[{inode}]":
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as ours:
                return cookie_of(ours)
        except OSError:
            continue  # closed meanwhile
    return None


def cookie_of(sock: socket.socket) -> int:
    """Return ``SO_COOKIE`` of a socket (Linux 4.12)."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0])
