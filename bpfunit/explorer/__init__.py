"""Tests that write themselves: inputs for every branch edge of a program, found in its kernel."""

from __future__ import annotations

from bpfunit.explorer.executor import Executor, ExploreError
from bpfunit.explorer.facts import Facts
from bpfunit.explorer.result import EdgeState, Exploration
from bpfunit.explorer.run import explore
from bpfunit.explorer.search import Budget, Found, Search
from bpfunit.explorer.wire import Input, Outcome, Step

__all__ = [
    "Budget",
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
    "explore",
]
