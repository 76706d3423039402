"""Coverage collected from many tests, workers and kernels, in one place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bpfunit.coverage.model import Model
from bpfunit.errors import BpfunitError

_FORMAT = "bpfunit-coverage-1"


class CoverageDataError(BpfunitError):
    """A file that holds no coverage data of this version."""


class ProgramKey(NamedTuple):
    """A program as loaded on one kernel: the kernel's release and the program's fingerprint."""

    kernel: str
    key: str


@dataclass
class ProgramData:
    """One program on one kernel.

    Attributes:
        counts: one number for each probe, over all tests.
        tests: for each probe the tests that passed it, as indices into `CoverageData.tests`.
    """

    model: Model
    counts: list[int]
    tests: list[set[int]]

    @classmethod
    def empty(cls, model: Model) -> ProgramData:
        """Return data of a program that has not run."""
        size = len(model.probes)
        return cls(model, [0] * size, [set() for _ in range(size)])


@dataclass
class CoverageData:
    """All that a session's tests recorded.

    Attributes:
        programs: by kernel and fingerprint.
        tests: names of tests; other places refer to them by index.
        refused: why a program that should carry probes does not, by kernel and program name.
        beyond: the same of programs that no probes can be put into because of their section.
    """

    programs: dict[ProgramKey, ProgramData] = field(default_factory=dict)
    tests: list[str] = field(default_factory=list)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    beyond: dict[tuple[str, str], str] = field(default_factory=dict)
    _indices: dict[str, int] = field(default_factory=dict)

    def test_index(self, name: str) -> int:
        """Return the index of a test's name, which is added if it is new."""
        if name not in self._indices:
            self._indices[name] = len(self.tests)
            self.tests.append(name)
        return self._indices[name]

    def add_model(self, model: Model) -> None:
        """Make a program known, so that it is reported though no test may run it."""
        self.programs.setdefault(ProgramKey(model.kernel, model.key), ProgramData.empty(model))

    def add_hits(self, test: str, kernel: str, hits: Mapping[str, Iterable[Iterable[int]]]) -> None:
        """Add what one test hit.

        Args:
            test: the test's name.
            kernel: the kernel's release.
            hits: pairs of probe number and count, by the program's fingerprint.

        Raises:
            CoverageDataError: a program whose model was never added.
        """
        index = self.test_index(test)
        for key, pairs in hits.items():
            data = self.programs.get(ProgramKey(kernel, key))
            if data is None:
                raise CoverageDataError(f"add coverage of {test}: program {key} is not known")
            for probe, count in pairs:
                data.counts[probe] += count
                data.tests[probe].add(index)

    def add_payload(self, test: str, payload: Mapping[str, Any]) -> None:
        """Add what a worker sent with a test's report; see `payload`."""
        for plain in payload["models"]:
            self.add_model(Model.from_plain(plain))
        for program, reason in payload["refused"]:
            self.refused[(payload["kernel"], program)] = reason
        for program, reason in payload["beyond"]:
            self.beyond[(payload["kernel"], program)] = reason
        if payload["hits"]:
            self.add_hits(test, payload["kernel"], dict(payload["hits"]))

    def merge(self, other: CoverageData) -> None:
        """Add all of ``other``."""
        self.refused.update(other.refused)
        self.beyond.update(other.beyond)
        for key, theirs in other.programs.items():
            self.add_model(theirs.model)
            mine = self.programs[key]
            for probe, count in enumerate(theirs.counts):
                mine.counts[probe] += count
                names = (other.tests[index] for index in theirs.tests[probe])
                mine.tests[probe].update(self.test_index(name) for name in names)

    @property
    def kernels(self) -> list[str]:
        """The releases of the kernels that programs were loaded on, in order."""
        return sorted({key.kernel for key in self.programs}, key=_release_order)

    def save(self, path: Path) -> None:
        """Write everything to a file for `load`."""
        path.write_text(self.to_json())

    def to_json(self) -> str:
        """Return everything as JSON."""
        programs = [
            {
                "model": data.model.to_plain(),
                "counts": data.counts,
                "tests": [sorted(tests) for tests in data.tests],
            }
            for data in self.programs.values()
        ]
        content = {
            "format": _FORMAT,
            "tests": self.tests,
            "programs": programs,
            "refused": [[kernel, name, why] for (kernel, name), why in self.refused.items()],
            "beyond": [[kernel, name, why] for (kernel, name), why in self.beyond.items()],
        }
        return json.dumps(content)

    @classmethod
    def load(cls, path: Path) -> CoverageData:
        """Read a file that `save` wrote.

        Raises:
            CoverageDataError: the file is no coverage data, or of another version.
        """
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CoverageDataError(f"read coverage data {path}: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise CoverageDataError(f"read coverage data {path}: expected format {_FORMAT}")
        data = cls()
        for name in content["tests"]:
            data.test_index(name)
        for plain in content["programs"]:
            model = Model.from_plain(plain["model"])
            tests = [set(indices) for indices in plain["tests"]]
            key = ProgramKey(model.kernel, model.key)
            data.programs[key] = ProgramData(model, plain["counts"], tests)
        data.refused = {(kernel, name): why for kernel, name, why in content["refused"]}
        data.beyond = {(kernel, name): why for kernel, name, why in content.get("beyond", ())}
        return data


def _release_order(release: str) -> list[int]:
    """Sort 6.12 behind 6.1."""
    numbers = release.split("-", 1)[0].split(".")
    return [int(part) if part.isdigit() else 0 for part in numbers]


def payload(
    models: Iterable[Model],
    refused: Mapping[str, str],
    kernel: str,
    hits: Mapping[str, Mapping[int, int]],
    beyond: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what a worker sends with a test's report: plain lists, strings and numbers.

    Args:
        models: those that were not sent before.
        refused: why programs that should carry probes do not, by name.
        kernel: the release that this runs on.
        hits: what the test hit.
        beyond: why programs cannot carry probes because of their section, by name.
    """
    return {
        "kernel": kernel,
        "models": [model.to_plain() for model in models],
        "refused": [list(pair) for pair in refused.items()],
        "beyond": [list(pair) for pair in (beyond or {}).items()],
        "hits": [
            [key, [[probe, count] for probe, count in found.items()]] for key, found in hits.items()
        ],
    }
