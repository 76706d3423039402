"""Assertions that several groups of tests share."""

from __future__ import annotations

from typing import Any

from .mesh import Mesh

PROCEED = 1


def assert_passed_untouched(run: Any, address: str, number: int) -> None:
    """The program let the connection proceed to where it was going, and went nowhere else."""
    assert run.retval == PROCEED
    assert run.dst == (address, number)
    assert run.untouched
    assert run.tail_calls == []


def assert_left_alone(mesh: Mesh, run: Any, address: str, number: int) -> None:
    """As :func:`assert_passed_untouched`, and the hook remembers no destination of the socket."""
    assert_passed_untouched(run, mesh.family.seen(address), number)
    assert mesh.remembered(run) is None
    storage = run.storage("km_sockstorage")
    assert storage is None or not storage.via_waypoint


def assert_redirected(mesh: Mesh, run: Any, address: str, number: int) -> None:
    """The program let the connection proceed to another destination."""
    assert run.retval == PROCEED
    assert run.dst == (mesh.family.seen(address), number)
