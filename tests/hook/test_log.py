"""The hook's log: levels, and the records of its ring buffer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .families import IPV4, over
from .mesh import DNS, Mesh

ERROR, WARNING, INFO, DEBUG = range(4)

pytestmark = over(IPV4)


@pytest.mark.parametrize("level", [ERROR, WARNING, INFO, DEBUG])
def test_errors_are_logged_at_every_level(load_mesh: Callable[..., Mesh], level: int):
    mesh = load_mesh(log_level=level)
    mesh.service(mesh.family.vip, ports={80: 8080}, policy=3)

    assert mesh.connect(mesh.family.vip, 80).log


def test_the_default_level_is_info(load_mesh: Callable[..., Mesh]):
    mesh = load_mesh(log_level=None)

    assert mesh.obj.globals.bpf_log_level == INFO


@pytest.mark.own_messages
def test_debug_lines_appear_at_the_debug_level_only(load_mesh: Callable[..., Mesh]):
    mesh = load_mesh(log_level=INFO)

    assert mesh.connect(mesh.family.vip, 80).log == []
    mesh.obj.globals.bpf_log_level = DEBUG
    assert mesh.connect(mesh.family.vip, 80).log == ["debug: destination is no frontend"]


@pytest.mark.own_messages
def test_a_destination_kept_on_purpose_is_told_at_the_debug_level(
    load_mesh: Callable[..., Mesh],
):
    mesh = load_mesh(log_level=DEBUG)
    mesh.service(mesh.family.vip, ports={80: 8080})

    assert mesh.connect(mesh.family.vip, 80).log == [
        "debug: random policy: no endpoint, destination kept"
    ]
    assert mesh.connect("10.0.0.53", DNS).log == ["debug: no DNS proxy, destination kept"]


@pytest.mark.own_messages
def test_joining_and_leaving_are_told_at_the_info_level(load_mesh: Callable[..., Mesh]):
    mesh = load_mesh(log_level=INFO, managed=False)

    assert mesh.join().log == ["info: network namespace managed"]
    assert mesh.leave().log == ["info: network namespace no longer managed"]


@pytest.mark.own_messages
def test_a_record_says_the_size_of_its_text(load_mesh: Callable[..., Mesh]):
    mesh = load_mesh(log_level=DEBUG)

    [line] = mesh.connect(mesh.family.vip, 80).log

    assert line.ret == len(line) + 1  # as bpf_snprintf() counts: with the NUL behind the text
