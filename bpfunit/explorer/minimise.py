"""From an input that takes an edge to one that people read: less of it, and plainer numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from bpfunit.explorer.case import moved
from bpfunit.explorer.facts import FIXED, SECTION, Facts
from bpfunit.explorer.search import Case, Edge, Found, Search
from bpfunit.explorer.wire import Input, Step

Role = Callable[[int, str, int], str]
"""(map, "key" or "value", offset) to "addr", "port" or "" of the word there."""

Wanted = Callable[[Case], bool]


def covering(found: Found, taken: Collection[Edge] = ()) -> list[tuple[Case, list[Edge]]]:
    """Return few cases that take every edge that is not ``taken``, and the edges of each, greedily.

    An edge stands with one case alone.
    """
    left, chosen = set(found.first) - set(taken), []
    cases = list(found.cases)
    while left and cases:
        best = max(cases, key=lambda one: len(one.edges & left))
        taken = best.edges & left
        if not taken:
            break
        # the later ones are for edges that are hard to come by
        chosen.append((best, sorted(taken)))
        left -= taken
    return chosen


class Minimiser:
    """Makes inputs smaller and plainer while they take their edges.

    Args:
        search: runs inputs, and knows the program.
        role: what the words of keys and values are.
        context_role: the same of the context's, by offset.
    """

    def __init__(self, search: Search, role: Role, context_role: Callable[[int], str]) -> None:
        self._search, self._role, self._context_role = search, role, context_role
        self._facts: Facts = search.facts
        self._numbers = 0

    def smallest(self, case: Case, edges: Sequence[Edge]) -> Case:
        """Return the case made small: fewer steps, entries, stubs, words; then plain numbers."""
        wanted = frozenset(edges)
        return self._told(self.smallest_that(case, lambda other: wanted <= other.edges))

    def smallest_that(self, case: Case, wanted: Wanted) -> Case:
        """Return the case made small while what is wanted of it holds."""
        self._numbers = 0
        for change in (self._less, self._zeroed, self._dialled, self._less, self._plain):
            case = change(case, wanted)
        return case

    def _told(self, case: Case) -> Case:
        """Give fields that the outcome depends on, and that are zero, numbers that can be told.

        A destination that is rewritten to 0.0.0.0:0 would prove little.
        """
        blank = [
            (number, key, offset, role)
            for number, key, value in case.given.entries
            if self._is_plain(number)
            for offset in range(0, self._facts.maps[number].value_size - 3, 4)
            if not any(value[offset : offset + 4])
            for role in (self._role(number, "value", offset),)
        ]
        fills = [self._plain_number(role, case.given) for _, _, _, role in blank]
        inputs = [
            self._filled(case.given, one[:3], fill) for one, fill in zip(blank, fills, strict=True)
        ]
        before = _seen(case)
        for one, fill, other in zip(blank, fills, self._search.cases_of(inputs), strict=True):
            if other.edges != case.edges or _seen(other) == before:
                continue
            (both,) = self._search.cases_of([self._filled(case.given, one[:3], fill)])
            if both.edges == case.edges:
                case = both
        return case

    def _is_plain(self, number: int) -> bool:
        one = self._facts.maps[number]
        return one.kind not in (SECTION, *FIXED) and one.stride == one.value_size

    @staticmethod
    def _filled(given: Input, where: tuple[int, bytes, int], fill: bytes) -> Input:
        number, key, offset = where
        value = next(v for m, k, v in given.entries if (m, k) == (number, key))
        return given.with_entry(number, key, value[:offset] + fill + value[offset + 4 :])

    def _first(self, inputs: Iterator[Input], wanted: Wanted) -> Case | None:
        """Return the first input that still takes the edges, as a case."""
        for given in inputs:
            (case,) = self._search.cases_of([given])
            if case.outcome.refused or any(step.errno for step in case.outcome.steps):
                continue
            if wanted(case):
                return case
        return None

    def _less(self, case: Case, wanted: Wanted) -> Case:
        while True:
            smaller = self._first(self._without_a_part(case.given), wanted)
            if smaller is None:
                return case
            case = smaller

    @staticmethod
    def _without_a_part(given: Input) -> Iterator[Input]:
        if len(given.steps) > 1:
            for n in range(len(given.steps)):
                yield given._replace(steps=given.steps[:n] + given.steps[n + 1 :])
        for number, key, _ in given.entries:
            yield given.with_entry(number, key, None)
        for slot, _ in given.stubs:
            yield given.with_stub(slot, None)

    def _zeroed(self, case: Case, wanted: Wanted) -> Case:
        """Set to zero what may be: halves of values first, then halves of what is left."""
        for n, (number, key, value) in enumerate(case.given.entries):
            if not self._is_plain(number):
                continue
            spans = [(0, len(value))]
            while spans:
                start, end = spans.pop(0)
                current = case.given.entries[n][2]
                if not any(current[start:end]):
                    continue
                blank = current[:start] + bytes(end - start) + current[end:]
                other = self._first(iter([case.given.with_entry(number, key, blank)]), wanted)
                if other is not None:
                    case = other
                elif end - start > 4:
                    middle = (start + end) // 2 & ~3 or 4
                    spans += [(start, middle), (middle, end)] if middle < end else []
        return case

    def _dialled(self, case: Case, wanted: Wanted) -> Case:
        """Dial a real address in place of 0.0.0.0:0, where that takes the same way."""
        for n in range(len(case.given.steps)):
            step = case.given.steps[n]
            for offset, width in self._facts.words:
                role = self._context_role(offset)
                if not role or any(step.ctx[offset : offset + width]):
                    continue
                number = self._plain_number(role, None)
                changed = bytearray(step.ctx)
                changed[offset : offset + width] = number[:width]
                given = case.given.with_step(n, Step(bytes(changed), step.data))
                other = self._followed(case, given, wanted)
                if other is not None:
                    case, step = other, other.given.steps[n]
        return case

    def _followed(self, case: Case, given: Input, wanted: Wanted) -> Case | None:
        """Return an input as a case, its entries under the keys that it asks for by now."""
        for _ in range(3):
            (other,) = self._search.cases_of([given])
            if wanted(other):
                return other
            followed = moved(self._facts.sites, case, other)
            if followed is None:
                return None
            given = followed
        return None

    def _plain(self, case: Case, wanted: Wanted) -> Case:
        """Put plain numbers in place of those that chance chose, wherever they stand."""
        tried: set[bytes] = set()
        for word, role in self._words(case.given):
            if word in tried or not any(word):
                continue
            tried.add(word)
            if not role and int.from_bytes(word, self._facts.order) < 256:
                continue
            plain = self._plain_number(role, case.given)
            given = self._substituted(case.given, word, plain)
            other = self._first(iter([given]), wanted)
            if other is not None:
                case = other
                tried.add(plain)
        return case

    def _plain_number(self, role: str, given: Input | None) -> bytes:
        """Return the next number of its role that the input does not have."""
        while True:
            self._numbers += 1
            n = self._numbers
            if role == "addr":
                plain = bytes((10, 0, n >> 8, n & 0xFF))
            elif role == "port":
                plain = (8000 + n).to_bytes(2, "big") + bytes(2)
            else:
                plain = (100 + n).to_bytes(4, self._facts.order)
            if given is None or plain not in given_words(given):
                return plain

    def _words(self, given: Input) -> Iterator[tuple[bytes, str]]:
        for step in given.steps:
            for offset, width in self._facts.words:
                word = step.ctx[offset : offset + width].ljust(4, b"\0")
                yield word, self._context_role(offset)
        for number, key, value in given.entries:
            one = self._facts.maps[number]
            if one.kind in (SECTION, *FIXED):
                continue
            for part, raw in (("key", key), ("value", value[: one.value_size])):
                for offset in range(0, len(raw) - 3, 4):
                    yield raw[offset : offset + 4], self._role(number, part, offset)

    def _substituted(self, given: Input, word: bytes, plain: bytes) -> Input:
        """Return the input with one word in place of another, in contexts, keys and values."""
        steps = []
        for step in given.steps:
            changed = bytearray(step.ctx)
            for offset, width in self._facts.words:
                if changed[offset : offset + width].ljust(4, b"\0") == word:
                    changed[offset : offset + width] = plain[:width]
            steps.append(Step(bytes(changed), step.data))
        entries = {}
        for number, key, value in given.entries:
            one = self._facts.maps[number]
            if one.kind in (SECTION, *FIXED):
                entries[number, key] = value
                continue
            key = _replaced(key, word, plain)
            entries[number, key] = _replaced(value, word, plain)
        return given._replace(
            steps=tuple(steps),
            entries=tuple(sorted((m, k, v) for (m, k), v in entries.items())),
        )


def _seen(case: Case) -> tuple[object, ...]:
    """Return what a test can see of a case beside the entries that it wrote itself."""
    given = {(number, key) for number, key, _ in case.given.entries}
    after = [(place, v) for place, v in case.outcome.entries.items() if place not in given]
    return tuple(
        (step.retval, step.ctx, step.data, step.log) for step in case.outcome.steps
    ), sorted(after)


def given_words(given: Input) -> set[bytes]:
    """Return the words of an input's keys and values."""
    return {
        raw[n : n + 4]
        for _, key, value in given.entries
        for raw in (key, value)
        for n in range(0, len(raw), 4)
    }


def _replaced(raw: bytes, word: bytes, plain: bytes) -> bytes:
    words = [raw[n : n + 4] for n in range(0, len(raw), 4)]
    return b"".join(plain if one == word else one for one in words)
