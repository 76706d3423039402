"""The Python extension: what it finds in code is what Python finds in it."""

from __future__ import annotations

import random

import pytest

from bpfunit import _native
from bpfunit.objects import object as objects
from bpfunit.rewrite import insn as asm

pytestmark = pytest.mark.host


def some_code(chance: random.Random) -> bytes:
    known = [
        asm.Insn(asm.LD_IMM64, 1, asm.PSEUDO_MAP_FD, 0, chance.randrange(1, 99)),
        asm.Insn(asm.JMP | asm.CALL, imm=chance.randrange(1, 200)),
        asm.Insn(asm.JMP | asm.CALL, 0, asm.PSEUDO_KFUNC, 0, -chance.randrange(1, 200)),
        asm.mov_imm(0, chance.randrange(99)),
        asm.exit_(),
    ]
    return asm.encode([chance.choice(known) for _ in range(50)]) + chance.randbytes(80)


@pytest.mark.parametrize("seed", range(20))
def test_maps_helpers_and_kfuncs_of_code(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    code = some_code(random.Random(seed))
    assert _native.extension() is not None
    in_c = objects._scanned(code)
    monkeypatch.setattr(_native, "extension", lambda: None)
    in_python = objects._scanned(code)
    assert in_c == in_python
    assert all(in_c)
