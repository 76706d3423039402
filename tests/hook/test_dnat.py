"""Group 6: the destination after the run, address and port."""

from __future__ import annotations

import pytest

from .checks import assert_redirected
from .families import IPV6, V4_MAPPED, over
from .mesh import Mesh

TEN_PORTS = {8000 + n: 9000 + n for n in range(10)}


def test_address_and_port_are_rewritten(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, 80)

    assert_redirected(mesh, run, mesh.family.pod, 8080)


@pytest.mark.parametrize("slot", range(10))
def test_each_port_slot_has_its_target_port(mesh: Mesh, slot: int):
    mesh.service(mesh.family.vip, ports=TEN_PORTS, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, 8000 + slot)

    assert_redirected(mesh, run, mesh.family.pod, 9000 + slot)


def test_first_of_equal_port_slots_wins(mesh: Mesh):
    mesh.service(
        mesh.family.vip, ports=[(79, 1), (80, 8080), (80, 9090)], endpoints=[mesh.family.pod]
    )

    run = mesh.connect(mesh.family.vip, 80)

    assert_redirected(mesh, run, mesh.family.pod, 8080)


def test_ports_keep_their_byte_order(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={0x1234: 0x5678}, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, 0x1234)

    assert_redirected(mesh, run, mesh.family.pod, 0x5678)


def test_nothing_but_the_destination_changes_in_the_context(mesh: Mesh):
    family = mesh.family
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])
    untouched = mesh.connect(family.vip2, 80)

    run = mesh.connect(family.vip, 80)

    for field in ("user_family", "family", "type", "protocol", "msg_src_ip4"):
        assert getattr(run.ctx, field) == getattr(untouched.ctx, field), field


@over(V4_MAPPED)
def test_v4_mapped_connection_gets_its_backend_v4_mapped(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=["10.244.1.11"])

    run = mesh.connect(mesh.family.vip, 80)

    assert run.dst == ("::ffff:10.244.1.11", 8080)


@over(V4_MAPPED)
def test_v4_mapped_connection_gets_its_waypoint_v4_mapped(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, waypoint=("10.244.9.99", 15008))

    run = mesh.connect(mesh.family.vip, 80)

    assert run.dst == ("::ffff:10.244.9.99", 15008)


@over(V4_MAPPED)
def test_backend_that_is_already_v4_mapped_is_not_mapped_again(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=["::ffff:10.244.1.11"])

    run = mesh.connect(mesh.family.vip, 80)

    assert run.dst == ("::ffff:10.244.1.11", 8080)


@over(IPV6)
def test_ipv6_connection_gets_its_backend_as_the_map_holds_it(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=["10.244.1.11"])

    run = mesh.connect(mesh.family.vip, 80)

    # an IPv4 backend behind an IPv6 frontend is a mistake of the control plane: nobody maps it
    assert run.dst == ("af4:10b::", 8080)


@over(IPV6)
def test_all_four_words_of_an_ipv6_address_are_rewritten(mesh: Mesh):
    backend = "1:2:3:4:5:6:7:8"
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[backend])

    run = mesh.connect(mesh.family.vip, 80)

    assert run.dst == (backend, 8080)
