"""Patched programs point where the originals did."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bpfunit.rewrite import Flow, Insn, Liveness, Patcher, RewriteError, decode, encode
from bpfunit.rewrite import insn as i
from bpfunit.rewrite.helpers import helper_number
from bpfunit.rewrite.info import FuncInfo, LineInfo
from bpfunit.rewrite.liveness import stack_floor

pytestmark = pytest.mark.host

NOP = i.mov_reg(0, 0)
CALL = i.JMP | i.CALL
GOTOL = i.JMP32 | i.JA
EXIT = i.exit_()


def patched(insns: list[Insn]) -> Patcher:
    return Patcher(Flow(insns))


def jumps_of(insns: list[Insn]) -> dict[int, int]:
    """The slot that each jump and call leads to."""
    flow = Flow(insns)
    found = {}
    for block in flow.blocks:
        if block.taken is not None:
            found[block.last] = flow.blocks[block.taken].start
    return found


def test_bytes_survive_decoding_and_encoding() -> None:
    data = bytes.fromhex("b701000001000080 6512f0ff00000000 18f40000ffffffff 00000000ffffff7f")
    assert encode(decode(data)) == data
    assert decode(data)[0] == Insn(0xB7, dst=1, imm=-0x7FFFFFFF)
    assert decode(data)[1] == Insn(0x65, dst=2, src=1, off=-16)


def test_the_same_program_of_either_byte_order_decodes_to_the_same_instructions(
    tmp_path: Path,
) -> None:
    (tmp_path / "one.c").write_text(
        "extern int target[2]; unsigned long one(unsigned short *p, unsigned long n)"
        " { for (; n; n--) if (p[n] == 0x1234) return 0x123456789abcdef0; return -n - p[1]; }"
    )
    found = []
    for name, little_endian in (("bpfel", True), ("bpfeb", False)):
        build = ["clang", "-target", name, "-mcpu=v3", "-O2", "-c", "one.c", "-o", f"{name}.o"]
        subprocess.run(build, cwd=tmp_path, check=True)
        cut = ["llvm-objcopy", "-O", "binary", "--only-section=.text", f"{name}.o", name]
        subprocess.run(cut, cwd=tmp_path, check=True)
        data = (tmp_path / name).read_bytes()
        found.append(decode(data, little_endian=little_endian))
        assert encode(found[-1], little_endian=little_endian) == data
        assert decode(data, little_endian=not little_endian) != found[-1]
    assert found[0] == found[1]
    assert {insn.src for insn in found[0]} >= {0, 1, 2}
    assert any(insn.is_wide and insn.imm == -0x65432110 for insn in found[0])


def test_what_is_looked_for_among_numbers_is_what_decoding_finds() -> None:
    insns = [Insn(i.LD_IMM64, 3, i.PSEUDO_MAP_FD, imm=7), Insn(0), Insn(CALL, imm=12), EXIT]
    words = memoryview(encode(insns)).cast("Q")
    looked_at = [(word & i.OPCODE_AND_SOURCE, i.immediate(word)) for word in words]
    assert looked_at == [(i.opcode_and_source(n.code, n.src), n.imm) for n in insns]


def test_half_an_instruction_is_refused() -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        decode(bytes(12))


def test_a_constant_of_64_bits_takes_two_slots() -> None:
    assert i.load_imm64(3, -2) == [Insn(0x18, 3, imm=-2), Insn(0, imm=-1)]
    assert i.load_imm64(3, 1 << 63)[1].imm == -(1 << 31)


@pytest.mark.parametrize("code", [i.JMP | i.JEQ, i.JMP32 | i.JEQ, i.JMP | i.JCOND])
def test_short_jumps_of_each_class_are_relinked_both_ways(code: int) -> None:
    insns = [NOP, Insn(code, off=1), Insn(code, off=-3), EXIT]
    patcher = patched(insns)
    patcher.before(1, [NOP, NOP])
    patcher.before(3, [NOP])
    out = patcher.apply().insns
    assert out == [NOP, NOP, NOP, Insn(code, off=1), Insn(code, off=-5), NOP, EXIT]


def test_long_jumps_keep_their_distance_in_the_immediate() -> None:
    patcher = patched([Insn(GOTOL, imm=1), NOP, EXIT])
    patcher.before(1, [NOP] * 40000)
    out = patcher.apply().insns
    assert out[0] == Insn(GOTOL, imm=40001)


def test_a_short_jump_that_cannot_reach_is_refused_with_the_reason() -> None:
    patcher = patched([i.goto(1), NOP, EXIT])
    patcher.before(1, [NOP] * 40000)
    with pytest.raises(RewriteError, match="over 40001 instructions, its 16-bit field"):
        patcher.apply()


def test_calls_callbacks_and_their_records_move_along() -> None:
    call, callback = Insn(CALL, src=i.PSEUDO_CALL, imm=4), Insn(i.LD_IMM64, 2, i.PSEUDO_FUNC, imm=4)
    insns = [call, callback, Insn(0), NOP, EXIT, NOP, EXIT, NOP, EXIT]
    insns[1] = callback._replace(imm=5)  # the function at 7
    funcs = [FuncInfo(0, 11), FuncInfo(5, 12), FuncInfo(7, 13)]
    lines = [LineInfo(0, 1, 2, 3 << 10), LineInfo(5, 1, 2, 4 << 10), LineInfo(7, 1, 2, 5 << 10)]
    patcher = patched(insns)
    patcher.before(0, [NOP])
    patcher.on_entry(5, [NOP, NOP])
    patcher.on_entry(7, [NOP])
    out = patcher.apply(funcs, lines)
    assert out.insns[1].imm == 4
    assert 1 + 1 + out.insns[1].imm == 6, "the call goes to the entry probe"
    assert 2 + 1 + out.insns[2].imm == 10
    assert [f.insn_off for f in out.func_info] == [0, 6, 10]
    assert [line.insn_off for line in out.line_info] == [0, 6, 10]
    assert [line.line for line in out.line_info] == [3, 4, 5]


def test_a_loop_to_the_start_of_a_function_does_not_enter_it_again() -> None:
    insns = [i.alu_imm(i.ADD, 1, -1), i.branch_imm(i.JNE, 1, 0, -2), EXIT]
    patcher = patched(insns)
    patcher.on_entry(0, [NOP])
    assert jumps_of(patcher.apply().insns) == {2: 1}


def test_the_two_edges_of_a_jump_are_apart() -> None:
    """The fall-through edge is not passed by jumps to the next, nor the taken edge by others."""
    insns = [i.branch_imm(i.JEQ, 1, 0, 2), i.branch_imm(i.JEQ, 1, 1, 0), i.goto(0), EXIT]
    taken, fallen = i.mov_imm(2, 1), i.mov_imm(2, 2)
    patcher = patched(insns)
    patcher.on_fallthrough(0, [fallen])
    patcher.on_taken(0, [taken])
    out = patcher.apply().insns
    assert out == [
        i.branch_imm(i.JEQ, 1, 0, 4),
        fallen,
        i.branch_imm(i.JEQ, 1, 1, 0),
        i.goto(0),
        EXIT,
        taken,
        i.goto(-3),
    ]


def test_an_out_of_line_probe_has_the_line_of_its_jump() -> None:
    insns = [NOP, i.branch_imm(i.JEQ, 1, 0, 1), NOP, EXIT]
    lines = [LineInfo(0, 1, 2, 7 << 10), LineInfo(1, 1, 2, 8 << 10), LineInfo(2, 1, 2, 9 << 10)]
    patcher = patched(insns)
    patcher.on_taken(1, [NOP])
    out = patcher.apply((), lines)
    assert [(line.insn_off, line.line) for line in out.line_info] == [
        (0, 7),
        (1, 8),
        (2, 9),
        (4, 8),
    ]


def test_a_replaced_call_is_where_jumps_to_it_lead() -> None:
    insns = [i.branch_imm(i.JEQ, 1, 0, 1), NOP, Insn(CALL, imm=7), EXIT]
    patcher = patched(insns)
    patcher.replace(2, [i.mov_imm(0, 5), NOP])
    out = patcher.apply()
    assert out.insns == [i.branch_imm(i.JEQ, 1, 0, 1), NOP, i.mov_imm(0, 5), NOP, EXIT]
    assert out.origin == [0, 1, -1, -1, 3]


def test_an_instruction_is_replaced_once_and_pairs_stay_whole() -> None:
    patcher = patched([*i.load_imm64(0, 1), NOP, EXIT])
    patcher.replace(2, [EXIT])
    with pytest.raises(RewriteError, match="already replaced"):
        patcher.replace(2, [EXIT])
    with pytest.raises(RewriteError, match="half of a pair"):
        patcher.replace(0, [NOP])
    with pytest.raises(RewriteError, match="slot 1 holds no instruction"):
        patcher.before(1, [NOP])


def test_a_jump_out_of_the_program_is_refused() -> None:
    with pytest.raises(RewriteError, match="leads to 5"):
        Flow([i.goto(4), EXIT])


def test_nothing_follows_a_tail_call_that_succeeds() -> None:
    flow = Flow([Insn(CALL, imm=helper_number("bpf_tail_call")), i.mov_imm(0, 1), EXIT])
    assert [(block.start, block.end) for block in flow.blocks] == [(0, 1), (1, 3)]


def free(insns: list[Insn], index: int) -> set[int]:
    bits = Liveness(Flow(insns)).free_before(index)
    return {register for register in range(10) if bits >> register & 1}


def test_registers_are_free_that_are_written_before_they_are_read() -> None:
    insns = [i.mov_imm(3, 1), i.mov_imm(0, 0), i.alu_reg(i.ADD, 0, 3), EXIT]
    assert 3 not in free(insns, 1)
    assert 0 in free(insns, 1)
    assert 0 not in free(insns, 2)
    assert free(insns, 3) >= {1, 2, 3, 9}


def test_arguments_that_were_never_set_are_free_before_a_call() -> None:
    """A call seems to read r1 to r5; what no path has written it cannot read."""
    insns = [i.mov_imm(2, 1), Insn(CALL, imm=7), EXIT]
    assert free(insns, 1) == {0, 3, 4, 5, 6, 7, 8, 9}


def test_a_register_set_on_one_path_only_is_not_free() -> None:
    insns = [i.branch_imm(i.JEQ, 1, 0, 1), i.mov_imm(4, 1), Insn(CALL, imm=7), EXIT]
    assert 4 not in free(insns, 2)


def test_atomic_operations_read_and_write_what_they_say() -> None:
    exchange = i.atomic_add64(2, 0, 3)._replace(imm=i.CMPXCHG)
    fetch = i.atomic_add64(2, 0, 3)._replace(imm=i.ADD | i.FETCH)
    setup = [i.mov_imm(register, 0) for register in (0, 2, 3)]
    assert not free([*setup, exchange, EXIT], 3) & {0, 2, 3}
    assert 0 in free([*setup, fetch, i.mov_reg(0, 3), EXIT], 3)


def test_the_stack_in_use_is_not_underestimated() -> None:
    insns = [i.mov_reg(2, 10), i.alu_imm(i.ADD, 2, -60), i.store_imm(4, 2, -4, 0), EXIT]
    assert stack_floor(insns, 0, len(insns)) == -64
    assert stack_floor([EXIT], 0, 1) == 0


def test_helpers_are_known_by_name() -> None:
    assert helper_number("bpf_get_prandom_u32") == 7
    assert helper_number("bpf_sk_storage_get") == 107
    assert helper_number("bpf_cgrp_storage_delete") == 211
