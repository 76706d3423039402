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

# For each of the twelve hooks, run and compared on both engines: 10,000 and some in all.
COMPARED = int(os.environ.get("BPFUNIT_CASES", "840"))
HOOKS = [
    f"{kind}{family}"
    for kind in ("connect", "bind", "sendmsg", "recvmsg", "getpeername", "getsockname")
    for family in (4, 6)
]


@pytest.fixture
def oracle(bpf_load: Callable[..., bpfunit.Object]) -> bpfunit.Object:
    """The program that sees everything, with all that this kernel lets it do."""
    version = features.kernel_version()
    can = {"bind_verdicts": 3 if version >= (5, 12, 0) else 1}
    can["has_set_retval"] = features.has_helper("bpf_set_retval")
    return bpf_load(compiled("oracle"), globals=can)


@pytest.fixture
def bench(oracle: bpfunit.Object) -> Iterator[Bench]:
    """Both engines around the oracle, and three network namespaces."""
    with ExitStack() as stack:
        others = [stack.enter_context(NetworkNamespace()) for _ in range(2)]
        yield Bench(oracle, others)


@pytest.mark.parametrize("name", HOOKS)
def test_engines_agree_on_random_cases(
    name: str, bench: Bench, oracle: bpfunit.Object, record_property: Callable[[str, object], None]
) -> None:
    tally = Tally()
    program = oracle.programs[name]
    for seed in range(20 * COMPARED):
        case = make_case(program, str(seed))
        answers = bench.ask(case)
        if answers is None:
            continue
        if difference := tally.judge(answers):
            least = simplest(bench, case)
            pytest.fail(f"seed {seed}: {difference}\nthe simplest such case: {least}")
        if tally.compared == COMPARED:
            break
    for what, count in vars(tally).items():
        record_property(f"{name} {what}", count)
    print(f"{name}: {vars(tally)}")
    assert tally.compared == COMPARED
