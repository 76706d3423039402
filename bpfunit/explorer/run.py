"""``bpfunit.explore()``: the search beside the program, in one process."""

from __future__ import annotations

import os
from typing import Any

from bpfunit.explorer.executor import Executor
from bpfunit.explorer.result import Exploration
from bpfunit.explorer.search import Budget, Search
from bpfunit.objects.object import Object


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
