"""What a connect() costs on loopback, with the hook attached to its cgroup and without."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.hook_latency import traced
from bpfunit._sys.cgroup import Cgroup
from tests.hook.families import IPV4, IPV6, over
from tests.hook.mesh import Mesh

ROUNDS = 40
LOOPBACK = {IPV4.name: "127.0.0.1", IPV6.name: "::1"}


@pytest.fixture
def in_cgroup() -> Iterator[Cgroup]:
    """A throwaway cgroup with this process in it."""
    with Cgroup("price") as cgroup:
        cgroup.enter(os.getpid())
        yield cgroup


def time_connects(mesh: Mesh, type: int, address: tuple[str, int]) -> list[int]:
    """Return what each of some connects took, in nanoseconds, a fresh socket each."""
    durations = []
    clock: Callable[[], int] = time.perf_counter_ns
    for _ in range(ROUNDS):
        with socket.socket(mesh.family.socket_family, type) as client:
            connect = client.connect
            start = clock()
            connect(address)
            durations.append(clock() - start)
    return durations


@pytest.mark.benchmark(group="a real connect() on loopback")
@over(IPV4, IPV6)
@pytest.mark.parametrize(
    ("attached", "kind"),
    [
        pytest.param("without", socket.SOCK_STREAM, id="without-tcp"),
        pytest.param("unmanaged", socket.SOCK_STREAM, id="unmanaged-tcp"),
        pytest.param("rewritten", socket.SOCK_STREAM, id="rewritten-tcp"),
        # The hook leaves UDP alone, so that «unmanaged» is its price in every namespace.
        pytest.param("without", socket.SOCK_DGRAM, id="without-udp"),
        pytest.param("unmanaged", socket.SOCK_DGRAM, id="unmanaged-udp"),
    ],
)
def test_price_of_the_hook_at_connect(
    bpf_benchmark: Any, unmanaged_mesh: Mesh, in_cgroup: Cgroup, kind: int, attached: str
):
    mesh, home = unmanaged_mesh, LOOPBACK[unmanaged_mesh.family.name]
    with socket.socket(mesh.family.socket_family, kind) as server:
        server.bind((home, 0))
        if kind == socket.SOCK_STREAM:
            server.listen(ROUNDS)
        number = server.getsockname()[1]
        target = (home, number)
        if attached == "rewritten":
            mesh.manage()
            mesh.service(mesh.family.vip, ports={80: number}, endpoints=[home])
            target = (mesh.family.vip, 80)
        program = mesh.program
        if attached == "without":
            bpf_benchmark.record(time_connects(mesh, kind, target))
            return
        with in_cgroup.attached(program.attach_type, program.fd):
            bpf_benchmark.record(time_connects(mesh, kind, target))


@pytest.mark.benchmark(group="inside connect(): latency of the hook's runner")
@over(IPV4)
def test_latency_of_the_hook_while_connects_run(bpf_benchmark: Any, mesh: Mesh, in_cgroup: Cgroup):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(ROUNDS)
        number = server.getsockname()[1]
        mesh.service(mesh.family.vip, ports={80: number}, endpoints=["127.0.0.1"])
        with in_cgroup.attached(mesh.program.attach_type, mesh.program.fd), traced() as latency:
            durations = time_connects(mesh, socket.SOCK_STREAM, (mesh.family.vip, 80))

    assert sum(latency.counts.values()) >= ROUNDS
    bpf_benchmark.fixture.extra_info["text"] = latency.text(bpf_benchmark.mode.unit)
    bpf_benchmark.record(durations)
