"""Which loads are the same: a key of everything that a load depends on."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Hashable, Mapping
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from bpfunit import engines
from bpfunit.errors import BpfunitError
from bpfunit.rewrite import ambient
from bpfunit.values import sources
from bpfunit.values.net import IP

_PLAIN = (bool, int, float, str, bytes, type(None))
# what a load is given and what can be compared; passes are code, and pins are outside of the object
_COMPARED = {
    "globals",
    "map_types",
    "types",
    "programs",
    "max_entries",
    "log_maps",
    "trace_tail_calls",
    "engine",
}


class NotReusableError(BpfunitError):
    """An object has to be loaded afresh; the message says why, and is counted."""


def key_of(path: str | os.PathLike[str], options: Mapping[str, Any]) -> Hashable:
    """Return what two loads have in common exactly if either can stand for the other.

    Args:
        path: the object.
        options: those of :func:`bpfunit.load`.

    Raises:
        NotReusableError: an option cannot be compared, or does something outside of the object.
        OSError: there is no such file.
    """
    for name, value in options.items():
        if name not in _COMPARED and value not in (None, (), []):
            raise NotReusableError(f"loaded with {name}=")
    engine = engines.get(options.get("engine")).name
    if engine != "testrun":
        raise NotReusableError(f"the engine is {engine}")
    given = {name: options[name] for name in sorted(options) if name in _COMPARED}
    try:
        # the passes of the process are compared as objects: they are the session's
        return (
            str(Path(path)),
            content_of(Path(path)),
            frozen({name: one for name, one in given.items() if name != "types"}),
            # types of one content are one object in a process, and do not change
            sources.named_types(given.get("types")),
            tuple(ambient.passes()),
        )
    except TypeError as error:
        raise NotReusableError(f"an option of the load cannot be compared: {error}") from None


def frozen(value: Any) -> Hashable:
    """Return a value that is equal to another one's only if the two values mean the same.

    Raises:
        TypeError: that cannot be told of this value.
    """
    kind = type(value)
    if kind in _PLAIN or isinstance(value, type):
        return kind, value
    if kind is IP:
        return kind, value.packed
    if isinstance(value, Enum):
        return kind, value.name
    if isinstance(value, Mapping):
        return "mapping", tuple((frozen(key), frozen(one)) for key, one in value.items())
    if kind in (list, tuple, set, frozenset):
        items = sorted(value) if kind in (set, frozenset) else value
        return kind, tuple(map(frozen, items))
    if isinstance(value, (ctypes.Structure, ctypes.Union, ctypes.Array)):
        return kind, bytes(value)
    raise TypeError(f"{kind.__name__} in it")


def content_of(path: Path) -> bytes:
    """Return the content of a file, read again when it may have changed.

    Raises:
        OSError: it cannot be read.
    """
    return _content(path.absolute(), *_state(path))


def _state(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@lru_cache(maxsize=32)
def _content(path: Path, *_state: int) -> bytes:
    return path.read_bytes()
