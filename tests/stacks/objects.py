"""The objects of the stacks' tests, one for each compiler."""

from __future__ import annotations

import json
from pathlib import Path

from ..objects import compiled

BUILD = Path(__file__).resolve().parent.parent.parent / "build" / "stacks"
LIST = BUILD / "objects.json"


def stack_objects() -> dict[str, Path]:
    """Return the object of ``stack.bpf.c`` by compiler: of those prepared, else of one clang."""
    try:
        prepared = json.loads(LIST.read_text())
    except FileNotFoundError:
        return {"clang": compiled("stack")}
    return {name: Path(path) for name, path in prepared.items()}
