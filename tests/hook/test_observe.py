"""Group 3: the time of each connect, kept in the socket's storage."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from bpfunit import faults

from .checks import assert_left_alone, assert_redirected
from .mesh import Mesh


def test_connect_records_a_monotonic_timestamp(mesh: Mesh):
    before = time.monotonic_ns()
    run = mesh.connect(mesh.family.vip, 80)
    after = time.monotonic_ns()

    assert before <= run.storage("km_sockstorage").connect_ns <= after


def test_connect_records_nothing_but_the_timestamp(mesh: Mesh):
    run = mesh.connect(mesh.family.vip, 80)

    storage = run.storage("km_sockstorage")
    storage.connect_ns = 0
    assert not any(bytes(storage))


def test_a_second_connect_records_its_own_time(mesh: Mesh):
    sock = mesh.new_socket()

    first = mesh.connect(mesh.family.vip, 80, sock=sock).storage("km_sockstorage").connect_ns
    second = mesh.connect(mesh.family.vip, 80, sock=sock).storage("km_sockstorage").connect_ns

    assert first < second


def test_timestamp_is_what_the_clock_says(load_mesh: Callable[..., Mesh]):
    mesh = load_mesh(instrument=[faults.clock(1_000_000_007)])

    run = mesh.connect(mesh.family.vip, 80)

    assert run.storage("km_sockstorage").connect_ns == 1_000_000_007


def test_failing_storage_is_logged_and_survived(load_mesh: Callable[..., Mesh]):
    mesh = load_mesh(instrument=[faults.no_storage()])
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, 80)

    assert_redirected(mesh, run, mesh.family.pod, 8080)
    assert run.storage("km_sockstorage") is None
    assert run.log, "the failure was not logged"


def test_failing_storage_before_a_frontend_miss_is_logged(load_mesh: Callable[..., Mesh]):
    mesh = load_mesh(instrument=[faults.no_storage()])

    run = mesh.connect(mesh.family.vip, 80)

    assert_left_alone(mesh, run, mesh.family.vip, 80)
    assert run.log, "the failure was not logged"


def test_exhausted_socket_memory_is_survived(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    with faults.no_socket_memory():
        run = mesh.connect(mesh.family.vip, 80)

    assert_redirected(mesh, run, mesh.family.pod, 8080)
    assert run.storage("km_sockstorage") is None
    assert run.log, "the failure was not logged"


def test_one_sockets_exhausted_memory_is_its_own(mesh: Mesh):
    sock = mesh.new_socket()

    with faults.filled_socket_storage(sock):
        poor = mesh.connect(mesh.family.vip, 80, sock=sock)
        rich = mesh.connect(mesh.family.vip, 80)

    assert poor.storage("km_sockstorage") is None
    assert rich.storage("km_sockstorage").connect_ns


@pytest.mark.own_messages
def test_failing_storage_has_its_messages(load_mesh: Callable[..., Mesh]):
    mesh = load_mesh(instrument=[faults.no_storage()])
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, 80)

    assert run.log == [
        "error: cannot record the time of this connect: no socket storage",
        "error: cannot remember the original destination: no socket storage",
    ]
