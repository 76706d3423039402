"""What ``bpfunit explore`` and ``bpfunit diff`` do on the guest's side."""

from __future__ import annotations

from typing import Any

import bpfunit
from bpfunit.cli._values import with_addresses
from bpfunit.explorer import Input, block
from bpfunit.explorer.run import known_inputs, write_found
from bpfunit.explorer.side import Here, Options, serve


def serve_sides(channel: Any) -> None:
    """Run what a search on the host asks for."""
    serve(channel, _Explored)


class _Explored(Here):
    """A build whose tests are wanted as well.

    Args:
        path: the object.
        program: the program's name.
        options: ``map_types``, ``globals``, ``types``, ``types_flags`` of the command line, as
            plain data; each may be missing.
    """

    def __init__(self, path: str, program: str, options: Options) -> None:
        self._options: dict[str, Any] = {}
        if given := options.get("map_types"):
            self._options["map_types"] = {name: tuple(two) for name, two in given.items()}
        if given := options.get("globals"):
            self._options["globals"] = with_addresses(given)
        flags = options.get("types_flags", ())
        types = [bpfunit.load_types(one, flags) for one in options.get("types", ())]
        super().__init__(path, program, {**self._options, **({"types": types} if types else {})})

    def answer(self, what: str, *rest: Any) -> Any:
        """Return the inputs of a corpus, or the report of a search and what it is written from."""
        if what == "known":
            return [one.to_plain() for one in known_inputs(self.executor, *rest)]
        if what == "report":
            return self._report(*rest)
        return super().answer(what, *rest)

    def _report(
        self,
        request: dict[str, Any],
        inputs: list[Any],
        compared: list[tuple[int, list[tuple[int, int]]]],
        took: dict[str, Any],
    ) -> dict[str, Any]:
        """Return the report, the tests and the files of the corpus.

        Args:
            request: the command line as plain data, as :func:`bpfunit.cli.explore.explore` makes
                it.
            inputs: those that took an edge first.
            compared: what jumps compared whose edges were not all taken, by site.
            took: what the search took: runs, instructions, seconds.
        """
        written = write_found(
            self.executor,
            [Input.from_plain(one) for one in inputs],
            dict(compared),
            seed=request["seed"],
            tests=request["tests"],
            corpus=request["corpus"],
        )
        found = written.exploration
        for name, value in took.items():
            setattr(found.found, name, value)
        return {
            "kernel": found.facts.kernel,
            "program": found.facts.program,
            "reached": found.reached,
            "alive": found.alive,
            "dead": len(found.facts.dead),
            **took,
            "report": found.report(),
            "edges": [
                {"edge": str(edge), "state": edge.state, "reason": edge.reason}
                for edge in found.edges
            ],
            "tests": [[test.name, test.told] for test in written.tests],
            "grown": written.grown,
            "text": block(found, written.tests, request["object_text"], self._options),
        }
