"""Group 4: which destination a connection to a frontend gets, branch by branch."""

from __future__ import annotations

import pytest

from bpfunit import ip, port

from .checks import assert_left_alone, assert_passed_untouched, assert_redirected
from .families import IPV6, over
from .mesh import Mesh, Policy

EVERY_POLICY = pytest.mark.parametrize("policy", list(Policy), ids=lambda p: p.name.lower())
UNKNOWN_POLICY = pytest.mark.parametrize("policy", [3, 4, 256, 0xFFFF_FFFF])


def assert_kept_as_success(mesh: Mesh, run, address: str, number: int) -> None:
    """Not rewritten, yet remembered: the hook counts it as one of its own."""
    seen = mesh.family.seen(address)
    assert_passed_untouched(run, seen, number)
    assert mesh.remembered(run) == (seen, number)
    assert not run.storage("km_sockstorage").via_waypoint


# -- the frontend ----------------------------------------------------------------------------------


def test_destination_that_is_no_frontend_passes_untouched(mesh: Mesh):
    mesh.service(mesh.family.vip2, ports={80: 8080}, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, 80)

    assert_left_alone(mesh, run, mesh.family.vip, 80)


def test_each_frontend_has_its_own_service(mesh: Mesh):
    family = mesh.family
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pods[0]])
    mesh.service(family.vip2, ports={80: 9090}, endpoints=[family.pods[1]])

    assert_redirected(mesh, mesh.connect(family.vip, 80), family.pods[0], 8080)
    assert_redirected(mesh, mesh.connect(family.vip2, 80), family.pods[1], 9090)


@over(IPV6)
@pytest.mark.parametrize("word", range(4))
def test_frontend_is_looked_up_by_the_whole_ipv6_address(mesh: Mesh, word: int):
    raw = bytearray(ip(mesh.family.vip).packed)
    raw[4 * word + 3] ^= 1
    neighbour = str(ip(bytes(raw)))
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    run = mesh.connect(neighbour, 80)

    assert_left_alone(mesh, run, neighbour, 80)


@over(IPV6)
@pytest.mark.parametrize(
    "address", ["::fffe:a60:1", "::1:ffff:a60:1", "::1:0:ffff:a60:1", "1::ffff:a60:1"]
)
def test_only_v4_mapped_addresses_are_looked_up_as_ipv4(mesh: Mesh, address: str):
    mesh.service("10.96.0.1", ports={80: 8080}, endpoints=[mesh.family.pod])

    run = mesh.connect(address, 80)

    assert_left_alone(mesh, run, address, 80)


def test_frontend_of_neither_service_nor_backend_passes_untouched(mesh: Mesh):
    mesh.frontend(mesh.family.vip, 4711)

    run = mesh.connect(mesh.family.vip, 80)

    assert_left_alone(mesh, run, mesh.family.vip, 80)


def test_service_goes_before_a_backend_with_the_same_number(mesh: Mesh):
    family = mesh.family
    mesh.backend(family.pods[1], uid=7, waypoint=(family.waypoint, 15008))
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod], id=7)

    run = mesh.connect(family.vip, 80)

    assert_redirected(mesh, run, family.pod, 8080)


# -- a backend behind the frontend -----------------------------------------------------------------


def test_direct_backend_without_waypoint_keeps_its_address(mesh: Mesh):
    mesh.frontend(mesh.family.pod, mesh.backend(mesh.family.pod))

    run = mesh.connect(mesh.family.pod, 8080)

    assert_kept_as_success(mesh, run, mesh.family.pod, 8080)


def test_direct_backend_with_waypoint_goes_to_its_waypoint(mesh: Mesh):
    family = mesh.family
    mesh.frontend(family.pod, mesh.backend(family.pod, waypoint=(family.waypoint, 15008)))

    run = mesh.connect(family.pod, 8080)

    assert_redirected(mesh, run, family.waypoint, 15008)
    assert run.storage("km_sockstorage").via_waypoint


def test_direct_backends_waypoint_port_alone_decides(mesh: Mesh):
    family = mesh.family
    uid = mesh.backend(family.pod)
    mesh.obj.maps.km_backend[uid] = {"addr": ip(family.pod), "wp_addr": ip(family.waypoint)}
    mesh.frontend(family.pod, uid)

    run = mesh.connect(family.pod, 8080)

    assert_kept_as_success(mesh, run, family.pod, 8080)


# -- a service behind a waypoint -------------------------------------------------------------------


