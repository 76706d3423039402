"""``make facts``: measure the facts on some kernels, one after another, and write the pages.

``make types`` (``--types``) measures those alone that say how programs of each type run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

from elftools.elf.elffile import ELFFile

from bpfunit.kernels import load_catalogue

from ..stacks.compilers import compilers
from . import table

_HERE = Path(__file__).resolve().parent
_TYPES = _HERE / "test_how_types_run.py"
_PROJECT = _HERE.parents[1]
_RESULTS = _PROJECT / "build" / "facts.xml"


def main(arguments: list[str]) -> int:
    """Measure on the kernels that are named, or those of the table; return the exit code."""
    columns, counts = table.read()
    types = arguments[:1] == ["--types"]
    arguments = arguments[types:]
    names = arguments or [*columns]
    if names == ["all"]:
        names = [entry.series for entry in load_catalogue().usable]
    status = 0
    for name in names:
        measured = _measure(name, _TYPES if types else _HERE)
        if measured is None:
            print(f"facts: {name}: a test failed; its column stays as it was", file=sys.stderr)
            status = 1
        else:
            _take(columns, measured, add=types)
    if types:
        table.write(columns, counts)
        return status
    counts = {one.name: _instructions(one.hook) for one in compilers()}
    table.write(columns, counts)
    return status


def _take(columns: dict[str, table.Column], measured: table.Column, *, add: bool) -> None:
    """Put a column into the table, or its facts into the one that is there."""
    name = table.series(measured.release)
    if add and name in columns:
        columns[name].facts.update(measured.facts)
    else:
        columns[name] = measured


def _measure(kernel: str, tests: Path) -> table.Column | None:
    _RESULTS.parent.mkdir(exist_ok=True)
    _RESULTS.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "--kernel", kernel, str(tests)]
    command += [
        "--guest-env",
        f"{table.MEASURE}=1",
        f"--junitxml={_RESULTS}",
        "-p",
        "no:cacheprovider",
    ]
    if subprocess.run(command, cwd=_PROJECT, check=False).returncode:
        return None
    column = None
    for one in ElementTree.parse(_RESULTS).iter("property"):
        if one.get("name") != "facts":
            continue
        said = json.loads(one.get("value") or "")
        if column is None:
            column = table.Column(said["release"], time.strftime("%Y-%m-%d"))
        for name, rows in said["facts"].items():
            column.facts.setdefault(name, {}).update(rows)
    return column


def _instructions(hook: Path) -> int:
    """Return how many instruction slots the program on connect4 of an object has."""
    with hook.open("rb") as file:
        elf = ELFFile(file)
        size: int = elf.get_section_by_name("cgroup/connect4")["sh_size"]
    return size // 8


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
