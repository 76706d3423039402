"""Searching by chance: what `bpfunit explore` is measured against, on the same executor.

Blind random makes each input anew. Coverage-guided random keeps the inputs that took a new edge and
changes those, as fuzzers do: small numbers, numbers that stand in the input or that stubs answer,
bit flips, entries more or fewer, stubs that fail. Neither sees what is compared or asked for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bpfunit.explorer import Facts, Input, Outcome, Step
from bpfunit.explorer.facts import BRANCH, SECTION, STORAGE

_BATCH = 256
_SMALL = (0, 0, 1, 1, 2, 3, 4, 5, 6, 8, 16, 17, 58, 80, 255, 256, 0x8000, 0xFFFF)


class Reached(NamedTuple):
    """What a search came to.

    Attributes:
        edges: how many branch edges were taken.
        last: seconds after which the last of them was.
        runs: of the program.
    """

    edges: int
    last: float
    runs: int


class RandomSearch:
    """A search by chance.

    Args:
        facts: the program.
        execute: runs inputs.
        seed: of all of it.
        guided: whether inputs that took a new edge are kept and changed.
    """

    def __init__(
        self,
        facts: Facts,
        execute: Callable[[Sequence[Input]], list[Outcome]],
        seed: int,
        *,
        guided: bool,
    ) -> None:
        self._facts, self._execute, self._guided = facts, execute, guided
        self._chance = random.Random(seed)
        self._kept: list[Input] = []
        self._taken: set[tuple[int, bool]] = set()

    def run(self, seconds: float) -> Reached:
        """Search for some seconds, or until every edge is taken."""
        start, last, runs = time.monotonic(), 0.0, 0
        alive = len(self._facts.edges())
        while (now := time.monotonic() - start) < seconds and len(self._taken) < alive:
            inputs = [self._input() for _ in range(_BATCH)]
            for given, outcome in zip(inputs, self._execute(inputs), strict=True):
                runs += len(outcome.steps)
                new = self._edges(outcome) - self._taken
                if new:
                    self._taken |= new
                    last = now
                    self._kept.append(given)
        return Reached(len(self._taken), last, runs)

    def _edges(self, outcome: Outcome) -> set[tuple[int, bool]]:
        sites = self._facts.sites
        return {
            (number, sites[number].taken(*sites[number].operands(a, b)))
            for step in outcome.steps
            for number, a, b, _ in step.records
            if sites[number].kind == BRANCH
        }

    def _input(self) -> Input:
        if not self._guided or not self._kept:
            return self._anew()
        given = self._chance.choice(self._kept)
        for _ in range(self._chance.choice((1, 1, 2, 3, 5, 8))):
            given = self._changed(given)
        return given

    # -- from nothing

    def _anew(self) -> Input:
        chance = self._chance
        given = Input((self._step(),))
        for _ in range(chance.randrange(4)) if self._facts.maps else ():
            given = self._with_entry(given, chance.randbytes)
        if self._facts.stubs and chance.random() < 0.5:
            given = given.with_stub(*self._answer())
        return given

    def _step(self) -> Step:
        chance = self._chance
        context = bytearray(chance.choice(self._facts.contexts))
        for offset, width in self._facts.words:
            context[offset : offset + width] = chance.randbytes(width)
        if not self._facts.packets:
            return Step(bytes(context))
        if self._guided:
            return Step(bytes(context), chance.choice(self._facts.packets))
        return Step(bytes(context), chance.randbytes(chance.randint(14, 120)))

    # -- from an input

    def _changed(self, given: Input) -> Input:
        chance = self._chance
        way = chance.random()
        if way < 0.1 and self._facts.maps:
            return self._with_entry(given, lambda size: self._bytes(given, size))
        if way < 0.15 and given.entries:
            number, key, _ = chance.choice(given.entries)
            return given.with_entry(number, key, None)
        if way < 0.25 and self._facts.stubs:
            return given.with_stub(*self._answer())
        if way < 0.28 and len(given.steps) < 3:
            return given._replace(steps=(*given.steps, chance.choice(given.steps)))
        if way < 0.6 and given.entries:
            return self._entry_changed(given)
        return self._step_changed(given)

    def _entry_changed(self, given: Input) -> Input:
        number, key, value = self._chance.choice(given.entries)
        one = self._facts.maps[number]
        if not one.value_size:
            return given
        return given.with_entry(number, key, one.whole(self._poked(given, value[: one.value_size])))

    def _step_changed(self, given: Input) -> Input:
        chance = self._chance
        n = chance.randrange(len(given.steps))
        step = given.steps[n]
        if step.data and chance.random() < 0.8:
            data = self._poked(given, step.data)
            if chance.random() < 0.1:
                size = max(14, len(data) + chance.choice((-20, -8, -4, -1, 1, 4, 8, 20)))
                data = data[:size].ljust(size, b"\0")
            return given.with_step(n, step._replace(data=data))
        if not self._facts.words:
            return given
        offset, width = chance.choice(self._facts.words)
        context = bytearray(step.ctx)
        context[offset : offset + width] = self._bytes(given, width)
        return given.with_step(n, step._replace(ctx=bytes(context)))

    def _poked(self, given: Input, raw: bytes) -> bytes:
        """Return bytes with one number among them changed, or one bit."""
        chance = self._chance
        changed = bytearray(raw)
        size = min(chance.choice((1, 2, 4)), len(raw))
        at = chance.randrange(0, len(raw) - size + 1)
        if chance.random() < 0.3:
            changed[at] ^= 1 << chance.randrange(8)
        else:
            changed[at : at + size] = self._bytes(given, size)
        return bytes(changed)

    def _bytes(self, given: Input, size: int) -> bytes:
        """Return a small number or one that stands in the input, zeroes around it, or any bytes."""
        chance, way = self._chance, self._chance.random()
        if way < 0.4:
            order = chance.choice(("little", "big"))
            return (chance.choice(_SMALL) & (1 << 8 * size) - 1).to_bytes(size, order)
        if way < 0.9:
            return self._standing(given)[:size].ljust(size, b"\0")
        return chance.randbytes(size)

    def _standing(self, given: Input) -> bytes:
        """Return a number of the input: of contexts, packets, entries and answers of stubs."""
        chance = self._chance
        answers = [stub.value.to_bytes(8, "little") for stub in self._facts.stubs if stub.always]
        step = chance.choice(given.steps)
        entries = [raw for _, *two in given.entries for raw in two]
        raw = chance.choice([*filter(None, (step.ctx, step.data)), *entries, *answers] or [b""])
        at = chance.randrange(0, len(raw), chance.choice((1, 2, 4, 4))) if raw else 0
        return raw[at : at + chance.choice((1, 2, 4, 4, 8, 16))]

    # -- parts

    def _with_entry(self, given: Input, made: Callable[[int], bytes]) -> Input:
        number = self._chance.randrange(len(self._facts.maps))
        one = self._facts.maps[number]
        key = bytes(4) if one.kind == SECTION else made(one.key_size)
        if one.kind == STORAGE:
            key = bytes(one.key_size)
        return given.with_entry(number, key, one.whole(made(one.value_size)))

    def _answer(self) -> tuple[int, int]:
        slot = self._chance.randrange(len(self._facts.stubs))
        stub = self._facts.stubs[slot]
        return slot, self._chance.choice((*_SMALL, stub.value)) if stub.always else stub.value
