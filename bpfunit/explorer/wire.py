"""Inputs and outcomes of runs, and the bytes in which ``_native/explore.c`` takes and gives them.

An *input* is all that a run depends on: what the maps hold, how stubbed helpers answer, and one
crafted context or packet after another on one socket.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bpfunit.explorer.facts import BRANCH, KEY, Facts

Record = tuple[int, int, int, bytes]
"""A site's number, the operands a and b (0 where there is none), the key."""


class Step(NamedTuple):
    """One run: its context and its packet; b"" for none."""

    ctx: bytes
    data: bytes = b""


class Input(NamedTuple):
    """An input.

    Attributes:
        steps: the runs, in order, on one socket.
        entries: (map, key, value), by map and key; what they do not name is as at the load.
        stubs: (slot, answer) of the stubs that answer otherwise than by default.
    """

    steps: tuple[Step, ...]
    entries: tuple[tuple[int, bytes, bytes], ...] = ()
    stubs: tuple[tuple[int, int], ...] = ()

    def to_plain(self) -> list[Any]:
        """Return it as what any channel carries."""
        return [[tuple(step) for step in self.steps], self.entries, self.stubs]

    @classmethod
    def from_plain(cls, plain: Sequence[Any]) -> Input:
        """Make it of what :meth:`to_plain` gave."""
        steps, entries, stubs = plain
        return cls(tuple(Step(*one) for one in steps), tuple(entries), tuple(stubs))

    def with_entry(self, number: int, key: bytes, value: bytes | None) -> Input:
        """Return it with another value of one entry, without the entry for None."""
        kept = {(m, k): v for m, k, v in self.entries if (m, k) != (number, key)}
        if value is not None:
            kept[number, key] = value
        return self._replace(entries=tuple(sorted((m, k, v) for (m, k), v in kept.items())))

    def with_stub(self, slot: int, answer: int | None) -> Input:
        """Return it with another answer of one stub, with the default for None."""
        kept = {s: a for s, a in self.stubs if s != slot}
        if answer is not None:
            kept[slot] = answer & (1 << 64) - 1
        return self._replace(stubs=tuple(sorted(kept.items())))

    def with_step(self, index: int, step: Step) -> Input:
        """Return it with another step in place of one."""
        return self._replace(steps=(*self.steps[:index], step, *self.steps[index + 1 :]))


class StepOutcome(NamedTuple):
    """What one run did.

    Attributes:
        errno: of the run itself, 0 when it ran.
        verdict: what the hook hands to its system call: 0 or a negative errno.
        lost: records that did not fit.
        log: (ring buffer, record) of what was written to ring buffers.
    """

    errno: int
    retval: int
    verdict: int
    ctx: bytes
    data: bytes
    lost: int
    records: list[Record]
    log: list[tuple[int, bytes]]


class Outcome(NamedTuple):
    """What an input did.

    Attributes:
        refused: the errno of an entry that the kernel did not take, 0 for none.
        steps: of each run.
        entries: what the maps held afterwards under every key that was set or asked for.
    """

    refused: int
    steps: list[StepOutcome]
    entries: dict[tuple[int, bytes], bytes]


class Wire:
    """Encodes inputs and decodes outcomes of one program, in the byte order of its kernel."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        order = "<" if facts.order == "little" else ">"
        self._u16, self._u32, self._two, self._step_head, self._stub = (
            struct.Struct(order + layout) for layout in ("H", "I", "II", "iIiI", "IQQ")
        )
        self._shapes = []
        for site in facts.sites:
            has_b = site.kind == BRANCH and site.imm is None
            layout = order + "Q" * (site.kind != KEY) + "Q" * has_b
            packed = struct.Struct(layout + f"{site.key_size}s" * (site.key_size > 0))
            fixed = 0 if site.imm is None else site.imm & (1 << 64) - 1
            self._shapes.append((packed, site.kind == KEY, has_b, fixed))

    def encode(self, inputs: Iterable[Input]) -> bytes:
        """Return the bytes of inputs, one after another."""
        parts = []
        for given in inputs:
            body = [self._u32.pack(len(given.steps))]
            stubs = self._facts.stubs
            body.append(self._u32.pack(len(given.stubs)))
            for slot, answer in given.stubs:
                assert slot < len(stubs)
                body.append(self._stub.pack(slot, 1, answer))
            body.append(self._u32.pack(len(given.entries)))
            for number, key, value in given.entries:
                body += (self._u32.pack(number), key, value)
            for step in given.steps:
                body += (self._u32.pack(len(step.ctx)), step.ctx)
                body += (self._u32.pack(len(step.data)), step.data)
            joined = b"".join(body)
            parts.append(self._u32.pack(len(joined)) + joined)
        return b"".join(parts)

    def decode(self, raw: bytes) -> list[Outcome]:
        """Read outcomes."""
        found, at = [], 0
        while at < len(raw):
            (size,) = self._u32.unpack_from(raw, at)
            found.append(self._outcome(raw, at + 4))
            at += 4 + size
        return found

    def _outcome(self, raw: bytes, at: int) -> Outcome:
        count, refused = self._two.unpack_from(raw, at)
        at += 8
        steps = []
        for _ in range(count):
            step, at = self._step(raw, at)
            steps.append(step)
        (size,) = self._u32.unpack_from(raw, at)
        at += 4
        end, entries = at + size, {}
        while at < end:
            (number,) = self._u32.unpack_from(raw, at)
            one = self._facts.maps[number]
            at += 4
            value_at = at + one.key_size
            entries[number, raw[at:value_at]] = raw[value_at : value_at + one.stride]
            at = value_at + one.stride
        return Outcome(refused, steps, entries)

    def _step(self, raw: bytes, at: int) -> tuple[StepOutcome, int]:
        errno, retval, verdict, size = self._step_head.unpack_from(raw, at)
        at += self._step_head.size
        ctx = raw[at : at + size]
        at += size
        (size,) = self._u32.unpack_from(raw, at)
        at += 4
        data = raw[at : at + size]
        at += size
        head, size = self._two.unpack_from(raw, at)
        at += 8
        records = self._records(raw, at, at + size)
        at += size
        (size,) = self._u32.unpack_from(raw, at)
        at += 4
        log, end = [], at + size
        while at < end:
            ring, length = self._two.unpack_from(raw, at)
            log.append((ring, raw[at + 8 : at + 8 + length]))
            at += 8 + length
        lost = max(0, head - len(records))
        return StepOutcome(errno, retval, verdict, ctx, data, lost, records, log), at

    def _records(self, raw: bytes, at: int, end: int) -> list[Record]:
        shapes, found = self._shapes, []
        while at < end:
            (number,) = self._u16.unpack_from(raw, at)
            packed, is_key, has_b, fixed = shapes[number]
            values = packed.unpack_from(raw, at + 2)
            at += 2 + packed.size
            if is_key:
                found.append((number, 0, 0, values[0] if values else b""))
            else:
                found.append((number, values[0], values[1] if has_b else fixed, b""))
        return found


def batches(inputs: Sequence[Input], size: int) -> Iterable[Sequence[Input]]:
    """Yield the inputs in pieces of at most ``size``."""
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size]
