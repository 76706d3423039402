"""Two builds of one program: inputs of the one as inputs of the other, and what is seen of both."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from bpfunit.explorer.facts import ARRAY, RESULT, SECTION, TAIL, TAIL_CALL, Facts
from bpfunit.explorer.side import Description
from bpfunit.explorer.wire import Input, Outcome, Record, StepOutcome

Entry = tuple[str, bytes]
"""A map's name, a key."""


class Translation:
    """Inputs of one build as inputs of another: maps by name, calls in their order."""

    def __init__(self, source: Facts, target: Facts) -> None:
        names = {one.name: n for n, one in enumerate(target.maps)}
        self._maps = {n: names.get(one.name) for n, one in enumerate(source.maps)}
        here, there = (_calls(facts) for facts in (source, target))
        self._slots: dict[int, int] = {}
        for helper, calls in here.items():
            others = there.get(helper, [])
            alike = len(calls) == len(others)
            if not source.stubs[calls[0][1]].always:
                # a compiler orders and joins calls anew: a failure then is one of other lines
                alike = [text for text, _ in calls] == [text for text, _ in others]
            if alike:
                self._slots |= {one: two for (_, one), (_, two) in zip(calls, others, strict=True)}
        made = {site.helper for site in target.sites if site.kind == RESULT}
        self._gone = {slot for slot, stub in enumerate(source.stubs) if stub.helper not in made}
        self._source, self._target = source, target

    def __call__(self, given: Input) -> Input:
        """Return the input as one of the other build, without what that has not."""
        entries = []
        for number, key, value in given.entries:
            other = self._maps[number]
            if other is None:
                continue
            one = self._target.maps[other]
            if one.kind == self._source.maps[number].kind == SECTION and one.stride != len(value):
                continue
            if one.key_size == len(key) and one.stride == len(value):
                entries.append((other, key, value))
        stubs = [(self._slots[slot], a) for slot, a in given.stubs if slot in self._slots]
        return given._replace(entries=tuple(sorted(entries)), stubs=tuple(sorted(stubs)))

    def carries(self, given: Input) -> bool:
        """Return whether what the input has stubs answer can be answered in the other build.

        That build may have no call of the helper at all, and then there is nothing to answer.
        """
        return all(slot in self._slots or slot in self._gone for slot, _ in given.stubs)


def _calls(facts: Facts) -> dict[int, list[tuple[str, int]]]:
    """Return the text of the source line and the slot of each stub, by helper, in order."""
    texts = {
        site.slot: facts.places[number][3] if number in facts.places else ""
        for number, site in reversed(list(enumerate(facts.sites)))
        if site.slot >= 0
    }
    found: dict[int, list[tuple[str, int]]] = {}
    for slot, stub in enumerate(facts.stubs):
        found.setdefault(stub.helper, []).append((texts.get(slot, ""), slot))
    return found


class Seen:
    """What a caller can see of the outcomes of one build.

    Args:
        described: the build.
        without: data sections that are laid out differently in the other build.
    """

    def __init__(self, described: Description, without: Collection[str]) -> None:
        self._facts, self._rings = described.facts, described.ring_names
        self._without = without
        self._fd_offset = described.fd_offset

    def of(self, outcome: Outcome) -> tuple[object, object]:
        """Return what can be compared with that of the other build."""
        return [self._step(step) for step in outcome.steps], dict(self._entries(outcome))

    def _step(self, step: StepOutcome) -> tuple[object, ...]:
        log = [(self._rings[ring], raw) for ring, raw in step.log]
        head = (step.errno, step.retval, step.verdict, self._context(step), step.data)
        return (*head, log, list(self._entered(step.records)))

    def _context(self, step: StepOutcome) -> bytes:
        at = self._fd_offset
        if at < 0 or not step.ctx:
            return step.ctx
        return step.ctx[:at] + bytes([any(step.ctx[at : at + 8])]) + step.ctx[at + 8 :]

    def _entries(self, outcome: Outcome) -> Iterator[tuple[Entry, bytes]]:
        for (number, key), value in outcome.entries.items():
            one = self._facts.maps[number]
            # an element of an array is there whether or not anybody asks for it
            blank = one.kind == ARRAY and not any(value)
            if one.name not in self._without and not blank:
                yield (one.name, key), value

    def _entered(self, records: Sequence[Record]) -> Iterator[str]:
        for place, (number, index, _, _) in enumerate(records):
            site = self._facts.sites[number]
            if site.kind != TAIL:
                continue
            behind = self._facts.sites[records[place + 1][0]] if place + 1 < len(records) else None
            came_back = behind and (behind.kind, behind.helper) == (RESULT, TAIL_CALL)
            if not came_back:
                name = self._facts.maps[site.map].name if site.map >= 0 else "an array"
                yield f"{name}[{index & 0xFFFFFFFF}]"

    def told(self, outcome: Outcome) -> dict[str, str]:
        """Return it by name, as text for people."""
        found = {}
        for n, step in enumerate(outcome.steps):
            run = f"run {n + 1}, " if len(outcome.steps) > 1 else ""
            found[f"{run}errno"] = str(step.errno)
            found[f"{run}return value"] = str(step.retval)
            found[f"{run}verdict"] = str(step.verdict)
            found[f"{run}context"] = self._context(step).hex(" ", 4)
            if step.data:
                found[f"{run}packet"] = step.data.hex(" ", 4)
            for ring, raw in step.log:
                name = f"{run}record in {self._rings[ring]}"
                while name in found:
                    name += " and another"
                found[name] = f"{raw.rstrip(bytes(1))!r} ({len(raw)} bytes)"
            entered = ", ".join(self._entered(step.records))
            found[f"{run}tail calls entered"] = entered or "none"
        for (name, key), value in self._entries(outcome):
            found[f"{name}[{key.hex()}]"] = value.hex(" ", 4)
        return found
