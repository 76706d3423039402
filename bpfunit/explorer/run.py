"""``bpfunit.explore()`` and ``bpfunit.replay()``: the search beside the program, in one process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bpfunit.explorer import corpus as files_of
from bpfunit.explorer.corpus import Form, Variable
from bpfunit.explorer.executor import Executor
from bpfunit.explorer.facts import SECTION
from bpfunit.explorer.minimise import covering
from bpfunit.explorer.result import Exploration
from bpfunit.explorer.search import Budget, Edge, Found, Search
from bpfunit.explorer.wire import Input
from bpfunit.explorer.write import Writer, WrittenTest
from bpfunit.objects.object import Object


class Written(NamedTuple):
    """An exploration, its tests, and the files by which it makes a corpus grow."""

    exploration: Exploration
    tests: list[WrittenTest]
    grown: dict[str, str]


def form_of(executor: Executor) -> Form:
    """Return what turns inputs of a program into files and back."""
    obj, facts = executor.loaded, executor.facts
    sections = {one.name: n for n, one in enumerate(facts.maps) if one.kind == SECTION}
    variables = {}
    for name, found in obj.sections.variables.items():
        one = found[0]
        if one.section in sections:
            variables[name] = Variable(sections[one.section], one.offset, one.size)
    return Form(facts, obj.programs[facts.program].program_type.context, variables)


@dataclass
class _Run:
    """One search with a corpus: what was known, what was found."""

    executor: Executor
    search: Search
    exploration: Exploration
    form: Form
    taken: Set[Edge]

    def writer(self) -> Writer:
        return Writer(self.executor, self.exploration, self.search)

    def grown(self, writer: Writer) -> dict[str, str]:
        """Return files of inputs for the edges that none of the corpus takes, made small."""
        found = {}
        for case, edges in covering(self.exploration.found, self.taken):
            smallest = writer.smallest(case, edges)
            takes = [writer.edge(edge) for edge in edges]
            name, text = self.form.file(smallest.given, writer.label(edges[-1]), takes)
            found[name] = text
        return found


def _searched(
    executor: Executor, seed: int, budget: Budget | None, files: Mapping[str, str]
) -> _Run:
    form = form_of(executor)
    known = _known(executor, form, files)
    search = Search(executor.facts, executor.execute, seed, budget)
    taken = {edge for case in search.cases_of(list(known.values())) for edge in case.edges}
    found = search.run(known.values())
    exploration = Exploration(executor.facts, found, seed, search.compared())
    return _Run(executor, search, exploration, form, taken)


def _known(executor: Executor, form: Form, files: Mapping[str, str]) -> dict[str, Any]:
    known = {}
    for name, given in form.inputs(files):
        if given is None:
            executor.facts.notes.append(
                f"{name} is left out: this kernel lets no stub answer what it wants answered"
            )
        else:
            known[name] = given
    return known


def explore_and_write(
    path: str | os.PathLike[str],
    program: str,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    tests: bool = True,
    corpus: Mapping[str, str] | None = None,
    **options: Any,
) -> Written:
    """Search as :func:`explore` does, and make tests of what was found.

    Args:
        path: the object.
        program: the program's name.
        seed: of what is chosen by chance.
        budget: when to end.
        tests: whether tests are wanted.
        corpus: the files of a corpus, as :func:`bpfunit.explorer.corpus.read` returns them; None
            where none is to grow.
        **options: for :func:`bpfunit.load`.
    """
    with Executor(path, program, options) as executor:
        return _written(_searched(executor, seed, budget, corpus or {}), corpus, tests=tests)


def _written(run: _Run, corpus: Mapping[str, str] | None, *, tests: bool) -> Written:
    writer = run.writer()
    grown = run.grown(writer) if corpus is not None else {}
    return Written(run.exploration, writer.tests() if tests else [], grown)


def known_inputs(executor: Executor, files: Mapping[str, str]) -> list[Input]:
    """Return the inputs of a corpus that this kernel takes, to begin a search with.

    Raises:
        CorpusError: a file does not fit the program.
    """
    return list(_known(executor, form_of(executor), files).values())


def write_found(
    executor: Executor,
    inputs: Sequence[Input],
    compared: Mapping[int, list[tuple[int, int]]],
    *,
    seed: int = 0,
    tests: bool = True,
    corpus: Mapping[str, str] | None = None,
) -> Written:
    """Make tests of what a search found that ran elsewhere: these inputs run again, nothing else.

    Args:
        executor: has the program.
        inputs: those that took an edge first.
        compared: what :meth:`Search.compared` said.
        seed: that of the search.
        tests, corpus: as of :func:`explore_and_write`.
    """
    form = form_of(executor)
    search = Search(executor.facts, executor.execute, seed)
    known = _known(executor, form, corpus or {})
    taken = {edge for case in search.cases_of(list(known.values())) for edge in case.edges}
    found = search.only(inputs)
    exploration = Exploration(executor.facts, found, seed, dict(compared))
    return _written(_Run(executor, search, exploration, form, taken), corpus, tests=tests)


def explore(
    obj: Object | str | os.PathLike[str],
    program: str,
    *,
    seed: int = 0,
    budget: Budget | float | None = None,
    corpus: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Exploration:
    """Search inputs for every branch edge of a program; see :func:`bpfunit.explore`."""
    limits = Budget(seconds=budget) if isinstance(budget, (int, float)) else budget
    files = {} if corpus is None else files_of.read(corpus, program)
    with Executor(_path(obj), program, options) as executor:
        run = _searched(executor, seed, limits, files)
        if corpus is not None:
            files_of.keep(corpus, program, run.grown(run.writer()))
        return run.exploration


def replay(
    obj: Object | str | os.PathLike[str],
    program: str,
    corpus: str | os.PathLike[str],
    **options: Any,
) -> Exploration:
    """Run the inputs of a corpus; see :func:`bpfunit.replay`."""
    files = files_of.read(corpus, program)
    if not files:
        raise files_of.CorpusError(
            f"replay {program}: no inputs in {Path(corpus) / program}; `bpfunit explore --corpus`"
            " finds them"
        )
    with Executor(_path(obj), program, options) as executor:
        known = _known(executor, form_of(executor), files)
        search = Search(executor.facts, executor.execute)
        found = Found()
        for name, case in zip(known, search.cases_of(list(known.values())), strict=True):
            errors = [case.outcome.refused, *(step.errno for step in case.outcome.steps)]
            if any(errors):
                error = os.strerror(next(filter(None, errors)))
                executor.facts.notes.append(f"{name}: this kernel refused it: {error}")
            found.cases.append(case)
            found.runs += len(case.given.steps)
            for edge in case.edges:
                found.first.setdefault(edge, case)
        return Exploration(executor.facts, found, 0, {})


def _path(obj: Object | str | os.PathLike[str]) -> Any:
    return obj.path if isinstance(obj, Object) else obj
