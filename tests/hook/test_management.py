"""Group 2: control connections, and network namespaces that the mesh does not manage."""

from __future__ import annotations

import socket
import sys

import pytest

from bpfunit import faults

from .checks import assert_left_alone, assert_passed_untouched, assert_redirected
from .families import IPV4, IPV6, Family, over
from .mesh import JOIN, LEAVE, Mesh, netns_cookie


def managed_keys(mesh: Mesh) -> list[bytes]:
    return [bytes(key) for key in mesh.obj.maps.km_manage]


def test_unmanaged_namespace_passes_untouched(unmanaged_mesh: Mesh):
    mesh, vip = unmanaged_mesh, unmanaged_mesh.family.vip
    mesh.service(vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    run = mesh.connect(vip, 80)

    assert_left_alone(mesh, run, vip, 80)


def test_unmanaged_namespace_is_not_observed(unmanaged_mesh: Mesh):
    run = unmanaged_mesh.connect(unmanaged_mesh.family.vip, 80)

    assert run.storage("km_sockstorage") is None


def test_another_namespaces_management_is_not_ours(unmanaged_mesh: Mesh):
    mesh, vip = unmanaged_mesh, unmanaged_mesh.family.vip
    mesh.obj.maps.km_manage[{"netns_cookie": 0x1234_5678_9ABC}] = 0
    mesh.service(vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    run = mesh.connect(vip, 80)

    assert_left_alone(mesh, run, vip, 80)


def test_joining_passes_untouched(unmanaged_mesh: Mesh):
    run = unmanaged_mesh.join()

    assert_passed_untouched(run, unmanaged_mesh.family.control, JOIN)
    assert run.storage("km_sockstorage") is None


def test_joining_records_the_namespace_with_value_0(unmanaged_mesh: Mesh):
    unmanaged_mesh.join()

    assert list(unmanaged_mesh.obj.maps.km_manage.values()) == [0]


def test_joining_records_the_cookie_of_the_callers_namespace(unmanaged_mesh: Mesh):
    cookie = netns_cookie()

    unmanaged_mesh.join()

    [key] = managed_keys(unmanaged_mesh)
    assert key[8:] == bytes(8), "the key's unused half is not zero"
    # before 5.14 user space cannot ask for the cookie; any cookie is above 0
    assert int.from_bytes(key[:8], sys.byteorder) == cookie if cookie is not None else any(key)


def test_joining_twice_records_one_namespace(unmanaged_mesh: Mesh):
    unmanaged_mesh.join()
    again = unmanaged_mesh.join()

    assert len(managed_keys(unmanaged_mesh)) == 1
    assert again.log == [], "joining again is no error"


def test_after_joining_connections_are_steered(unmanaged_mesh: Mesh):
    mesh = unmanaged_mesh
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    mesh.join()

    assert_redirected(mesh, mesh.connect(mesh.family.vip, 80), mesh.family.pod, 8080)


def test_leaving_passes_untouched(mesh: Mesh):
    run = mesh.leave()

    assert_passed_untouched(run, mesh.family.control, LEAVE)
    assert run.storage("km_sockstorage") is None


def test_leaving_forgets_the_namespace(mesh: Mesh):
    mesh.leave()

    assert managed_keys(mesh) == []


def test_leaving_forgets_no_other_namespace(mesh: Mesh):
    mesh.obj.maps.km_manage[{"netns_cookie": 0x1234_5678_9ABC}] = 0

    mesh.leave()

    assert [int.from_bytes(key[:8], sys.byteorder) for key in managed_keys(mesh)] == [
        0x1234_5678_9ABC
    ]


def test_leaving_without_having_joined_passes_untouched(unmanaged_mesh: Mesh):
    run = unmanaged_mesh.leave()

    assert_passed_untouched(run, unmanaged_mesh.family.control, LEAVE)
    assert managed_keys(unmanaged_mesh) == []


@pytest.mark.parametrize("number", [JOIN, LEAVE])
def test_a_control_connection_is_not_steered(mesh: Mesh, number: int):
    # a frontend at the control address would catch the connection if the hook went on with it
    mesh.frontend(mesh.family.control, mesh.backend(mesh.family.pod, waypoint=(mesh.family.pod, 1)))

    run = mesh.connect(mesh.family.control, number)

    assert_passed_untouched(run, mesh.family.control, number)


def test_control_works_over_udp(unmanaged_mesh: Mesh):
    unmanaged_mesh.connect(unmanaged_mesh.family.control, JOIN, type=socket.SOCK_DGRAM)

    assert len(managed_keys(unmanaged_mesh)) == 1


def _neighbours(family: Family) -> list[str]:
    """Addresses that differ from the control address in one word."""
    if family.name == "ipv4":
        return ["0.0.0.1", "0.0.0.3", "2.0.0.0", "1.0.0.2"]
    if family.name == "ipv6":
        return ["::1", "::3", "1::2", "::1:0:0:0:2", "::1:0:2", "::"]
    return ["0.0.0.2", "0.0.0.3"]


@pytest.mark.parametrize("number", [JOIN, LEAVE])
def test_the_control_ports_of_other_addresses_control_nothing(unmanaged_mesh: Mesh, number: int):
    mesh = unmanaged_mesh
    if number == LEAVE:
        mesh.manage()
    before = managed_keys(mesh)

    for address in _neighbours(mesh.family):
        mesh.connect(address, number)

        assert managed_keys(mesh) == before, f"{address} was taken for the control address"


@pytest.mark.parametrize("number", [928, 931, 0xA103, 80])
def test_other_ports_of_the_control_address_control_nothing(unmanaged_mesh: Mesh, number: int):
    # 0xA103 is 929 with its bytes swapped
    run = unmanaged_mesh.connect(unmanaged_mesh.family.control, number)

    assert_passed_untouched(run, unmanaged_mesh.family.control, number)
    assert managed_keys(unmanaged_mesh) == []


@over(IPV4, IPV6)
def test_other_ports_of_the_control_address_are_steered(mesh: Mesh):
    control, pod = mesh.family.control, mesh.family.pod
    mesh.service(control, ports={80: 8080}, endpoints=[pod])

    assert_redirected(mesh, mesh.connect(control, 80), pod, 8080)


def test_joining_with_a_full_map_passes_untouched(unmanaged_mesh: Mesh):
    mesh = unmanaged_mesh
    with faults.full_map(mesh.obj.maps.km_manage):
        run = mesh.join()

    assert_passed_untouched(run, mesh.family.control, JOIN)
    assert managed_keys(mesh) == []


@pytest.mark.own_messages
def test_joining_with_a_full_map_is_logged(unmanaged_mesh: Mesh):
    with faults.full_map(unmanaged_mesh.obj.maps.km_manage):
        run = unmanaged_mesh.join()

    assert run.log == ["error: cannot manage this network namespace: km_manage refused it"]


@pytest.mark.own_messages
def test_leaving_without_having_joined_is_logged(unmanaged_mesh: Mesh):
    run = unmanaged_mesh.leave()

    assert run.log == ["error: cannot stop managing this network namespace: it is not managed"]
