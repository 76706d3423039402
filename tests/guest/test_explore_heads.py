"""explore on the types that the module runs by a header: sockets, ops, messages, options, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bpfunit
from bpfunit.explorer import Budget, Written, block, explore_and_write

from ..objects import compiled

pytestmark = [pytest.mark.guest, pytest.mark.bpf_plain]

MESH = Path(__file__).parents[2] / "bpf" / "build" / "mesh.bpf.o"
ENOUGH = Budget(seconds=60)

# object, program, and the edges that no input of the search takes, by a part of their lines
PROGRAMS = [
    ("device", "only_memory", []),
    ("sockopt", "limit", ["optval_end"]),
    ("sockopt", "answer", ["SO_OURS"]),
    ("sock", "made", ["SOCK_RAW"]),
    ("sock", "gone", ["an array, which has every index"]),
    ("skmsg", "decide", ["data + 4"]),
    ("skskb", "parse", ["bpf_skb_load_bytes"]),  # 5.10 lets no stub answer for it
    ("skskb", "decide", ["an array, which has every index", "data + 2"]),
    ("sockops", "follow", ["if (sk)", "bpf_load_hdr_opt", "switch (ctx->op)"]),
    ("reuseport", "choose", ["an array, which has every index"]),
]


def written(path: Path, program: str) -> Written:
    return explore_and_write(path, program, budget=ENOUGH)


def passes(path: Path, found: Written) -> None:
    """Run every test that was written."""
    functions: dict[str, Any] = {}
    text = block(found.exploration, found.tests, f"Path({str(path)!r})", {})
    exec(compile(text, "explored", "exec"), functions)
    assert len(found.tests) == found.exploration.reached > 0
    for test in found.tests:
        opened: list[bpfunit.Object] = []

        def load(*args: Any, opened: list[bpfunit.Object] = opened, **options: Any) -> Any:
            opened.append(bpfunit.load(*args, **options))
            return opened[-1]

        functions[test.name](load)
        for obj in opened:
            obj.close()


@pytest.mark.parametrize(("name", "program", "beyond"), PROGRAMS)
def test_edges_are_reached_and_the_tests_of_them_pass(
    name: str, program: str, beyond: list[str]
) -> None:
    path = compiled(name)
    found = written(path, program)
    for line in found.exploration.report()[1:]:
        if "not reached" in line:
            assert any(part in line for part in beyond), line
    passes(path, found)


@pytest.mark.parametrize(("program", "most"), [("mesh_sockops", 51), ("mesh_sk_msg", 14)])
def test_the_neighbours_of_the_hook(program: str, most: int) -> None:
    found = written(MESH, program)
    assert found.exploration.reached >= most, "\n".join(found.exploration.report())
    passes(MESH, found)


def test_names_of_files_are_found_byte_by_byte() -> None:
    path = compiled("sysctl")
    found = explore_and_write(path, "guard", budget=ENOUGH)
    assert found.exploration.reached >= 0.9 * found.exploration.alive
    passes(path, found)