@EVERY_POLICY
def test_service_with_a_waypoint_goes_to_it_whatever_the_policy(mesh: Mesh, policy: Policy):
    family = mesh.family
    mesh.service(
        family.vip,
        ports={80: 8080},
        policy=policy,
        endpoints=[family.pod],
        waypoint=(family.waypoint, 15008),
    )

    run = mesh.connect(family.vip, 80)

    assert_redirected(mesh, run, family.waypoint, 15008)
    assert run.storage("km_sockstorage").via_waypoint


def test_service_with_a_waypoint_needs_no_endpoint_and_no_port(mesh: Mesh):
    family = mesh.family
    mesh.service(family.vip, ports={}, policy=Policy.STRICT, waypoint=(family.waypoint, 15008))

    run = mesh.connect(family.vip, 80)

    assert_redirected(mesh, run, family.waypoint, 15008)


@pytest.mark.parametrize("missing", ["wp_addr", "waypoint_port"])
def test_service_with_half_a_waypoint_goes_to_its_endpoint(mesh: Mesh, missing: str):
    family = mesh.family
    service = mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])
    value = mesh.obj.maps.km_service[service]
    if missing == "wp_addr":
        value.waypoint_port = port(15008)
    else:
        value.wp_addr = ip(family.waypoint)
    mesh.obj.maps.km_service[service] = value

    run = mesh.connect(family.vip, 80)

    assert_redirected(mesh, run, family.pod, 8080)
    assert not run.storage("km_sockstorage").via_waypoint


@over(IPV6)
def test_services_ipv6_waypoint_counts_by_its_first_word_only(mesh: Mesh):
    mesh.service(
        mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod], waypoint=("::99:1", 15008)
    )

    run = mesh.connect(mesh.family.vip, 80)

    assert_redirected(mesh, run, mesh.family.pod, 8080)


# -- the policies ----------------------------------------------------------------------------------


@EVERY_POLICY
def test_every_policy_goes_to_the_only_endpoint(mesh: Mesh, policy: Policy):
    mesh.service(mesh.family.vip, ports={80: 8080}, policy=policy, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, 80)

    assert_redirected(mesh, run, mesh.family.pod, 8080)


def test_random_policy_without_endpoint_keeps_the_destination(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, policy=Policy.RANDOM)

    run = mesh.connect(mesh.family.vip, 80)

    assert_kept_as_success(mesh, run, mesh.family.vip, 80)


def test_random_policy_ignores_lower_priorities(mesh: Mesh):
    mesh.service(
        mesh.family.vip, ports={80: 8080}, policy=Policy.RANDOM, endpoints={1: [mesh.family.pod]}
    )

    run = mesh.connect(mesh.family.vip, 80)

    assert_kept_as_success(mesh, run, mesh.family.vip, 80)


def test_strict_policy_without_endpoint_rewrites_nothing(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, policy=Policy.STRICT)

    run = mesh.connect(mesh.family.vip, 80)

    assert_left_alone(mesh, run, mesh.family.vip, 80)
    assert run.log, "the failure was not logged"


def test_strict_policy_ignores_lower_priorities(mesh: Mesh):
    mesh.service(
        mesh.family.vip, ports={80: 8080}, policy=Policy.STRICT, endpoints={1: [mesh.family.pod]}
    )

    run = mesh.connect(mesh.family.vip, 80)

    assert_left_alone(mesh, run, mesh.family.vip, 80)


@pytest.mark.parametrize("priority", range(7))
def test_failover_policy_goes_to_the_first_priority_with_endpoints(mesh: Mesh, priority: int):
    family = mesh.family
    endpoints = {priority: [family.pod]}
    if priority < 6:
        endpoints[priority + 1] = [family.pods[1]]
        endpoints[6] = [family.pods[2]]
    mesh.service(family.vip, ports={80: 8080}, policy=Policy.FAILOVER, endpoints=endpoints)

    run = mesh.connect(family.vip, 80)

    assert_redirected(mesh, run, family.pod, 8080)


def test_failover_policy_without_any_endpoint_rewrites_nothing(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, policy=Policy.FAILOVER)

    run = mesh.connect(mesh.family.vip, 80)

    assert_left_alone(mesh, run, mesh.family.vip, 80)


def test_failover_policy_does_not_fall_through_a_missing_endpoint(mesh: Mesh):
    family = mesh.family
    service = mesh.service(
        family.vip,
        ports={80: 8080},
        policy=Policy.FAILOVER,
        endpoints={2: [family.pods[0]], 3: [family.pods[1]]},
    )
    mesh.forget_endpoint(service, 1, priority=2)

    run = mesh.connect(family.vip, 80)

    assert_left_alone(mesh, run, family.vip, 80)


