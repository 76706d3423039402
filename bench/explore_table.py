"""How many branch edges directed search reaches beside search by chance: ``make explore-table``.

    python -m bench.explore_table [--kernel K] [--seconds N] [--seed N] [PROGRAM ...]

In one guest of the kernel, one after another, each method has the same seconds for each program:
the hook's on connect4 and connect6, and the samples of tests/guest/bpf in XDP and TC. Prints a
table in Markdown.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bpfunit import _native
from bpfunit.cli._guest import booted
from tests.objects import compiled

ROOT = Path(__file__).resolve().parents[1]
HOOK = ROOT / "bpf" / "build" / "hook.bpf.o"
PROGRAMS = {
    "cgroup_connect4_prog": lambda: HOOK,
    "cgroup_connect6_prog": lambda: HOOK,
    "edge": lambda: compiled("edge"),
    "gateway": lambda: compiled("gateway"),
}
METHODS = ("directed", "coverage-guided random", "blind random")
_SERVE = """
import sys
root, path, program, seconds, seed = channel.receive()
sys.path.insert(0, root)
from bench.explore_table import measured
for row in measured(path, program, seconds, seed):
    channel.send(row)
"""


def measured(path: str, program: str, seconds: float, seed: int) -> Iterator[tuple[Any, ...]]:
    """Search in this kernel by each method; yield (edges alive, edges, last seconds, runs)."""
    from bench.explore_random import RandomSearch
    from bpfunit.explorer import Budget, Executor, Search

    for method in METHODS:
        with Executor(path, program) as executor:
            alive = len(executor.facts.edges())
            if method == "directed":
                budget = Budget(seconds=seconds, instructions=1 << 62, runs=1 << 62)
                found = Search(executor.facts, executor.execute, seed, budget).run()
                last = found.progress[-1][0] if found.progress else 0.0
                yield alive, len(found.first), last, found.runs
            else:
                guided = method.startswith("coverage")
                search = RandomSearch(executor.facts, executor.execute, seed, guided=guided)
                yield (alive, *search.run(seconds))


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.explore_table", description=__doc__)
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--seconds", type=float, default=30, help="for each method and program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("programs", nargs="*", default=list(PROGRAMS), metavar="PROGRAM")
    asked = parser.parse_args()
    env = {_native.PATH_VARIABLE: str(built)} if (built := _native.build()) else {}
    with booted(asked.kernel, env=env) as (kernel, gateway):
        print(f"{kernel.release}, {time.strftime('%Y-%m-%d')}: {asked.seconds:g} s for each method")
        print(f"and program, seed {asked.seed}, load {os.getloadavg()[0]:.1f}\n")
        print(f"| program | edges alive | {' | '.join(METHODS)} |")
        print(f"|---|---:|{'---:|' * len(METHODS)}", flush=True)
        for program in asked.programs:
            path = str(PROGRAMS[program]())
            channel = gateway.remote_exec(_SERVE)
            channel.send((str(ROOT), path, program, asked.seconds, asked.seed))
            rows = [channel.receive() for _ in METHODS]
            cells = [f"{edges} ({last:.0f} s; {runs:,} runs)" for _, edges, last, runs in rows]
            print(f"| {program} | {rows[0][0]} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
