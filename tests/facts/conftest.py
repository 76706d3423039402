"""The fixture by which a test says facts."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator

import pytest

from . import table


class Facts:
    """What a test says of the running kernel."""

    def __init__(self) -> None:
        self.said: dict[str, dict[str, str]] = {}

    def say(self, name: str, row: str, value: str) -> None:
        """Say one fact: the cell of a row of a table."""
        assert name in (*table.TABLES, table.TYPES), f"{name!r} is no table of the page"
        self.said.setdefault(name, {})[row] = value


@pytest.fixture
def facts(record_property: pytest.Function) -> Iterator[Facts]:
    """Gather facts; at the end of the test they are those of the table, or are handed on to it."""
    release = os.uname().release
    gathered = Facts()
    yield gathered
    assert gathered.said, "the test said nothing of this kernel"
    if os.environ.get(table.MEASURE):
        record_property("facts", json.dumps({"release": release, "facts": gathered.said}))  # type: ignore[operator]
        return
    columns, _ = table.read()
    column = columns.get(table.series(release))
    if column is None:
        pytest.fail(
            f"no facts of {table.series(release)} are committed: make facts KERNELS={release}"
        )
    others = table.BY_ARCHITECTURE.get(platform.machine(), {})

    def known(name: str, row: str) -> str | None:
        return others.get((name, row), column.facts.get(name, {}).get(row))

    differ = [
        f"{name}, {row}: known of {column.release} and {platform.machine()}: {known(name, row)!r},"
        f" now on {release}: {value!r}"
        for name, rows in gathered.said.items()
        for row, value in rows.items()
        if known(name, row) != value
    ]
    if differ:
        pytest.fail(
            "\n".join([*differ, "if that is right: make facts, or make types KERNELS=all"]),
            pytrace=False,
        )
