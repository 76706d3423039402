"""The engines against each other: thousands of random cases, and no difference."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

import bpfunit
from bpfunit import features
from bpfunit.netns import NetworkNamespace

from ..objects import compiled
from .oracle import Bench, Tally, make_case, simplest

pytestmark = pytest.mark.guest

# Cases that are run and compared on both engines, for each hook; 10,000 and some in all. The hooks
# of names attach and detach the program for each case: what is arranged asks for names itself.
COMPARED = int(os.environ.get("BPFUNIT_CASES", "1200"))
CALLS = ("connect", "bind", "sendmsg", "recvmsg")
FAST = {f"{call}{n}": COMPARED for call in CALLS for n in (4, 6)}
NAMES = {f"{call}{n}": COMPARED // 6 for call in ("getpeername", "getsockname") for n in (4, 6)}


@pytest.fixture
def oracle(bpf_load: Callable[..., bpfunit.Object]) -> bpfunit.Object:
    """The program that sees everything, with all that this kernel lets it do."""
    version = features.kernel_version()
    can = {"bind_verdicts": 3 if version >= (5, 12, 0) else 1}
    can["has_set_retval"] = features.has_helper("bpf_set_retval")
    return bpf_load(compiled("oracle"), globals=can)


@pytest.fixture
def elsewhere() -> Iterator[list[NetworkNamespace]]:
    """Two network namespaces next to the guest's own."""
    with ExitStack() as stack:
        yield [stack.enter_context(NetworkNamespace()) for _ in range(2)]


@pytest.mark.parametrize(("name", "count"), (FAST | NAMES).items(), ids=(FAST | NAMES).keys())
def test_engines_agree_on_random_cases(
    name: str,
    count: int,
    oracle: bpfunit.Object,
    elsewhere: list[NetworkNamespace],
    record_property: Callable[[str, object], None],
) -> None:
    tally = Tally()
    with Bench(oracle, name, elsewhere) as bench:
        for seed in range(20 * count):
            case = make_case(bench.program, seed)
            answers = bench.ask(case)
            if answers is None:
                continue
            if difference := tally.judge(case, answers):
                least = simplest(bench, case)
                pytest.fail(f"seed {seed}: {difference}\nthe simplest such case: {least}")
            if tally.compared == count:
                break
    for what, counted in vars(tally).items():
        record_property(f"{name} {what}", counted)
    print(f"{name}: {vars(tally)}")
    assert tally.compared == count
