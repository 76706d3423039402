"""The cost of a rewritten connection as the maps of the mesh grow."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.hook.families import IPV4, over
from tests.hook.mesh import Mesh

# Far away from the numbers and addresses of the connection that is measured.
_FIRST = 1 << 20

#: map -> (key of entry n, bytes of a value)
TABLES: dict[str, tuple[Callable[[int], bytes], int]] = {
    "km_frontend": (lambda n: struct.pack("=IIII", _FIRST + n, 0, 0, 0), 4),
    "km_service": (lambda n: struct.pack("=I", _FIRST + n), 132),
    "km_endpoint": (lambda n: struct.pack("=III", _FIRST + n // 16, 0, n % 16 + 1), 4),
    "km_backend": (lambda n: struct.pack("=I", _FIRST + n), 80),
}

SIZES = (10, 100, 1_000, 10_000, 100_000)


def fill(target: Any, keys: Callable[[int], bytes], value_size: int, entries: int) -> int:
    """Fill a map to ``entries``, or to two less than it holds, in bulk; return how many."""
    count = min(entries, target.max_entries - 2)
    target.update_raw(b"".join(map(keys, range(count))), bytes(value_size * count))
    return count


@pytest.mark.benchmark(group="size of the mesh")
@over(IPV4)
@pytest.mark.parametrize("entries", SIZES)
@pytest.mark.parametrize("table", TABLES)
def test_cost_over_the_number_of_entries(
    bpf_benchmark: Any, mesh: Mesh, empty: Any, table: str, entries: int
):
    keys, value_size = TABLES[table]
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])
    bpf_benchmark.fixture.extra_info["table"] = table
    bpf_benchmark.fixture.extra_info["entries"] = fill(
        mesh.obj.maps[table], keys, value_size, entries
    )

    run = bpf_benchmark(
        mesh.program, floor=empty(mesh.program), dst=(mesh.family.vip, 80), sock=mesh.new_socket()
    )

    assert run.dst == (mesh.family.pod, 8080)
