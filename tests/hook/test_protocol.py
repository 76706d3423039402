"""Group 1: what the hook does with other protocols than TCP, and without a context."""

from __future__ import annotations

import errno
import socket

import pytest

from bpfunit.errors import SyscallError

from .checks import assert_left_alone, assert_redirected
from .mesh import Mesh

UDP = socket.SOCK_DGRAM


def test_udp_passes_untouched(mesh: Mesh):
    vip = mesh.family.vip
    mesh.service(vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    run = mesh.connect(vip, 80, type=UDP)

    assert_left_alone(mesh, run, vip, 80)


def test_udp_is_not_observed(mesh: Mesh):
    run = mesh.connect(mesh.family.vip, 80, type=UDP)

    assert run.storage("km_sockstorage") is None


def test_udp_enters_no_waypoint(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, waypoint=(mesh.family.waypoint, 15008))
    mesh.spy()

    run = mesh.connect(mesh.family.vip, 80, type=UDP)

    assert_left_alone(mesh, run, mesh.family.vip, 80)


def test_tcp_is_steered(mesh: Mesh):
    mesh.service(mesh.family.vip, ports={80: 8080}, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, 80)

    assert_redirected(mesh, run, mesh.family.pod, 8080)


def test_a_missing_context_is_refused(mesh: Mesh):
    with pytest.raises(SyscallError) as refused:
        mesh.program.run(ctx=None)

    assert refused.value.errno == errno.EINVAL
