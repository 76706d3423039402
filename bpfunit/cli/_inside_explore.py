"""What ``bpfunit explore`` does on the guest's side."""

from __future__ import annotations

from typing import Any

import bpfunit
from bpfunit.cli._values import with_addresses
from bpfunit.errors import BpfunitError


def serve(channel: Any, request: dict[str, Any]) -> None:
    """Answer one request."""
    channel.send(answer(request))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Search, make the tests, and return them with the report, or ``{"error": …}``.

    Args:
        request: the command line as plain data, as :func:`bpfunit.cli.explore.explore` makes it.
    """
    from bpfunit.explorer import Budget, Input, Step, block, explore_and_write

    options: dict[str, Any] = {}
    if request["map_types"]:
        options["map_types"] = {name: tuple(two) for name, two in request["map_types"].items()}
    if request["globals"]:
        options["globals"] = with_addresses(request["globals"])
    flags = request["types_flags"]
    budget, known = Budget(seconds=request["seconds"]), []
    if found_there := request.get("found"):
        for steps, entries, stubs in found_there["inputs"]:
            known.append(Input(tuple(Step(*one) for one in steps), entries, stubs))
        # those are run again, and nothing else
        budget = Budget(seconds=600, runs=max(1, sum(len(one.steps) for one in known)))
    types = [bpfunit.load_types(path, flags) for path in request["types"]]
    try:
        written = explore_and_write(
            request["object"],
            request["program"],
            seed=request["seed"],
            budget=budget,
            known=known,
            tests=request["tests"],
            corpus=request["corpus"],
            **options,
            **({"types": types} if types else {}),
        )
    except BpfunitError as error:
        return {"error": str(error)}
    found = written.exploration
    if found_there:
        for name, value in found_there["took"].items():
            setattr(found.found, name, value)
    return {
        "kernel": found.facts.kernel,
        "program": found.facts.program,
        "reached": found.reached,
        "alive": found.alive,
        "dead": len(found.facts.dead),
        "runs": found.found.runs,
        "instructions": found.found.instructions,
        "seconds": found.found.seconds,
        "report": found.report(),
        "edges": [
            {"edge": str(edge), "state": edge.state, "reason": edge.reason} for edge in found.edges
        ],
        "tests": [[test.name, test.told] for test in written.tests],
        "grown": written.grown,
        "text": block(found, written.tests, request["object_text"], options),
    }


def serve_sides(channel: Any) -> None:
    """Run what a search on the host asks for."""
    from bpfunit.explorer.side import serve

    serve(channel)
