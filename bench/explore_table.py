"""How many branch edges directed search reaches beside search by chance: ``make explore-table``.

    python -m bench.explore_table [--kernel K] [--seconds N] [--seed N] [PROGRAM ...]

In one guest of the kernel, one after another, each method has the same seconds for each program:
the hook's on connect4 and connect6, and the samples of tests/guest/bpf in XDP and TC. The methods
run on this host and the programs in the guest, as `bpfunit explore` has it. Prints a table in
Markdown: edges, the seconds after which the last of them was taken, runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from bench.explore_random import RandomSearch, Reached
from bpfunit.cli._guest import explored_kernel
from bpfunit.explorer import Budget, Search
from bpfunit.explorer.side import There
from tests.objects import HOOK, compiled

PROGRAMS = {
    "cgroup_connect4_prog": lambda: HOOK,
    "cgroup_connect6_prog": lambda: HOOK,
    "edge": lambda: compiled("edge"),
    "gateway": lambda: compiled("gateway"),
}
METHODS = ("directed", "coverage-guided random", "blind random")


def measured(side: There, method: str, seconds: float, seed: int) -> Reached:
    """Search for the inputs of a program by a method."""
    facts, execute = side.described.facts, side.execute
    if method != "directed":
        guided = method.startswith("coverage")
        return RandomSearch(facts, execute, seed, guided=guided).run(seconds)
    budget = Budget(seconds=seconds, instructions=1 << 62, runs=1 << 62)
    found = Search(facts, execute, seed, budget).run()
    last = found.progress[-1][0] if found.progress else 0.0
    return Reached(len(found.first), last, found.runs)


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.explore_table", description=__doc__)
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--seconds", type=float, default=30, help="for each method and program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("programs", nargs="*", default=list(PROGRAMS), metavar="PROGRAM")
    asked = parser.parse_args()
    with explored_kernel(asked.kernel) as guest:
        print(f"{asked.kernel}, {time.strftime('%Y-%m-%d')}: {asked.seconds:g} s for each method")
        print(f"and program, seed {asked.seed}, load {os.getloadavg()[0]:.1f}\n")
        print(f"| program | edges alive | {' | '.join(METHODS)} |")
        print(f"|---|---:|{'---:|' * len(METHODS)}", flush=True)
        for program in asked.programs:
            cells = []
            for method in METHODS:
                with guest.open(str(PROGRAMS[program]()), program, {}) as side:
                    edges, last, runs = measured(side, method, asked.seconds, asked.seed)
                    alive = len(side.described.facts.edges())
                cells.append(f"{edges} ({last:.0f} s; {runs:,} runs)")
            print(f"| {program} | {alive} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
