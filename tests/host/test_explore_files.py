"""Files that ``bpfunit explore`` writes: what is between its marks is replaced, nothing else."""

from __future__ import annotations

import ctypes
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bpfunit.cli.diff import _names, _require_effect
from bpfunit.errors import BpfunitError
from bpfunit.explorer import Input, Step, merged, nonzero
from bpfunit.explorer.cells import Cell
from bpfunit.explorer.facts import Site, failure_of
from bpfunit.explorer.recorder import maps_in_registers
from bpfunit.explorer.solver import goals_of, solve_bits
from bpfunit.explorer.write import leaves, literal, role_of
from bpfunit.rewrite import Flow, insn
from bpfunit.rewrite.helpers import helper_name, helper_number
from bpfunit.values.records import StructRecord, array_type

pytestmark = pytest.mark.host


def a_block(program: str, body: str) -> str:
    return (
        f"# --- explored: {program}: written by `bpfunit explore`, which replaces it\n{body}\n"
        f"# --- end of explored: {program}\n"
    )


def test_a_new_file_has_a_docstring_and_the_block() -> None:
    text = merged("", "one", a_block("one", "first = 1"))
    assert text.startswith('"""')
    assert text.endswith(a_block("one", "first = 1"))


def test_a_block_is_replaced_and_tests_by_hand_around_it_stay() -> None:
    by_hand = "import os\n\n\ndef test_mine():\n    assert os\n"
    file = merged(by_hand, "one", a_block("one", "first = 1")) + "\n\ndef test_behind(): ...\n"
    again = merged(file, "one", a_block("one", "second = 2"))
    assert "first" not in again
    assert "second = 2" in again
    assert by_hand in again
    assert again.endswith("def test_behind(): ...\n")
    assert merged(again, "one", a_block("one", "second = 2")) == again


def test_two_programs_share_a_file() -> None:
    both = merged(merged("", "one", a_block("one", "a = 1")), "two", a_block("two", "b = 2"))
    both = merged(both, "one", a_block("one", "a = 3"))
    assert "a = 3" in both
    assert "b = 2" in both
    assert "a = 1" not in both


class Backend(StructRecord):
    _fields_: ClassVar[Any] = [
        ("addr", ctypes.c_uint32),
        ("port", ctypes.c_uint32),
        ("weights", array_type(ctypes.c_uint16, 3)),
    ]
    _members_: ClassVar[dict[str, Any]] = dict(_fields_)


def test_values_are_written_in_the_words_of_the_api() -> None:
    value = Backend.from_buffer_copy(
        bytes((10, 0, 0, 9)) + (8080).to_bytes(2, "big") + bytes(2) + b"\7\0\0\0\0\0" + bytes(2)
    )
    assert literal(value) == '{"addr": ip4("10.0.0.9"), "port": port(8080), "weights": [7]}'
    assert nonzero(value) == {"addr": 0x0900000A, "port": 0x901F, "weights": [7]}
    assert [name for _, _, name in leaves(Backend)] == ["addr", "port", *["weights"] * 3]
    assert [role_of(name) for name in ("sk.daddr", "target_port", "import", "count")] == [
        *("addr", "port", "", ""),
    ]


def test_an_input_keeps_one_value_for_each_entry() -> None:
    given = Input((Step(b"ctx"),)).with_entry(1, b"k", b"v").with_entry(1, b"k", b"w")
    assert given.entries == ((1, b"k", b"w"),)
    assert given.with_entry(1, b"k", None).entries == ()
    assert given.with_stub(3, -1).stubs == ((3, (1 << 64) - 1),)


@pytest.mark.parametrize("op", [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xB0, 0xC0, 0xD0])
def test_goals_of_every_comparison_go_the_wanted_way(op: int) -> None:
    for narrow in (True, False):
        site = Site("branch", 0, op=op, narrow=narrow)
        for a, b in ((0, 5), (5, 5), (9, 5), (1 << 31, 5), (3, 0x80000000)):
            wanted = not site.taken(*site.operands(a, b))
            goals = list(goals_of(site, a, b, wanted))
            assert goals, (op, a, b)
            assert all(site.taken(*goal) == wanted for goal in goals)


def test_bits_are_solved_through_a_byte_swap() -> None:
    cell = Cell("ctx", 0, 24, 2)
    flips = [(cell, bit, 1 << (bit ^ 8), 0) for bit in range(16)]
    chosen = solve_bits(flips, 0x0050)
    assert chosen == [(cell, 12), (cell, 14)]
    assert solve_bits(flips, 1 << 20) is None


def test_a_map_is_followed_through_moves_and_lost_where_paths_differ() -> None:
    map_fd = 7
    code = [
        insn.Insn(insn.LD_IMM64, 6, insn.PSEUDO_MAP_FD, 0, map_fd),
        insn.Insn(0),
        insn.mov_reg(1, 6),
        insn.Insn(insn.JMP | insn.CALL, imm=1),
        insn.branch_imm(insn.JEQ, 0, 0, 2),
        insn.Insn(insn.LD_IMM64, 6, insn.PSEUDO_MAP_FD, 0, 8),
        insn.Insn(0),
        insn.mov_reg(1, 6),
        insn.Insn(insn.JMP | insn.CALL, imm=1),
        insn.exit_(),
    ]
    assert maps_in_registers(Flow(code)) == {3: map_fd}


def test_helpers_have_names_and_failures() -> None:
    assert helper_name(helper_number("bpf_sk_storage_get")) == "bpf_sk_storage_get"
    assert failure_of(helper_number("bpf_sk_storage_get")) == 0
    assert failure_of(helper_number("bpf_map_update_elem")) == (1 << 64) - 12
    assert failure_of(helper_number("bpf_map_lookup_elem")) is None


def built(directory: Path, *names: str) -> Path:
    """Compile an object with a program of each name."""
    source, target = directory / "programs.c", directory / f"{'-'.join(names)}.o"
    source.write_text(
        "\n".join(
            f'__attribute__((section("xdp"), used)) int {name}(void *ctx) {{ return 2; }}'
            for name in names
        )
    )
    command = ["clang", "-target", "bpf", "-O2", "-g", "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True, timeout=60)
    return target


def test_diff_names_the_programs_that_one_build_has_alone(tmp_path: Path):
    old, new, other = (built(tmp_path, *n) for n in (("a", "b"), ("b", "c"), ("d",)))
    assert _names(old, new) == (["b"], [f"a: only in {old}", f"c: only in {new}"])
    assert _names(old, old) == (["a", "b"], [])
    with pytest.raises(BpfunitError, match="no program of the same name"):
        _names(old, other)


@pytest.mark.parametrize(
    ("reached", "refused"), [([(0, 5), (0, 5)], True), ([(0, 5), (1, 5)], False), ([(0, 0)], False)]
)
def test_diff_that_saw_nothing_run_is_no_agreement(reached: list[tuple[int, int]], refused: bool):
    one = {"program": "p", "same_code": False, "differs": False, "reached": reached, "runs": 9}
    with pytest.raises(BpfunitError, match="nothing was") if refused else nullcontext():
        _require_effect(one)
