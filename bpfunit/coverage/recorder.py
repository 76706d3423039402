"""Recording coverage of every program that this process loads."""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bpfunit import _native
from bpfunit.coverage.model import Model, describe
from bpfunit.coverage.path import Path
from bpfunit.coverage.probes import Mode, count_probes, place_probes, surviving_probes
from bpfunit.coverage.template import Template, identity_of
from bpfunit.progtypes.base import instrumentable_sections
from bpfunit.rewrite import ambient
from bpfunit.rewrite.code import Image, ProgramCode, Unreached
from bpfunit.rewrite.flow import RewriteError
from bpfunit.rewrite.patcher import Patcher
from bpfunit.rewrite.valuemap import ValueMap

Hits = dict[str, dict[int, int]]
"""Counts above zero, by probe number, by the key of the program's model."""


@dataclass
class _Instrumented:
    """A program that carries probes, whichever load brought it; its map outlives each load."""

    model: Model
    map: ValueMap
    template: Template
    number: int
    earlier: Any = field(init=False)  # an array of 64-bit numbers, which C adds to
    loads: int = 0  # that go on

    def __post_init__(self) -> None:
        self.earlier = (ctypes.c_uint64 * max(self.map.size // self.model.mode.width, 1))()

    def counts(self) -> list[int]:
        """Return the probes' counts since the map was last cleared."""
        return self.counts_of(self.map.memory[: self.map.size])

    def counts_of(self, memory: bytes | memoryview) -> list[int]:
        """Return the probes' counts that the map's memory stands for."""
        count = len(self.model.probes)
        if self.model.mode is Mode.FLAGS:
            return list(memory[:count])
        return list(struct.unpack_from(f"={count}Q", memory, 0))

    def was_hit(self) -> bool:
        """Whether any probe was passed since the map was last cleared."""
        return self.map.memory[: self.map.size] != bytes(self.map.size)

    def set_aside(self) -> None:
        """Add the counts to `earlier` and start from zero."""
        if self.was_hit():
            for number, count in enumerate(self.counts()):
                self.earlier[number] += count
            self.map.clear()

    def take(self) -> dict[int, int]:
        """Return the counts above zero since the last call, by probe."""
        self.set_aside()
        if bytes(self.earlier) == bytes(ctypes.sizeof(self.earlier)):  # most programs, mostly
            return {}
        found = {n: count for n, count in enumerate(self.earlier) if count}
        ctypes.memset(self.earlier, 0, ctypes.sizeof(self.earlier))
        return found


class CoverageRecorder:
    """An instrumentation pass that puts probes into every program, and reads them.

    Probes of the same program share one map over all its loads in this process, and so does the
    work of placing them: a test that loads afresh pays for patching descriptors alone.

    Args:
        mode: what a probe records.

    Attributes:
        refused: why a program that should carry probes does not, by name.
        beyond: the same of programs whose section cannot be rewritten, which no kernel, library or
            compiler changes.
    """

    def __init__(self, mode: Mode = Mode.FLAGS) -> None:
        self.mode = mode
        self.refused: dict[str, str] = {}
        self.beyond: dict[str, str] = {}
        self._unfit: dict[Hashable, str] = {}  # programs that were tried, with the reason
        self._without: dict[str, str] = {}  # those of the load that goes on, by name
        self._programs: dict[str, _Instrumented] = {}
        self._in_order: list[_Instrumented] = []  # by their numbers
        self._current: list[_Instrumented] = []  # of the load that goes on
        self._rows: Any = None
        self._probed = _native.Probed()

    # The pass.

    def rewrite(self, program: ProgramCode) -> None:
        """Put probes into ``program``, or leave it as it is and keep the reason in `refused`."""
        known = self._known(program)
        if known is None:
            identity = identity_of(program)
            if identity not in self._unfit:
                try:
                    known = self._instrument(program)
                except RewriteError as error:
                    self._unfit[identity] = str(error)
            if known is None:
                self._without[program.name] = self._unfit[identity]
                return
            self._programs[known.model.key] = known
            self._in_order.append(known)
        self._current.append(known)
        program.accept(known.template.for_load(program.image.insns, known.map.wake()))

    def _known(self, program: ProgramCode) -> _Instrumented | None:
        """Return what was made of an earlier load of the same program."""
        for known in self._programs.values():
            if known.model.program == program.name and known.template.fits(program):
                return known
        return None

    def loaded(self, unreached: Mapping[str, Unreached]) -> None:
        """Note the programs that cannot be instrumented because of their section."""
        # A program keeps its map, and so does the mapping: without this a suite that stubs many
        # calls, each of which makes another program, runs out of descriptors.
        for known in self._in_order:
            known.map.rest()
        self.refused.update(self._without)
        self._without.clear()
        for name, (section, _helpers) in unreached.items():
            if section in instrumentable_sections():
                self.refused[name] = f"libbpf loaded section {section!r} without asking"
            else:
                self.beyond[name] = (
                    f"libbpf's own work for section {section!r} cannot be combined with rewriting"
                )

    def not_loaded(self) -> None:
        """Forget what was refused with probes: the kernel refuses the program without them, too."""
        self._without.clear()
        self._current.clear()

    def hold(self) -> Callable[[], None]:
        """Count the programs that were loaded last as running until what is returned is called.

        Each run looks at the probes of all that may run: in a long suite that is little of what was
        ever loaded.
        """
        held = list(self._current)
        self._current.clear()
        self._add_loads(held, 1)
        return lambda: self._add_loads(held, -1)

    def _add_loads(self, held: Sequence[_Instrumented], more: int) -> None:
        with ambient.one_run():  # of another thread, in which C walks through the rows
            for known in held:
                known.loads += more
                if not known.loads and not known.map.closed:
                    known.set_aside()
            self._show_to_c()

    def _instrument(self, program: ProgramCode) -> _Instrumented:
        flow = program.flow()
        patcher = Patcher(flow)
        size = count_probes(flow) * self.mode.width
        probes_map = ValueMap("bpfunit_cov", size)
        try:
            placement = place_probes(flow, self.mode, probes_map.fd, patcher)
            patched = program.patch(patcher)
            trial = program.try_load(Image.of(patched))
            if not trial.accepted:
                raise RewriteError(f"the verifier refuses it with probes: {trial.reason}")
        except BaseException:
            probes_map.close()
            raise
        ambient.kept_maps.add(probes_map.id)
        alive = surviving_probes(trial.survivors, probes_map.id, self.mode)
        template = Template(program, patched)
        model = Model(
            key=template.fingerprint,
            program=program.name,
            section=program.section,
            kernel=platform.release(),
            mode=self.mode,
            probes=placement.probes,
            dead=frozenset(range(len(placement.probes))) - alive,
            spills=placement.spills,
            sizes=(len(program.insns), len(patched.insns)),
            **describe(program, flow),
        )
        return _Instrumented(model, probes_map, template, len(self._in_order))

    def _running(self) -> list[_Instrumented]:
        return [one for one in self._in_order if one.loads and not one.map.closed]

    def _show_to_c(self) -> None:
        rows = [
            _native.Probes(
                _native.address_of(one.map.memory),
                ctypes.addressof(one.earlier),
                one.map.size,
                one.model.mode.width,
                0,
                one.number,
            )
            for one in self._running()
        ]
        self._rows = (_native.Probes * len(rows))(*rows)
        self._probed.count, self._probed.programs = len(rows), ctypes.addressof(self._rows)

    # The readings.

    def models(self) -> list[Model]:
        """Return the models of all programs instrumented so far."""
        return [program.model for program in self._programs.values()]

    def take(self) -> Hits:
        """Return what was hit since the last call, and start from zero."""
        hits: Hits = {}
        for key, program in self._programs.items():
            if found := program.take():
                hits[key] = found
        return hits

    # One run.

    def run_starts(self) -> None:
        """Set aside what was counted, so that the next reading is of one run alone."""
        for program in self._running():
            program.set_aside()

    def run_ended(self) -> Path:
        """Return the source lines of the branches that programs took since `run_starts`."""
        ran = [program for program in self._running() if program.was_hit()]
        return Path([(program.model, program.counts()) for program in ran])

    def memory(self) -> int:
        """Return the address of what C needs for `run_starts` and `run_ended`."""
        return ctypes.addressof(self._probed)

    def path_of(self, parts: Sequence[tuple[int, bytes]]) -> Path:
        """Return what `run_ended` would, from what C saw.

        Args:
            parts: of each program that ran its number, and its map's memory after the run.
        """
        ran = [(self._in_order[number], memory) for number, memory in parts]
        return Path([(program.model, program.counts_of(memory)) for program, memory in ran])

    def close(self) -> None:
        """Release all maps; call `take` first."""
        self._probed.count = 0
        for program in self._in_order:
            program.map.close()
        self._programs.clear()

    @contextmanager
    def recording(self) -> Iterator[CoverageRecorder]:
        """Instrument every object that is loaded within the block."""
        with ambient.use(self):
            yield self
