"""The objects that wait for the next test, and the account of those that could not."""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from bpfunit.errors import BpfunitError
from bpfunit.objects.object import Object, load
from bpfunit.reuse.key import key_of
from bpfunit.reuse.rewind import Rewind


@dataclass
class Report:
    """What became of the loads of a session.

    Attributes:
        rewound: loads that were served by an object of an earlier test.
        fresh: loads into the kernel.
        reasons: why objects were not kept for another test, each with how often.
    """

    rewound: int = 0
    fresh: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass
class _Kept:
    obj: Object
    rewind: Rewind
    key: Hashable


class Pool:
    """Hands out loaded objects, and takes them back for the next who wants the same load.

    Args:
        room: how many objects may wait; those that waited longest are closed.
    """

    def __init__(self, room: int = 8) -> None:
        self.report = Report()
        self._room = room
        self._idle: OrderedDict[int, _Kept] = OrderedDict()
        self._lent: dict[int, _Kept] = {}
        self._unfit: dict[Hashable, str] = {}
        self._serial = 0
        self._process = os.getpid()
        self._lock = threading.RLock()

    def load(self, path: str | os.PathLike[str], **options: Any) -> Object:
        """Return an object as :func:`bpfunit.load` gives it, from an earlier test where one is.

        Hand it to :meth:`give_back` at the end.

        Raises:
            BpfunitError: as :func:`bpfunit.load`.
        """
        if os.getpid() != self._process:
            return load(path, **options)  # in a forked child: what waits is its parent's
        with self._lock:
            try:
                key = key_of(path, options)
            except (BpfunitError, OSError) as error:
                return self._load(path, options, str(error))
            for number, kept in self._idle.items():
                if kept.key == key:
                    del self._idle[number]
                    self._lent[id(kept.obj)] = kept
                    self.report.rewound += 1
                    return kept.obj
            if reason := self._unfit.get(key, ""):
                return self._load(path, options, reason)
            obj = self._load(path, options)
            try:
                self._lent[id(obj)] = _Kept(obj, Rewind(obj), key)
            except (BpfunitError, OSError) as error:
                self._unfit[key] = str(error)
                self.report.reasons[str(error)] += 1
            return obj

    def _load(
        self, path: str | os.PathLike[str], options: dict[str, Any], reason: str = ""
    ) -> Object:
        self.report.fresh += 1
        if reason:
            self.report.reasons[reason] += 1
        return load(path, **options)

    def give_back(self, obj: Object) -> None:
        """Put an object back for the next test; close it where that is not possible."""
        if os.getpid() != self._process:
            obj.close()  # the descriptors of a forked child; the parent's test goes on
            return
        with self._lock:
            kept = self._lent.pop(id(obj), None)
            if kept is None or not obj.is_open:
                if kept is not None:
                    self.report.reasons["the test closed it"] += 1
                obj.close()
                return
            try:
                kept.obj = kept.rewind.rewind(obj)
            except (BpfunitError, OSError) as error:
                self.report.reasons[str(error)] += 1
                obj.close()
                return
            self._serial += 1
            self._idle[self._serial] = kept
            while len(self._idle) > self._room:
                _, oldest = self._idle.popitem(last=False)
                oldest.obj.close()

    def close(self) -> None:
        """Close the objects that wait."""
        if os.getpid() != self._process:
            return
        with self._lock:
            for kept in self._idle.values():
                kept.obj.close()
            self._idle.clear()