@UNKNOWN_POLICY
def test_unknown_policy_rewrites_nothing(mesh: Mesh, policy: int):
    mesh.service(mesh.family.vip, ports={80: 8080}, policy=policy, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, 80)

    assert_left_alone(mesh, run, mesh.family.vip, 80)
    assert run.log, "the failure was not logged"


# -- the endpoint and its backend ------------------------------------------------------------------


@EVERY_POLICY
def test_missing_endpoint_rewrites_nothing(mesh: Mesh, policy: Policy):
    service = mesh.service(
        mesh.family.vip, ports={80: 8080}, policy=policy, endpoints=[mesh.family.pod]
    )
    mesh.forget_endpoint(service, 1)

    run = mesh.connect(mesh.family.vip, 80)

    assert_left_alone(mesh, run, mesh.family.vip, 80)


@EVERY_POLICY
def test_missing_backend_rewrites_nothing(mesh: Mesh, policy: Policy):
    mesh.service(mesh.family.vip, ports={80: 8080}, policy=policy, endpoints=[4711])

    run = mesh.connect(mesh.family.vip, 80)

    assert_left_alone(mesh, run, mesh.family.vip, 80)


@EVERY_POLICY
def test_backend_with_a_waypoint_port_goes_to_its_waypoint(mesh: Mesh, policy: Policy):
    family = mesh.family
    uid = mesh.backend(family.pod, waypoint=(family.waypoint, 15008))
    mesh.service(family.vip, ports={80: 8080}, policy=policy, endpoints=[uid])

    run = mesh.connect(family.vip, 80)

    assert_redirected(mesh, run, family.waypoint, 15008)
    assert run.storage("km_sockstorage").via_waypoint


def test_backends_waypoint_needs_no_equal_port(mesh: Mesh):
    family = mesh.family
    uid = mesh.backend(family.pod, waypoint=(family.waypoint, 15008))
    mesh.service(family.vip, ports={80: 8080}, endpoints=[uid])

    run = mesh.connect(family.vip, 81)

    assert_redirected(mesh, run, family.waypoint, 15008)


@EVERY_POLICY
def test_port_that_the_service_has_not_rewrites_nothing(mesh: Mesh, policy: Policy):
    ports = {80 + n: 8080 + n for n in range(10)}
    mesh.service(mesh.family.vip, ports=ports, policy=policy, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, 90)

    assert_left_alone(mesh, run, mesh.family.vip, 90)


def test_endpoint_of_another_service_is_not_used(mesh: Mesh):
    family = mesh.family
    empty = mesh.service(family.vip, ports={80: 8080}, policy=Policy.STRICT, endpoints=[4711])
    mesh.service(family.vip2, ports={80: 8080}, endpoints=[family.pod])
    mesh.forget_endpoint(empty, 1)

    run = mesh.connect(family.vip, 80)

    assert_left_alone(mesh, run, family.vip, 80)


# -- what it says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing endpoint", "missing backend", "missing port"])
def test_strict_policy_logs_every_failure(mesh: Mesh, kind: str):
    uid = 4711 if kind == "missing backend" else mesh.family.pod
    service = mesh.service(mesh.family.vip, ports={80: 8080}, policy=Policy.STRICT, endpoints=[uid])
    if kind == "missing endpoint":
        mesh.forget_endpoint(service, 1)

    run = mesh.connect(mesh.family.vip, 81 if kind == "missing port" else 80)

    assert len(run.log) >= 1


@EVERY_POLICY
def test_success_logs_no_error(mesh: Mesh, policy: Policy):
    mesh.service(mesh.family.vip, ports={80: 8080}, policy=policy, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, 80)

    assert run.log == []


@pytest.mark.own_messages
def test_each_failure_has_its_message(mesh: Mesh):
    vip, maps = mesh.family.vip, mesh.obj.maps

    def said() -> list[str]:
        return list(mesh.connect(vip, 80).log)

    mesh.frontend(vip, 7)
    assert said() == ["error: frontend without its service or backend"]

    maps.km_service[7] = {"lb_policy": Policy.STRICT}
    assert said() == ["error: strict policy: no endpoint at priority 0"]

    maps.km_service[7] = {"lb_policy": Policy.FAILOVER}
    assert said() == ["error: failover policy: no endpoint at any priority"]

    maps.km_service[7] = {"lb_policy": 3}
    assert said() == ["error: unknown load balancing policy"]

    maps.km_service[7] = {"prio_endpoint_count": [1]}
    assert said() == ["error: endpoint counted but missing"]

    mesh.endpoint(7, 1, 9)
    assert said() == ["error: endpoint without its backend"]

    mesh.backend(mesh.family.pod, uid=9)
    assert said() == ["error: service without a port equal to the connection's"]
