"""From the probes' counts to how often each block ran."""

from __future__ import annotations

from collections.abc import Sequence

from bpfunit.coverage.model import Model
from bpfunit.coverage.probes import Probe, ProbePoint


class BlockCounts:
    """How often each block and each edge of a program ran.

    Flags count as 1, and a block that was reached over several edges then counts as the largest of
    them: figures mean «at least once» only.

    Args:
        model: the program.
        counts: one number for each probe.
    """

    def __init__(self, model: Model, counts: Sequence[int]) -> None:
        self._model = model
        self._counts = counts
        self._numbers = model.probe_numbers
        self._incoming: list[list[tuple[int, ProbePoint]]] = [[] for _ in model.blocks]
        for number, block in enumerate(model.blocks):
            if block.fall >= 0:
                point = ProbePoint.AFTER_TAIL_CALL if block.leaves else ProbePoint.FALL
                self._incoming[block.fall].append((number, point))
            if block.taken >= 0:
                self._incoming[block.taken].append((number, ProbePoint.TAKEN))
        self._blocks: dict[int, int] = {}

    def probe(self, point: ProbePoint, block: int) -> int | None:
        """Return the count of the probe at ``point`` of ``block``, None where there is none."""
        number = self._numbers.get(Probe(point, block))
        return None if number is None else self._counts[number]

    def edge(self, point: ProbePoint, block: int) -> int:
        """Return how often the edge was taken that leaves ``block`` at ``point``."""
        found = self.probe(point, block)
        return self.block(block) if found is None else found

    def block(self, number: int) -> int:
        """Return how often block ``number`` ran."""
        if number not in self._blocks:
            self._blocks[number] = 0  # a loop without a jump cannot be, and would end here
            parts = [self.edge(point, source) for source, point in self._incoming[number]]
            entry = self.probe(ProbePoint.ENTRY, number)
            parts.append(entry or 0)
            exact = self._model.mode.width > 1
            self._blocks[number] = sum(parts) if exact else max(parts)
        return self._blocks[number]

    def block_is_dead(self, number: int) -> bool:
        """Whether no edge leads to block ``number`` that the verifier left standing."""
        return self._dead(number, set())

    def _dead(self, number: int, visiting: set[int]) -> bool:
        if number in visiting:
            return True
        visiting.add(number)
        entry = self._numbers.get(Probe(ProbePoint.ENTRY, number))
        if entry is not None and entry not in self._model.dead:
            return False
        for source, point in self._incoming[number]:
            probe = self._numbers.get(Probe(point, source))
            dead = self._dead(source, visiting) if probe is None else probe in self._model.dead
            if not dead:
                return False
        return True


def conservation_errors(model: Model, counts: Sequence[int]) -> list[str]:
    """Check that as much flows out of every jump as flows in; return what does not add up.

    The inflow is the sum over the edges into the jump's block, each counted by its own probe or by
    that of an earlier jump, so the check spans the whole program. It needs counters, read while no
    run is under way.
    """
    flow = BlockCounts(model, counts)
    errors = []
    for number, block in enumerate(model.blocks):
        if not block.condition:
            continue
        taken, fall = flow.edge(ProbePoint.TAKEN, number), flow.edge(ProbePoint.FALL, number)
        inflow = flow.block(number)
        if inflow != taken + fall:
            errors.append(
                f"{model.program}, jump at instruction {block.start}+: "
                f"{inflow} in, {taken} taken + {fall} fallen through"
            )
    return errors
