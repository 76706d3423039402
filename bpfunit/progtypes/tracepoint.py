"""``tracepoint`` programs, which see the record of an event; run by the module.

Events happen wherever the kernel comes by, so there is no ordinary call that brings about a crafted
record: the type runs by test run alone.
"""

from __future__ import annotations

import errno
import re
import struct
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from bpfunit._sys import bpf
from bpfunit._sys.uapi import ProgType
from bpfunit.errors import NotFoundError
from bpfunit.progtypes.base import ContextError, ProgramType, Request, register
from bpfunit.progtypes.kprobe import header
from bpfunit.runs.program import Program
from bpfunit.runs.result import Result

_TRACEFS = Path("/sys/kernel/tracing")


class Field(NamedTuple):
    """One field of a tracepoint's record, as tracefs describes it."""

    type: str
    offset: int
    size: int


@lru_cache(maxsize=64)
def event_fields(event: str) -> dict[str, Field]:
    """Return the fields of an event's record behind the eight bytes that are the kernel's.

    Args:
        event: system and name, "sched/sched_process_exit".

    Raises:
        NotFoundError: this kernel has no such event.
    """
    if not (_TRACEFS / "events").is_dir():
        bpf.mount("tracefs", str(_TRACEFS))
    path = _TRACEFS / "events" / event / "format"
    if not path.is_file():
        near = path.parent.parent
        known = sorted(one.name for one in near.iterdir() if one.is_dir()) if near.is_dir() else []
        raise NotFoundError("look up tracepoint", event, [f"{near.name}/{one}" for one in known])
    found = {}
    form = re.compile(r"\tfield:(.*?)(\w+)(\[\d*\])?;\toffset:(\d+);\tsize:(\d+);")
    for line in path.read_text().splitlines():
        if match := form.match(line):
            c_type, name, array, offset, size = match.groups()
            if int(offset) >= 8:
                found[name] = Field(c_type.strip() + (array or ""), int(offset), int(size))
    return found


class TracepointProgram(Program):
    """A program on a tracepoint: the record of an event."""

    def run(
        self,
        record: Any = None,
        *,
        event: str | None = None,
        cookie: int = 0,
        repeat: int = 1,
        observe: bool = True,
        **fields: Any,
    ) -> Result:
        """Run the program as if its event happened, and return what it did.

        Args:
            record: the whole record as the event's ``format`` in tracefs describes it: bytes, or a
                structure of the object's BTF (``obj.types["struct trace_event_raw_sys_enter"]``).
                Its first eight bytes are 0: programs cannot see them.
            event: "sched/sched_process_exit", by default that of the program's section.
            cookie: what ``bpf_get_attach_cookie()`` returns (Linux 5.15).
            repeat: how often to run.
            observe: see :meth:`bpfunit.Program.run`.
            **fields: in place of a record, its fields by the names in ``format``: numbers, text or
                bytes for characters, lists for arrays; text of any length for ``__data_loc``. What
                is left out is 0.

        Returns:
            The result: ``verdict`` says what perf makes of the return value, "filtered out" or
            "stored".

        Raises:
            ContextError: a record and fields, no event to take fields of, or a value that does not
                fit its field.
            NotFoundError: this kernel has no such event, or the event no such field.
            SyscallError: the module refused the run: EACCES for a record that is shorter than what
                the program reads, as attaching it to such an event is refused; 524 (ENOTSUPP)
                without the module.
        """
        self.check_open()
        if record is not None and fields:
            raise ContextError(f"run {self.name}: a whole record, and {', '.join(fields)} besides")
        raw = bytes(record) if record is not None else self.craft(event, **fields)
        request = Request(raw, None, repeat, header(cookie))
        result: Result = self.execute(
            request, record if record is not None else raw, observe=observe
        )
        return result

    def craft(self, event: str | None = None, **fields: Any) -> bytes:
        """Return the record that :meth:`run` would craft from fields."""
        section, _, rest = self.section.removeprefix("?").partition("/")
        name = event or (rest if section in ("tracepoint", "tp") else "")
        if "/" not in name:
            raise ContextError(
                f"run {self.name}: its section {self.section!r} names no event; say"
                ' event="sched/sched_process_exit", or pass the whole record'
            )
        known = event_fields(name)
        raw = bytearray(max((one.offset + one.size for one in known.values()), default=8))
        for field, value in fields.items():
            if field not in known:
                raise NotFoundError(f"craft a record of {name}", field, sorted(known))
            self._put(raw, field, known[field], value)
        return bytes(raw)

    def _put(self, raw: bytearray, name: str, field: Field, value: Any) -> None:
        if field.type.startswith("__data_loc"):
            text = value.encode() + b"\0" if isinstance(value, str) else bytes(value)
            struct.pack_into("=I", raw, field.offset, len(text) << 16 | len(raw))
            raw += text
            return
        encoded = self._encoded(name, field, value)
        if len(encoded) > field.size:
            raise ContextError(
                f"run {self.name}: {name}={value!r} does not fit {field.type}, {field.size} bytes"
            )
        raw[field.offset : field.offset + len(encoded)] = encoded

    def _encoded(self, name: str, field: Field, value: Any) -> bytes:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        count = re.search(r"\[(\d+)\]", field.type)
        many = [*value] if isinstance(value, (list, tuple)) else [value]
        size = field.size // int(count[1]) if count and int(count[1]) else field.size
        try:
            masked = [int(one) & (1 << 8 * size) - 1 for one in many]
        except (TypeError, ValueError) as error:
            raise ContextError(f"run {self.name}: {name}={value!r}: {error}") from error
        if any(not -(1 << 8 * size - 1) <= int(one) < 1 << 8 * size for one in many):
            raise ContextError(f"run {self.name}: {name}={value!r} does not fit {field.type}")
        return b"".join(one.to_bytes(size, sys.byteorder) for one in masked)

    @property
    def runs_on_contexts(self) -> bool:
        """No: records have the length of their event."""
        return False

    def as_request(self, given: Any) -> Request:
        """Return the run of one input of :meth:`run_many`: fields in a dict, or a record."""
        raw = self.craft(**given) if isinstance(given, Mapping) else bytes(given)
        return Request(raw)


class TracepointType(ProgramType):
    """What is known of ``BPF_PROG_TYPE_TRACEPOINT``."""

    sections: Mapping[str, int] = {"tracepoint": 0, "tp": 0}
    named_sections = True
    takes = "the fields of its event, or a record (bytes)"
    verdicts: Mapping[int, str] = {0: "filtered out", 1: "stored"}
    hints: Mapping[int, str] = {
        errno.EINVAL: "the record is missing, shorter than 8 bytes, or its first 8 bytes are not 0",
        errno.EACCES: "the program reads past the end of the record, so that it cannot be attached"
        " to such an event",
        errno.E2BIG: "records have at most 8192 bytes (PERF_MAX_TRACE_SIZE)",
        errno.EOPNOTSUPP: "this kernel knows no cookies (Linux 5.15)",
    }
    program_class = TracepointProgram


register(TracepointType(ProgType.TRACEPOINT))
