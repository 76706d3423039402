"""What the results of sk_msg and sk_skb programs share: a verdict that can be a redirection."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from bpfunit._sys.uapi import MapType
from bpfunit.objects.maps import Map
from bpfunit.progtypes.packet import PacketResult

SOCKET_MAPS = (MapType.SOCKMAP, MapType.SOCKHASH)
_SO_COOKIE = 57  # include/uapi/asm-generic/socket.h


class Target(Protocol):
    """What the module says of the socket that a program redirects to."""

    @property
    def cookie(self) -> int:
        """Its SO_COOKIE, 0 while nobody has asked for it."""
        ...

    @property
    def inode(self) -> int:
        """The ``st_ino`` of its descriptors."""
        ...


class RedirectResult(PacketResult):
    """The outcome of a run that may send its data elsewhere."""

    redirect_target: Target

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
        return self.redirect_target.inode == os.fstat(where.fileno()).st_ino

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
        return self.redirect_target.cookie or _cookie_of(self.redirect_target.inode)


def _cookie_of(inode: int) -> int | None:
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if str(entry.readlink()) != f"socket:[{inode}]":
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as ours:
                raw = ours.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
        except OSError:
            continue  # closed meanwhile
        return int(struct.unpack("=Q", raw)[0])
    return None
