"""Branches that no input can reach although no verifier can prove it, declared with the reason.

The file is TOML, one table for each::

    [[unreachable]]
    file = "hook/route.h"     # the end of the path
    line = "if (!storage)"    # text in the source line of the branch
    to = "return;"            # text in the line that the outcome leads to; may be left out
    reason = "the caller has just created it"

The texts are those of the source, not line numbers, so that the file outlives edits. A declaration
that matches nothing, or an outcome that was taken after all, is a mistake and reported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfunit.coverage.sites import Line, Outcome, SourceFile
from bpfunit.errors import BpfunitError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class ExclusionError(BpfunitError):
    """An exclusions file that cannot be read, or says what is not so."""


@dataclass(frozen=True)
class Exclusion:
    """One declaration; see the module for its fields."""

    file: str
    line: str
    reason: str
    to: str = ""

    def matches(self, file: SourceFile, line: Line) -> bool:
        """Whether a source line is the declared one."""
        return ("/" + file.path).endswith("/" + self.file) and self.line in line.text


def read_exclusions(path: Path) -> list[Exclusion]:
    """Read an exclusions file.

    Raises:
        ExclusionError: the file is missing, is no TOML, or a table lacks a field, has one more or
            one that is no text.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ExclusionError(f"read exclusions {path}: {error}") from error
    tables = content.pop("unreachable", [])
    is_list = isinstance(tables, list) and all(isinstance(table, dict) for table in tables)
    if content or not is_list:
        raise ExclusionError(f"read exclusions {path}: expected [[unreachable]] tables only")
    return [_exclusion(path, table) for table in tables]


def _exclusion(path: Path, table: Mapping[str, Any]) -> Exclusion:
    for name, value in table.items():
        if not isinstance(value, str):
            raise ExclusionError(f"read exclusions {path}: {name} is a text; found {value!r}")
    try:
        return Exclusion(**table)
    except TypeError:
        found = ", ".join(table) or "nothing"
        raise ExclusionError(
            f"read exclusions {path}: a table has file, line, reason and perhaps to; found {found}"
        ) from None


def apply_exclusions(
    files: Mapping[str, SourceFile], exclusions: Sequence[Exclusion], name: str = "exclusions"
) -> list[str]:
    """Mark excluded outcomes; return what is wrong with the declarations.

    Args:
        files: as from `merge_sources`.
        exclusions: the declarations.
        name: what to call their file in complaints.
    """
    complaints = []
    for exclusion in exclusions:
        found = list(_excluded_by(files, exclusion))
        if not found:
            complaints.append(f"{name}: no branch matches {exclusion.file}: {exclusion.line!r}")
        untaken = [outcome for _, outcome in found if not outcome.count]
        for outcome in untaken:
            outcome.excluded = exclusion.reason
        for place, outcome in found:
            # Without a destination the declaration means whichever outcome is never taken.
            if outcome.count and (exclusion.to or not untaken):
                complaints.append(
                    f"{name}: {place} → {outcome.leads_to('')} is declared unreachable "
                    f"({exclusion.reason}) and was taken {outcome.count} times"
                )
    _exclude_lines(files)
    return complaints


def _excluded_by(
    files: Mapping[str, SourceFile], exclusion: Exclusion
) -> Iterator[tuple[str, Outcome]]:
    for file in files.values():
        for line in file.lines.values():
            if not exclusion.matches(file, line):
                continue
            for branch in line.branches:
                for outcome in branch.outcomes:
                    if exclusion.to in _target_text(files, outcome):
                        yield f"{file.path}:{line.number}", outcome


def _target_text(files: Mapping[str, SourceFile], outcome: Outcome) -> str:
    texts = []
    for target in outcome.targets:
        if target is not None and target.file in files:
            texts.append(files[target.file].lines[target.line].text)
    return "\n".join(texts)


def _exclude_lines(files: Mapping[str, SourceFile]) -> None:
    """Exclude lines that never ran and to which excluded outcomes alone lead."""
    reasons: dict[tuple[str, int], list[str]] = {}
    for file in files.values():
        for branch in file.branches:
            for outcome in branch.outcomes:
                for target in outcome.targets:
                    if target is not None and outcome.reachable:
                        place = (target.file, target.line)
                        reasons.setdefault(place, []).append(outcome.excluded)
    for (path, number), found in reasons.items():
        line = files[path].lines[number]
        if all(found) and not line.count:
            line.excluded = found[0]
