"""How a random endpoint is chosen: each index once by a chosen sequence, and evenly by chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from bpfunit import engines, faults, ip

from .checks import assert_redirected
from .families import IPV4, over
from .mesh import Mesh, Policy

#: Policy and priority of the endpoints: every way of the hook to choose at random.
EVERY_CHOICE = pytest.mark.parametrize(
    ("policy", "priority"),
    [(Policy.RANDOM, 0), (Policy.STRICT, 0), (Policy.FAILOVER, 0), (Policy.FAILOVER, 4)],
    ids=lambda value: value.name.lower() if isinstance(value, Policy) else f"priority{value}",
)


@EVERY_CHOICE
def test_each_random_number_has_its_endpoint(
    load_mesh: Callable[..., Mesh], policy: Policy, priority: int
):
    numbers = [0, 1, 2, 3, 4, 5, 9, 0xFFFF_FFFF]
    mesh = load_mesh(instrument=[faults.random(*numbers)])
    pods = mesh.family.pods
    mesh.service(mesh.family.vip, ports={80: 8080}, policy=policy, endpoints={priority: pods})

    for number in numbers:
        run = mesh.connect(mesh.family.vip, 80)

        assert_redirected(mesh, run, pods[number % len(pods)], 8080)


def test_the_number_of_endpoints_bounds_the_choice(load_mesh: Callable[..., Mesh]):
    mesh = load_mesh(instrument=[faults.random(2)])
    pods = mesh.family.pods
    service = mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=pods[:2])
    mesh.endpoint(service, 3, pods[2])  # there, and not counted

    run = mesh.connect(mesh.family.vip, 80)

    assert_redirected(mesh, run, pods[0], 8080)


def test_index_0_is_never_used(load_mesh: Callable[..., Mesh]):
    mesh = load_mesh(instrument=[faults.random(0)])
    service = mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pods[0]])
    mesh.endpoint(service, 0, mesh.family.pods[1])

    run = mesh.connect(mesh.family.vip, 80)

    assert_redirected(mesh, run, mesh.family.pods[0], 8080)


def test_no_number_is_drawn_where_nothing_is_chosen(load_mesh: Callable[..., Mesh]):
    numbers = faults.random(0)
    mesh = load_mesh(instrument=[numbers])
    mesh.service(mesh.family.vip, ports={80: 8080}, waypoint=(mesh.family.waypoint, 15008))

    mesh.connect(mesh.family.vip, 80)
    mesh.connect(mesh.family.vip2, 80)

    assert numbers.calls == 0


@over(IPV4)
def test_endpoints_are_chosen_evenly(mesh: Mesh):
    # both engines repeat a run until it has shown what is chance in it: a second for five of them
    runs, pods = 200 if engines.get().name == "both" else 5000, mesh.family.pods
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=pods)

    context = mesh.program.craft(dst=(mesh.family.vip, 80))
    bulk = mesh.program.run_many(bytes(context) * runs, fresh=False)
    by_address = Counter(context.user_ip4 for context in bulk.ctx)
    chosen = {str(ip(address)): count for address, count in by_address.items()}

    assert set(chosen) == set(pods)
    expected = runs / len(pods)
    chi_square = sum((chosen[pod] - expected) ** 2 / expected for pod in pods)
    # 4 degrees of freedom: an even choice exceeds 27.88 once in 76,000 times
    assert chi_square < 27.88, chosen
