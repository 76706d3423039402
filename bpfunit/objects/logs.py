"""What a program said during a run: ring-buffer records of its object, and ``bpf_printk``."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bpfunit._sys import bpf, libbpf
from bpfunit.objects.maps import Map
from bpfunit.values.records import INTEGERS

_TRACEFS = Path("/sys/kernel/tracing")
# "   task-123   [000] d..31  12.345678: bpf_trace_printk: text" (Documentation/trace/ftrace.rst)
# the command may hold anything, so the process id is the last number in front of the CPU
_TRACE_LINE = re.compile(r"^.*-(\d+)\s+\[\d+\].*?: bpf_trace_printk: (.*)$")


class LogLine(str):
    """One line of a program's own log; a str, with what came beside the text.

    ``ret`` is the first word of the record, which the mesh's hook uses for a level or a return
    code; ``map`` is the ring buffer it came from.
    """

    __slots__ = ("map", "ret")
    ret: int
    map: str

    @classmethod
    def from_record(cls, map_name: str, raw: bytes, record_type: Any = None) -> LogLine:
        """Read a record: {``__u32 ret; char msg[]``}, or a type with a number and a char array."""
        number, text = raw[:4], raw[4:]
        if record_type is not None:
            number, text = b"", b""
            for name, ctype in record_type._members_.items():
                field = getattr(record_type, name)
                part = raw[field.offset : field.offset + field.size]
                if getattr(ctype, "_type_", None) is ctypes.c_char:
                    text = text or part
                elif ctype in INTEGERS.values():
                    number = number or part
        line = cls(text.split(b"\0", 1)[0].decode(errors="replace").rstrip("\n"))
        line.ret = int.from_bytes(number, sys.byteorder, signed=True)
        line.map = map_name
        return line

    @property
    def text(self) -> str:
        """The text as a plain str."""
        return str(self)


class RingBuffers:
    """Drains all ring buffers of an object through libbpf; records as bytes, by map name.

    Args:
        maps: the object's maps of type RINGBUF (Linux 5.8).
    """

    def __init__(self, maps: Iterable[Map]) -> None:
        self._records: dict[str, list[bytes]] = {}
        self._handle = 0
        self._callbacks = []  # libbpf keeps their addresses, so they must outlive the handle
        lib = libbpf.lib()
        for ring in maps:
            callback = libbpf.RING_SAMPLE_FN(self._collector(ring.name))
            self._callbacks.append(callback)
            if self._handle:
                lib.ring_buffer__add(self._handle, ring.descriptor, callback, None)
            else:
                self._handle = lib.ring_buffer__new(ring.descriptor, callback, None, None)

    def _collector(self, name: str) -> Callable[[int, int, int], int]:
        def collect(_ctx: int, data: int, size: int) -> int:
            self._records.setdefault(name, []).append(ctypes.string_at(data, size))
            return 0

        return collect

    def drain(self) -> dict[str, list[bytes]]:
        """Return the records since the last call, oldest first."""
        if not self._handle:
            return {}
        libbpf.lib().ring_buffer__consume(self._handle)
        if not self._records:
            return {}
        records, self._records = self._records, {}
        return records

    def close(self) -> None:
        """Unmap the buffers."""
        if self._handle:
            libbpf.lib().ring_buffer__free(self._handle)
            self._handle = 0


class PerfBuffers:
    """Drains all perf event arrays of an object through libbpf; records as bytes, by map name.

    The kernel pads a record to a multiple of 8 bytes with its 4-byte length in front, so that zero
    bytes may follow what the program wrote (``tools/include/uapi/linux/perf_event.h``,
    PERF_SAMPLE_RAW).

    Args:
        maps: the object's maps of type PERF_EVENT_ARRAY; their slots are filled, one for each CPU.
    """

    _PAGES = 8  # for each CPU; a power of two

    def __init__(self, maps: Iterable[Map]) -> None:
        self._records: dict[str, list[bytes]] = {}
        self._callbacks = []  # libbpf keeps their addresses, so they must outlive the handles
        self._handles: list[int] = []
        for one in maps:
            callback = libbpf.PERF_SAMPLE_FN(self._collector(one.name))
            self._callbacks.append(callback)
            made = libbpf.lib().perf_buffer__new(
                one.descriptor, self._PAGES, callback, None, None, None
            )
            self._handles.append(made)

    def _collector(self, name: str) -> Callable[[int, int, int, int], None]:
        def collect(_ctx: int, _cpu: int, data: int, size: int) -> None:
            self._records.setdefault(name, []).append(ctypes.string_at(data, size))

        return collect

    def drain(self) -> dict[str, list[bytes]]:
        """Return the records since the last call, oldest first on each CPU."""
        for handle in self._handles:
            libbpf.lib().perf_buffer__consume(handle)
        records, self._records = self._records, {}
        return records

    def close(self) -> None:
        """Unmap the buffers and empty the slots."""
        for handle in self._handles:
            libbpf.lib().perf_buffer__free(handle)
        self._handles.clear()


class TraceReader:
    """Reads ``bpf_printk`` output from a tracing instance of its own (event since Linux 5.9).

    An instance sees the event without taking lines away from anyone who reads ``trace_pipe``.
    """

    def __init__(self) -> None:
        if not (_TRACEFS / "instances").is_dir():
            bpf.mount("tracefs", str(_TRACEFS))
        self._instance = _TRACEFS / "instances" / f"bpfunit-{os.getpid()}-{id(self):x}"
        self._instance.mkdir()
        self._pipe = -1
        try:
            event = self._instance / "events/bpf_trace/bpf_trace_printk/enable"
            event.write_text("1")
            pipe = self._instance / "trace_pipe"
            self._pipe = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self.close()
            raise

    def drain(self) -> list[str]:
        """Return the lines printed since the last call."""
        chunks = []
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._pipe, 1 << 16):
                chunks.append(chunk)
        lines = b"".join(chunks).decode(errors="replace").splitlines()
        if not lines:
            return []
        # a run happens in the thread that asked for it, whatever else prints on the machine
        own = threading.get_native_id()
        found = (_TRACE_LINE.match(line) for line in lines)
        return [match[2] for match in found if match and int(match[1]) == own]

    def close(self) -> None:
        """Remove the instance."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        with contextlib.suppress(OSError):
            self._instance.rmdir()
