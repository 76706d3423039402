"""Draws the layers of the package into docs/architecture.md, from the imports as they are.

``python tools/layers.py`` writes the picture; with ``--check`` it only says, by its exit code,
whether the one on the page is current and every part of the package is on the page. The layers
themselves are those of the contract in pyproject.toml, which `lint-imports` holds.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import grimp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- layers: tools/layers.py -->", "<!-- end of layers -->"
BASE = "progtypes.base"  # below the layers that know program types by it


def layers() -> list[list[str]]:
    """Return the layers of the contract from the top, the package's name left out."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contract = config["tool"]["importlinter"]["contracts"][0]
    return [
        [name.strip().removeprefix("bpfunit.") for name in line.replace(":", "|").split("|")]
        for line in contract["layers"]
    ]


def part_of(module: str, parts: list[str]) -> str:
    """Return the part of the package that a module belongs to."""
    name = module.removeprefix("bpfunit.")
    found = [part for part in parts if name == part or name.startswith(f"{part}.")]
    return max(found, key=len, default=name.partition(".")[0])


def picture() -> str:
    """Return the block for the page."""
    rows = layers()
    parts = [*(part for row in rows for part in row), BASE]
    graph = grimp.build_graph("bpfunit", exclude_type_checking_imports=True)
    imports: dict[str, set[str]] = defaultdict(set)
    for module in graph.modules - {"bpfunit"}:
        for target in graph.find_modules_directly_imported_by(module) - {"bpfunit"}:
            source, into = part_of(module, parts), part_of(target, parts)
            if source != into:
                imports[source].add(into)
    order = {part: n for n, part in enumerate(parts)}
    lines = ["```", " layer  part of bpfunit/          imports"]
    rows.insert(-2, [BASE])
    for number, row in enumerate(rows):
        for n, part in enumerate(row):
            told = (
                ", ".join(sorted(imports[part], key=lambda one: (order.get(one, -1), one))) or "-"
            )
            lines.append(f" {'' if n else len(rows) - number:>5}  {part:<24}  {told}")
    beside = sorted(imports.keys() - set(parts))
    for part in beside:
        told = ", ".join(sorted(imports[part])) or "-"
        lines.append(f" {'beside':>6} {part:<24}  {told}")
    return "\n".join([BEGIN, *lines, "```", END])


def missing(text: str) -> list[str]:
    """Return the parts of the package that the page does not name."""
    found = {path.stem for path in (ROOT / "bpfunit").glob("*.py") if path.stem != "__init__"}
    found |= {path.parent.name for path in (ROOT / "bpfunit").glob("*/__init__.py")}
    return sorted(name for name in found if name not in text)


def main() -> int:
    """Write or check the page."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    new = before + picture() + rest.split(END)[1]
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new)
    elif new != text:
        print("docs/architecture.md shows other imports than there are: run python tools/layers.py")
        return 1
    if absent := missing(new):
        print(f"docs/architecture.md does not name {', '.join(absent)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
