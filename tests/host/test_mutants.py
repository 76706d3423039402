"""The table of mutants: every edit applies to the source, every guard is a test there is."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.mutants.build import ROOT, SOURCE, MutantError, mutate
from tests.mutants.mutant import Mutant
from tests.mutants.table import BYTE_ORDER
from tests.mutants.table import MUTANTS as ORDINARY

MUTANTS = [*ORDINARY, *BYTE_ORDER]


def test_there_are_at_least_forty():
    assert len([mutant for mutant in MUTANTS if not mutant.equivalent]) >= 40


def test_names_are_unique():
    assert [name for name, count in Counter(m.name for m in MUTANTS).items() if count > 1] == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_edit_applies_and_changes_the_source(mutant: Mutant):
    text = (SOURCE / mutant.file).read_text()

    assert mutate(mutant, text) != text


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_has_a_guard_that_exists_or_a_reason(mutant: Mutant):
    assert bool(mutant.guard) != bool(mutant.equivalent)
    if mutant.guard:
        file, _, test = mutant.guard.partition("::")
        source = (ROOT / mutant.subject.tests / file).read_text()
        tests = re.findall(r"^def (test_\w+)", source, re.M)
        assert test in tests


def test_edit_that_no_longer_applies_is_an_error():
    stale = Mutant("stale", "hook.bpf.c", "not in the source", "", guard="test_dnat.py::test_x")

    with pytest.raises(MutantError, match=r"has no 'not in the source'.*tests/mutants/table"):
        mutate(stale, "int main;")


def test_edit_behind_text_that_is_gone_is_an_error():
    stale = Mutant("stale", "hook.bpf.c", "main", "", after="gone", guard="test_dnat.py::test_x")

    with pytest.raises(MutantError, match="has no 'gone'"):
        mutate(stale, "int main;")
