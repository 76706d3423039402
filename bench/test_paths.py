"""What each path of the hook costs, per run."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.hook.families import IPV4, over
from tests.hook.mesh import Mesh, Policy

Dialled = tuple[str, int]


def frontend_miss(mesh: Mesh) -> Dialled:
    return mesh.family.vip, 80


def random_endpoint(mesh: Mesh) -> Dialled:
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=mesh.family.pods)
    return mesh.family.vip, 80


def random_without_endpoint(mesh: Mesh) -> Dialled:
    mesh.service(mesh.family.vip, ports={80: 8080})
    return mesh.family.vip, 80


def strict_endpoint(mesh: Mesh) -> Dialled:
    mesh.service(
        mesh.family.vip, ports={80: 8080}, policy=Policy.STRICT, endpoints=mesh.family.pods
    )
    return mesh.family.vip, 80


def strict_without_endpoint(mesh: Mesh) -> Dialled:
    mesh.service(mesh.family.vip, ports={80: 8080}, policy=Policy.STRICT)
    return mesh.family.vip, 80


def failover_first_priority(mesh: Mesh) -> Dialled:
    mesh.service(
        mesh.family.vip, ports={80: 8080}, policy=Policy.FAILOVER, endpoints=mesh.family.pods
    )
    return mesh.family.vip, 80


def failover_last_priority(mesh: Mesh) -> Dialled:
    mesh.service(
        mesh.family.vip,
        ports={80: 8080},
        policy=Policy.FAILOVER,
        endpoints={6: mesh.family.pods},
    )
    return mesh.family.vip, 80


def tenth_port(mesh: Mesh) -> Dialled:
    mesh.service(
        mesh.family.vip,
        ports={80 + n: 8080 + n for n in range(10)},
        endpoints=mesh.family.pods,
    )
    return mesh.family.vip, 89


def direct_backend(mesh: Mesh) -> Dialled:
    mesh.frontend(mesh.family.pod, mesh.backend(mesh.family.pod))
    return mesh.family.pod, 8080


def waypoint_without_next_program(mesh: Mesh) -> Dialled:
    mesh.service(mesh.family.vip, ports={80: 8080}, waypoint=(mesh.family.waypoint, 15008))
    return mesh.family.vip, 80


MANAGED = (
    frontend_miss,
    random_endpoint,
    random_without_endpoint,
    strict_endpoint,
    strict_without_endpoint,
    failover_first_priority,
    failover_last_priority,
    tenth_port,
    direct_backend,
    waypoint_without_next_program,
)


def measure(bpf_benchmark: Any, mesh: Mesh, empty: Any, dialled: Dialled, **options: Any) -> Any:
    """Measure one connection of the mesh, again and again on one socket."""
    address, number = dialled
    program = options.pop("program", mesh.program)
    sock = mesh.new_socket(options.pop("type", socket.SOCK_STREAM))
    return bpf_benchmark(
        program, floor=empty(program), dst=(mesh.family.seen(address), number), sock=sock
    )


@pytest.mark.benchmark(group="paths of the connect hook")
class TestConnect:
    @pytest.mark.parametrize("path", MANAGED, ids=lambda path: path.__name__)
    def test_managed(self, bpf_benchmark, mesh: Mesh, empty, path: Callable[[Mesh], Dialled]):
        measure(bpf_benchmark, mesh, empty, path(mesh))

    def test_unmanaged(self, bpf_benchmark, unmanaged_mesh: Mesh, empty):
        measure(bpf_benchmark, unmanaged_mesh, empty, (unmanaged_mesh.family.vip, 80))

    def test_udp(self, bpf_benchmark, mesh: Mesh, empty):
        run = measure(bpf_benchmark, mesh, empty, (mesh.family.vip, 80), type=socket.SOCK_DGRAM)
        assert run.untouched

    def test_waypoint_with_tail_call(self, bpf_benchmark, mesh: Mesh, empty):
        dialled = waypoint_without_next_program(mesh)
        mesh.tail_array[mesh.family.tail_index] = empty(mesh.program)
        measure(bpf_benchmark, mesh, empty, dialled)

    @over(IPV4)
    def test_dns(self, bpf_benchmark, mesh: Mesh, empty):
        mesh.dns_proxy("10.244.0.53")
        run = measure(bpf_benchmark, mesh, empty, ("10.96.0.10", 53), type=socket.SOCK_DGRAM)
        assert run.dst == ("10.244.0.53", 53)


@pytest.mark.benchmark(group="paths of the DNS programs")
@over(IPV4)
class TestDns:
    def test_question(self, bpf_benchmark, mesh: Mesh, empty):
        mesh.dns_proxy("10.244.0.53")
        program = mesh.obj.programs.bpf_redirect_dns_send
        measure(
            bpf_benchmark, mesh, empty, ("10.96.0.10", 53), type=socket.SOCK_DGRAM, program=program
        )

    def test_answer(self, bpf_benchmark, mesh: Mesh, empty):
        mesh.dns_proxy("10.244.0.53")
        program = mesh.obj.programs.bpf_restore_dns_recv
        measure(
            bpf_benchmark, mesh, empty, ("10.244.0.53", 53), type=socket.SOCK_DGRAM, program=program
        )


@pytest.mark.benchmark(group="first connect on a socket against a repeated one")
class TestStorage:
    def test_first_connect(self, bpf_benchmark, mesh: Mesh):
        address, number = random_endpoint(mesh)
        where = (mesh.family.seen(address), number)
        bpf_benchmark.record(
            [mesh.program.run(dst=where, sock=mesh.new_socket()).duration_ns for _ in range(30)]
        )

    def test_repeated_connect(self, bpf_benchmark, mesh: Mesh):
        address, number = random_endpoint(mesh)
        where, sock = (mesh.family.seen(address), number), mesh.new_socket()
        mesh.program.run(dst=where, sock=sock)
        bpf_benchmark.record(
            [mesh.program.run(dst=where, sock=sock).duration_ns for _ in range(30)]
        )
