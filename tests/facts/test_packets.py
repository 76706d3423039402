"""With which sizes of packets a stock kernel runs a program."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.errors import SyscallError
from bpfunit.rewrite import insn as asm

from .conftest import Facts
from .stock import HAS_FRAGS, loaded, packet, refusal, run, stock

pytestmark = pytest.mark.guest

_TABLE = "Sizes of packets"
_PROTOCOLS = {"IPv4": 0x0800, "IPv6": 0x86DD, "ARP": 0x0806}
_CODE = [asm.mov_imm(0, 1), asm.exit_()]  # TC_ACT_RECLASSIFY, XDP_DROP, SK_PASS: all of them run


def _largest(runs: Callable[[int], bool], above: int, limit: int) -> str:
    """Return the largest size that runs, by halving; ``above`` does."""
    if runs(limit):
        return f"{limit} at least"
    lowest, highest = above, limit
    while highest - lowest > 1:
        middle = (lowest + highest) // 2
        lowest, highest = (middle, highest) if runs(middle) else (lowest, middle)
    return str(lowest)


@pytest.mark.parametrize("protocol", _PROTOCOLS)
@pytest.mark.parametrize(
    ("name", "prog_type", "attach_type"),
    [
        ("TC", ProgType.SCHED_CLS, 0),
        ("cgroup_skb", ProgType.CGROUP_SKB, AttachType.CGROUP_INET_INGRESS),
        ("XDP", ProgType.XDP, AttachType.XDP),
    ],
)
def test_smallest(facts: Facts, name: str, prog_type: int, attach_type: int, protocol: str):
    with stock(), loaded(_CODE, prog_type, attach_type) as fd:
        sizes = [n for n in range(1, 100) if not run(fd, packet(n, _PROTOCOLS[protocol]))[0]]
    assert sizes == list(range(sizes[0], 100))
    facts.say(_TABLE, f"{name}, smallest, {protocol}", str(sizes[0]))


@pytest.mark.parametrize(
    ("name", "prog_type", "flags"),
    [
        ("TC", ProgType.SCHED_CLS, 0),
        ("XDP", ProgType.XDP, 0),
        ("XDP with frags", ProgType.XDP, HAS_FRAGS),
    ],
)
def test_largest(facts: Facts, name: str, prog_type: int, flags: int):
    try:
        with stock(), loaded(_CODE, prog_type, flags=flags) as fd:
            found = _largest(lambda size: run(fd, packet(size))[0] == 0, 100, 1 << 18)
    except SyscallError as error:
        found = f"not loaded: {refusal(error)}"
    facts.say(_TABLE, f"{name}, largest", found)
