"""``bpfunit.explore()``: the search beside the program, in one process."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from bpfunit.explorer.executor import Executor
from bpfunit.explorer.result import Exploration
from bpfunit.explorer.search import Budget, Search
from bpfunit.explorer.write import Writer, WrittenTest
from bpfunit.objects.object import Object


class Written(NamedTuple):
    """An exploration and its tests."""

    exploration: Exploration
    tests: list[WrittenTest]


def explore_and_write(
    path: str | os.PathLike[str],
    program: str,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    **options: Any,
) -> Written:
    """Search as :func:`explore` does, and make tests of what was found."""
    with Executor(path, program, options) as executor:
        search = Search(executor.facts, executor.execute, seed, budget)
        found = Exploration(executor.facts, search.run(), seed, search.compared())
        return Written(found, Writer(executor, found, search).tests())


def explore(
    obj: Object | str | os.PathLike[str],
    program: str,
    *,
    seed: int = 0,
    budget: Budget | float | None = None,
    **options: Any,
) -> Exploration:
    """Search inputs for every branch edge of a program; see :func:`bpfunit.explore`."""
    path = obj.path if isinstance(obj, Object) else obj
    limits = Budget(seconds=budget) if isinstance(budget, (int, float)) else budget
    with Executor(path, program, options) as executor:
        search = Search(executor.facts, executor.execute, seed, limits)
        found = search.run()
        return Exploration(executor.facts, found, seed, search.compared())
