"""Group 7: the tail call of waypoint connections."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bpfunit import faults

from .checks import PROCEED, assert_left_alone, assert_redirected
from .families import IPV4, V4_MAPPED, over
from .mesh import Mesh

WAYPOINT_PORT = 15008


def serve_behind_waypoint(mesh: Mesh) -> Mesh:
    mesh.service(mesh.family.vip, ports={80: 8080}, waypoint=(mesh.family.waypoint, WAYPOINT_PORT))
    return mesh


@pytest.fixture
def waypoint_mesh(mesh: Mesh) -> Mesh:
    """A mesh whose service is behind a waypoint."""
    return serve_behind_waypoint(mesh)


@pytest.fixture
def looping_mesh(load_mesh: Callable[..., Mesh]) -> Mesh:
    """The same, with the connect program itself in its slot, and every tail call traced."""
    mesh = serve_behind_waypoint(load_mesh(trace_tail_calls=True))
    mesh.tail_array[mesh.family.tail_index] = mesh.program
    return mesh


def test_waypoint_connection_enters_its_familys_slot_once(waypoint_mesh: Mesh):
    mesh, family = waypoint_mesh, waypoint_mesh.family
    mesh.spy()

    run = mesh.connect(family.vip, 80)

    [call] = run.tail_calls
    assert (call.map, call.index) == (family.tail_array, family.tail_index)


def test_next_program_sees_the_waypoint_as_destination(waypoint_mesh: Mesh):
    mesh, family = waypoint_mesh, waypoint_mesh.family
    mesh.spy()

    run = mesh.connect(family.vip, 80)

    [call] = run.tail_calls
    assert call.ctx.user == (family.seen(family.waypoint), WAYPOINT_PORT)


def test_next_program_sees_the_same_connection(waypoint_mesh: Mesh):
    mesh = waypoint_mesh
    mesh.spy()

    run = mesh.connect(mesh.family.vip, 80)

    [call] = run.tail_calls
    for field in ("user_family", "family", "type", "protocol"):
        assert getattr(call.ctx, field) == getattr(run.ctx, field), field


def test_backends_waypoint_is_entered_too(mesh: Mesh):
    family = mesh.family
    uid = mesh.backend(family.pod, waypoint=(family.waypoint, WAYPOINT_PORT))
    mesh.service(family.vip, ports={80: 8080}, endpoints=[uid])
    mesh.spy()

    run = mesh.connect(family.vip, 80)

    [call] = run.tail_calls
    assert call.ctx.user == (family.seen(family.waypoint), WAYPOINT_PORT)


def test_direct_backends_waypoint_is_entered_too(mesh: Mesh):
    family = mesh.family
    mesh.frontend(family.pod, mesh.backend(family.pod, waypoint=(family.waypoint, WAYPOINT_PORT)))
    mesh.spy()

    run = mesh.connect(family.pod, 8080)

    [call] = run.tail_calls
    assert call.ctx.user == (family.seen(family.waypoint), WAYPOINT_PORT)


def test_the_other_slots_are_not_entered(waypoint_mesh: Mesh):
    mesh, family = waypoint_mesh, waypoint_mesh.family
    for index in set(range(mesh.tail_array.max_entries)) - {family.tail_index}:
        mesh.tail_array.spy(index)

    run = mesh.connect(family.vip, 80)

    assert run.tail_calls == []


def test_an_endpoint_without_waypoint_makes_no_tail_call(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])
    mesh.spy()

    run = mesh.connect(mesh.family.vip, 80)

    assert_redirected(mesh, run, mesh.family.pod, 8080)
    assert run.tail_calls == []


def test_a_frontend_miss_makes_no_tail_call(mesh: Mesh):
    mesh.spy()

    run = mesh.connect(mesh.family.vip, 80)

    assert_left_alone(mesh, run, mesh.family.vip, 80)


def test_target_taken_away_is_survived(waypoint_mesh: Mesh):
    mesh, family = waypoint_mesh, waypoint_mesh.family
    mesh.spy()

    with faults.missing_target(mesh.tail_array, family.tail_index):
        without = mesh.connect(family.vip, 80)
    with_it = mesh.connect(family.vip, 80)

    assert without.tail_calls == []
    assert_redirected(mesh, without, family.waypoint, WAYPOINT_PORT)
    assert len(with_it.tail_calls) == 1


def test_empty_slot_proceeds_to_the_waypoint(waypoint_mesh: Mesh):
    mesh, family = waypoint_mesh, waypoint_mesh.family

    run = mesh.connect(family.vip, 80)

    assert_redirected(mesh, run, family.waypoint, WAYPOINT_PORT)
    assert run.tail_calls == []
    assert run.log, "the missing program was not logged"


def test_filled_slot_logs_no_error(waypoint_mesh: Mesh):
    waypoint_mesh.spy()

    run = waypoint_mesh.connect(waypoint_mesh.family.vip, 80)

    assert run.log == []


@pytest.mark.own_messages
def test_empty_slot_is_logged_by_its_arrays_name(waypoint_mesh: Mesh):
    run = waypoint_mesh.connect(waypoint_mesh.family.vip, 80)

    array = waypoint_mesh.family.tail_array
    assert run.log == [f"error: waypoint connection: {array} has no program to go on with"]


@over(IPV4, V4_MAPPED)
def test_families_have_arrays_of_their_own(waypoint_mesh: Mesh):
    mesh, family = waypoint_mesh, waypoint_mesh.family
    other = "km_cgr_tail6" if family is IPV4 else "km_cgr_tailcall"
    mesh.obj.maps[other].spy(0)
    mesh.obj.maps[other].spy(1)

    run = mesh.connect(family.vip, 80)

    assert run.tail_calls == []


# -- as in production: the slots hold the connect programs themselves ------------------------------


def test_slot_with_the_program_itself_re_enters_with_the_waypoint(looping_mesh: Mesh):
    mesh, family = looping_mesh, looping_mesh.family

    run = mesh.connect(family.vip, 80)

    [call] = run.tail_calls
    assert call.target == family.program
    assert call.ctx.user == (family.seen(family.waypoint), WAYPOINT_PORT)
    assert_redirected(mesh, run, family.waypoint, WAYPOINT_PORT)


def test_re_entry_keeps_what_the_first_pass_remembered(looping_mesh: Mesh):
    mesh, family = looping_mesh, looping_mesh.family
    # the waypoint is itself a backend of the mesh, as in production: the second pass remembers too
    mesh.frontend(family.waypoint, mesh.backend(family.waypoint))

    run = mesh.connect(family.vip, 80)

    assert mesh.remembered(run) == (family.seen(family.vip), 80)
    assert run.storage("km_sockstorage").via_waypoint


def test_a_waypoint_behind_a_waypoint_shows_as_a_chain(looping_mesh: Mesh):
    mesh, family = looping_mesh, looping_mesh.family
    mesh.frontend(family.waypoint, mesh.backend(family.waypoint, waypoint=(family.pod, 15009)))

    run = mesh.connect(family.vip, 80)

    assert [call.ctx.user for call in run.tail_calls] == [
        (family.seen(family.waypoint), WAYPOINT_PORT),
        (family.seen(family.pod), 15009),
    ]
    assert run.dst == (family.seen(family.pod), 15009)


def test_a_waypoint_that_leads_to_itself_ends_at_the_kernels_limit(looping_mesh: Mesh):
    mesh, family = looping_mesh, looping_mesh.family
    own = mesh.backend(family.waypoint, waypoint=(family.waypoint, WAYPOINT_PORT))
    mesh.frontend(family.waypoint, own)

    run = mesh.connect(family.vip, 80)

    # MAX_TAIL_CALL_CNT in include/linux/bpf.h; it was 32 before 5.16, and the x86 JIT made 33
    assert len(run.tail_calls) == 33
    assert run.retval == PROCEED
    assert run.dst == (family.seen(family.waypoint), WAYPOINT_PORT)
