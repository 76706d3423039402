"""How programs of each type run here: by the kernel, by the module, or by real calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfunit._sys.uapi import ProgType
from bpfunit.errors import SyscallError
from bpfunit.progtypes.base import type_of
from bpfunit.rewrite import insn as asm

from . import table
from .conftest import Facts
from .stock import ENOTSUPP, FUNC, btf_id, loaded, packet, refusal, run
from .test_test_runs import TYPES, Loaded

pytestmark = pytest.mark.guest

_EQUIPPED = Path("/sys/module/bpfunit_testrun/parameters/programs")
# The module puts the kernel's own test run right; which kernels need it docs/module-types.md says.
_MENDED = ProgType.CGROUP_SKB


def equipped() -> int:
    """How many programs the module has given a test run to, 0 where there is no module."""
    return int(_EQUIPPED.read_text(encoding="ascii")) if _EQUIPPED.exists() else 0


@pytest.mark.parametrize("one", TYPES, ids=lambda one: one.name)
def test_how_a_type_runs(facts: Facts, one: Loaded):
    code = [asm.mov_imm(0, int(one.prog_type == ProgType.LIRC_MODE2)), asm.exit_()]
    target = btf_id(one.attach_to, FUNC) if one.attach_to else 0
    if one.attach_to and not target:
        facts.say(table.TYPES, one.name, f"not loaded: no {one.attach_to}")
        return
    before = equipped()
    try:
        with loaded(code, one.prog_type, one.attach_type, flags=one.flags, btf=target) as fd:
            error, _ = run(fd, packet(64))
            by_module = equipped() > before
    except SyscallError as error_of_load:
        facts.say(table.TYPES, one.name, f"not loaded: {refusal(error_of_load)}")
        return
    ways = []
    if error != ENOTSUPP and (not by_module or one.prog_type == _MENDED):
        ways.append("kernel")
    if error != ENOTSUPP and by_module:
        ways.append("module")
    if type_of(one.prog_type).live:
        ways.append("live")
    facts.say(table.TYPES, one.name, ", ".join(ways) or "no")
