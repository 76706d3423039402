"""Tests that write themselves: inputs for every branch edge of a program, found in its kernel."""

from __future__ import annotations

from bpfunit.explorer.case import Budget, Found
from bpfunit.explorer.corpus import CorpusError
from bpfunit.explorer.diff import Comparison, compare
from bpfunit.explorer.executor import Executor, ExploreError
from bpfunit.explorer.facts import Facts
from bpfunit.explorer.result import EdgeState, Exploration
from bpfunit.explorer.run import Written, explore, explore_and_write, replay
from bpfunit.explorer.search import Search
from bpfunit.explorer.wire import Input, Outcome, Step
from bpfunit.explorer.write import WrittenTest, block, merged, nonzero

__all__ = [
    "Budget",
    "Comparison",
    "CorpusError",
    "EdgeState",
    "Executor",
    "Exploration",
    "ExploreError",
    "Facts",
    "Found",
    "Input",
    "Outcome",
    "Search",
    "Step",
    "Written",
    "WrittenTest",
    "block",
    "compare",
    "explore",
    "explore_and_write",
    "merged",
    "nonzero",
    "replay",
]
