"""Group 5: what the hook remembers of a socket's original destination."""

from __future__ import annotations

from collections.abc import Callable

from bpfunit import faults, ip, port

from .checks import assert_redirected
from .families import IPV4, IPV6, V4_MAPPED, over
from .mesh import Mesh, Policy


def test_original_destination_is_remembered(mesh: Mesh):
    vip = mesh.family.vip
    mesh.service(vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    run = mesh.connect(vip, 80)

    assert mesh.remembered(run) == (mesh.family.seen(vip), 80)


@over(IPV4)
def test_ipv4_destination_is_remembered_in_the_ipv4_tuple(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    storage = mesh.connect(mesh.family.vip, 80).storage("km_sockstorage")

    expected = type(storage.sk_tuple)()
    expected.ipv4.daddr = ip("10.96.0.1")
    expected.ipv4.dport = port(80)
    assert bytes(storage.sk_tuple) == bytes(expected)


@over(IPV6)
def test_ipv6_destination_is_remembered_in_the_ipv6_tuple(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    storage = mesh.connect(mesh.family.vip, 80).storage("km_sockstorage")

    expected = type(storage.sk_tuple)()
    expected.ipv6.daddr = ip(mesh.family.vip)
    expected.ipv6.dport = port(80)
    assert bytes(storage.sk_tuple) == bytes(expected)


@over(V4_MAPPED)
def test_v4_mapped_destination_is_remembered_as_it_was_dialled(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    storage = mesh.connect(mesh.family.vip, 80).storage("km_sockstorage")

    assert storage.sk_tuple.ipv6.daddr == ip("::ffff:10.96.0.1")


def test_service_endpoint_is_not_via_waypoint(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, 80)

    assert not run.storage("km_sockstorage").via_waypoint


def test_waypoint_connection_remembers_both(mesh: Mesh):
    vip = mesh.family.vip
    mesh.service(vip, ports={80: 8080}, waypoint=(mesh.family.waypoint, 15008))

    run = mesh.connect(vip, 80)

    assert mesh.remembered(run) == (mesh.family.seen(vip), 80)
    assert run.storage("km_sockstorage").via_waypoint


def test_nothing_else_is_written_to_the_storage(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, waypoint=(mesh.family.waypoint, 15008))

    storage = mesh.connect(mesh.family.vip, 80).storage("km_sockstorage")

    assert storage.last_report_ns == 0
    assert storage.direction == 0
    assert storage.connect_success == 0
    assert not storage.has_encoded


def test_second_connect_keeps_the_first_destination(mesh: Mesh):
    family, sock = mesh.family, mesh.new_socket()
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])
    mesh.service(family.vip2, ports={443: 8443}, endpoints=[family.pod])

    mesh.connect(family.vip, 80, sock=sock)
    second = mesh.connect(family.vip2, 443, sock=sock)

    assert second.dst == (family.seen(family.pod), 8443), "only the memory is of the first"
    assert mesh.remembered(second) == (family.seen(family.vip), 80)


def test_failed_connect_leaves_the_memory_to_the_next(mesh: Mesh):
    family, sock = mesh.family, mesh.new_socket()
    mesh.service(family.vip, ports={80: 8080}, policy=Policy.STRICT)
    mesh.service(family.vip2, ports={443: 8443}, endpoints=[family.pod])

    mesh.connect(family.vip, 80, sock=sock)
    second = mesh.connect(family.vip2, 443, sock=sock)

    assert mesh.remembered(second) == (family.seen(family.vip2), 443)


def test_failing_storage_does_not_stop_the_rewrite(mesh: Mesh):
    family = mesh.family
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])

    with faults.no_socket_memory():
        run = mesh.connect(family.vip, 80)

    assert_redirected(mesh, run, family.pod, 8080)
    assert mesh.remembered(run) is None


def test_failing_storage_does_not_stop_the_waypoint(load_mesh: Callable[..., Mesh]):
    mesh = load_mesh(instrument=[faults.no_storage()])
    family = mesh.family
    mesh.service(family.vip, ports={80: 8080}, waypoint=(family.waypoint, 15008))
    mesh.spy()

    run = mesh.connect(family.vip, 80)

    [call] = run.tail_calls
    assert call.ctx.user == (family.seen(family.waypoint), 15008)
    assert_redirected(mesh, run, family.waypoint, 15008)
