"""The table of facts: ``docs/kernel-facts.json`` as it is read and written, and its page."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_DOCS = Path(__file__).resolve().parents[2] / "docs"
DATA, PAGE = _DOCS / "kernel-facts.json", _DOCS / "kernel-facts.md"
TYPES_PAGE = _DOCS / "program-types.md"
#: Set in guests that measure; without it facts are compared with those of the table.
MEASURE = "BPFUNIT_FACTS"

# The tables of the page in order, and what a reader has to know of each.
TABLES = {
    "Test runs": """
        Whether `BPF_PROG_TEST_RUN` of the stock kernel runs a program of the type: «no» is ENOTSUPP
        (524). «not loaded» is a program that this kernel refuses to load, with the errno. bpfunit's
        own module is out of the way for these runs.""",
    "Sizes of packets": """
        The smallest and the largest packet, in bytes from the Ethernet header on, with which the
        stock kernel runs a program. A smaller or larger one is EINVAL.""",
    "Context fields of TC": """
        Fields of `struct __sk_buff` that `ctx_in` may set: «in» reaches the program, «out» comes
        back in `ctx_out` though the program did not touch it; «refused» is EINVAL for anything but
        0.""",
    "Context fields of XDP": "The same of `struct xdp_md`.",
    "Which call runs which hook": """
        The `cgroup_sock_addr` programs that an ordinary call runs, in the order of their attach
        types, with how often where that is not once. What the row says of the socket was done
        before. That listen() runs getsockname4 is the security module TOMOYO, which asks for the
        name; without it (`--guest-append lsm=capability,bpf`) none runs.""",
    "Namespaces and credentials": """
        What a program of `connect4` sees of who connects. The io_uring rows are of a connect that
        user 1000 asked for through a ring that root made; the worker is the kernel's thread for
        requests marked `IOSQE_ASYNC`.""",
}
#: Has a page of its own.
TYPES = "How programs run"
COMPILERS = "Instructions of connect4 by compiler"

#: What differs from the table by architecture, as ``uname -m`` names it, by table and row.
BY_ARCHITECTURE: dict[str, dict[tuple[str, str], str]] = {
    "s390x": {
        # A cache line, by which room around a packet is rounded, has 256 bytes there.
        ("Sizes of packets", "TC, largest"): "3550",
        ("Sizes of packets", "XDP, largest"): "72960",
        ("Sizes of packets", "XDP with frags, largest"): "72960",
        # Debian's kernels have no BPF JIT there, without which there are no trampolines.
        ("Test runs", "fentry"): "not loaded: ENOMEM",
        ("Test runs", "fexit"): "not loaded: ENOMEM",
        ("Test runs", "fmod_ret"): "not loaded: ENOMEM",
        ("Test runs", "lsm"): "not loaded: no bpf_lsm_file_open",
    },
}

_HEAD = """\
# Kernel facts

What kernels do around test runs, packets, hooks and namespaces, measured by the tests in
`tests/facts/`. This page is written by `make facts KERNELS=all`; `make test` holds the column of
its kernel against it.
"""

_TYPES_HEAD = """\
# Program types

How bpfunit runs programs of each type, by kernel, as the tests in `tests/facts/` measured it. This
page is written by `make types KERNELS=all`; `make test` holds the column of its kernel against it.

| | |
| --- | --- |
| kernel | by the kernel's own test run |
| module | by the test run that [bpfunit's module](module.md) gives the type |
| kernel, module | by the kernel's own test run, put right by the module where needed |
| live | attached, on the way of a [real call](engines.md), too |
| not loaded | the kernel refuses to load such a program, for this reason |
| no | it loads, and nothing runs it; 6.16 to 6.18 have no headers for the module |
"""


@dataclass
class Column:
    """One kernel: its release, the day it was measured, and its facts by table and row."""

    release: str
    date: str
    facts: dict[str, dict[str, str]] = field(default_factory=dict)


def series(release: str) -> str:
    """Return the series of a release: "6.12" of "6.12.117+deb12-amd64"."""
    found = re.match(r"\d+\.\d+", release)
    if found is None:
        raise ValueError(f"read kernel release {release!r}: it does not start with two numbers")
    return found[0]


def read() -> tuple[dict[str, Column], dict[str, int]]:
    """Return the columns by series, and the instructions by compiler, as they are committed."""
    if not DATA.exists():
        return {}, {}
    data = json.loads(DATA.read_text(encoding="utf-8"))
    return {name: Column(**one) for name, one in data["kernels"].items()}, data["compilers"]


def write(columns: Mapping[str, Column], compilers: Mapping[str, int]) -> None:
    """Write the data and the page."""
    ordered = sorted(columns, key=lambda name: tuple(map(int, name.split("."))))
    data = {
        "kernels": {name: vars(columns[name]) for name in ordered},
        "compilers": dict(compilers),
    }
    DATA.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    types = _table(("", *ordered), _rows(TYPES, {name: columns[name] for name in ordered}))
    TYPES_PAGE.write_text(f"{_TYPES_HEAD}\n{types}", encoding="utf-8")
    PAGE.write_text(_page({name: columns[name] for name in ordered}, compilers), encoding="utf-8")


def _page(columns: Mapping[str, Column], compilers: Mapping[str, int]) -> str:
    parts = [
        _HEAD,
        _table(
            ("kernel", "release", "measured"),
            [(name, one.release, one.date) for name, one in columns.items()],
        ),
    ]
    for name, words in TABLES.items():
        parts.append(f"\n## {name}\n\n{textwrap.fill(' '.join(words.split()), 110)}\n")
        parts.append(_table(("", *columns), _rows(name, columns)))
    if compilers:
        parts.append(
            f"\n## {COMPILERS}\n\nOf the hook in `bpf/`, as it is in the object; the compilers are"
            " those of [`make stacks`](stacks.md).\n"
        )
        parts.append(
            _table(("compiler", "instructions"), [(k, str(v)) for k, v in compilers.items()])
        )
    return "\n".join(parts)


def _rows(name: str, columns: Mapping[str, Column]) -> list[tuple[str, ...]]:
    rows = dict.fromkeys(row for one in columns.values() for row in one.facts.get(name, {}))
    return [
        (row, *(one.facts.get(name, {}).get(row, "") for one in columns.values())) for row in rows
    ]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
