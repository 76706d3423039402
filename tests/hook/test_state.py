"""What changes over time: on one socket, and in network namespaces that join and leave."""

from __future__ import annotations

from .checks import assert_left_alone, assert_redirected
from .mesh import Mesh
from .namespaces import new_network_namespace


def test_via_waypoint_stays_when_a_later_connect_needs_none(mesh: Mesh):
    family, sock = mesh.family, mesh.new_socket()
    mesh.service(family.vip, ports={80: 8080}, waypoint=(family.waypoint, 15008))
    mesh.service(family.vip2, ports={80: 8080}, endpoints=[family.pod])

    mesh.connect(family.vip, 80, sock=sock)
    second = mesh.connect(family.vip2, 80, sock=sock)

    assert_redirected(mesh, second, family.pod, 8080)
    assert second.storage("km_sockstorage").via_waypoint


def test_via_waypoint_is_set_by_a_later_connect(mesh: Mesh):
    family, sock = mesh.family, mesh.new_socket()
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])
    mesh.service(family.vip2, ports={80: 8080}, waypoint=(family.waypoint, 15008))

    mesh.connect(family.vip, 80, sock=sock)
    second = mesh.connect(family.vip2, 80, sock=sock)

    assert second.storage("km_sockstorage").via_waypoint
    assert mesh.remembered(second) == (family.seen(family.vip), 80)


def test_sockets_do_not_share_their_memory(mesh: Mesh):
    family = mesh.family
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])
    mesh.service(family.vip2, ports={443: 8443}, endpoints=[family.pod])

    first = mesh.connect(family.vip, 80)
    second = mesh.connect(family.vip2, 443)

    assert mesh.remembered(first) == (family.seen(family.vip), 80)
    assert mesh.remembered(second) == (family.seen(family.vip2), 443)


def test_managed_then_unmanaged_then_managed_again(mesh: Mesh):
    family = mesh.family
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])

    mesh.join()
    assert_redirected(mesh, mesh.connect(family.vip, 80), family.pod, 8080)
    mesh.leave()
    assert_left_alone(mesh, mesh.connect(family.vip, 80), family.vip, 80)
    mesh.join()
    assert_redirected(mesh, mesh.connect(family.vip, 80), family.pod, 8080)


def test_a_service_that_moves_takes_the_next_connect_with_it(mesh: Mesh):
    family = mesh.family
    service = mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pods[0]])

    assert_redirected(mesh, mesh.connect(family.vip, 80), family.pods[0], 8080)
    mesh.endpoint(service, 1, family.pods[1])
    assert_redirected(mesh, mesh.connect(family.vip, 80), family.pods[1], 8080)


def test_another_namespace_is_not_managed_with_ours(mesh: Mesh):
    family = mesh.family
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])

    with new_network_namespace():
        inside = mesh.connect(family.vip, 80)

    assert_left_alone(mesh, inside, family.vip, 80)
    assert_redirected(mesh, mesh.connect(family.vip, 80), family.pod, 8080)


def test_two_namespaces_join_and_leave_by_themselves(unmanaged_mesh: Mesh):
    mesh, family = unmanaged_mesh, unmanaged_mesh.family
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])

    with new_network_namespace():
        mesh.join()
        assert_redirected(mesh, mesh.connect(family.vip, 80), family.pod, 8080)
    assert_left_alone(mesh, mesh.connect(family.vip, 80), family.vip, 80)

    mesh.join()
    assert len(mesh.obj.maps.km_manage) == 2
    with new_network_namespace():
        # a third one, that never joined
        mesh.leave()
        assert_left_alone(mesh, mesh.connect(family.vip, 80), family.vip, 80)
    assert_redirected(mesh, mesh.connect(family.vip, 80), family.pod, 8080)


def test_a_socket_belongs_to_the_namespace_it_was_made_in(mesh: Mesh):
    family, ours = mesh.family, mesh.new_socket()
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])

    with new_network_namespace():
        run = mesh.connect(family.vip, 80, sock=ours)

    assert_redirected(mesh, run, family.pod, 8080)
