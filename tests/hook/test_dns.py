"""DNS: questions go to the mesh's proxy, answers come from where the question went (IPv4 only)."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from bpfunit import faults

from .checks import assert_left_alone, assert_passed_untouched
from .families import IPV4, IPV6, V4_MAPPED, Family, over
from .mesh import DNS, JOIN, LEAVE, Mesh

RESOLVER, PROXY, ELSEWHERE = "10.96.0.10", "127.0.0.6", "10.96.0.11"
SEND, RECEIVE = "bpf_redirect_dns_send", "bpf_restore_dns_recv"

Ask = Callable[..., Any]


@pytest.fixture
def family() -> Family:
    """IPv4 alone: the mesh's DNS programs and its proxy know no other."""
    return IPV4


@pytest.fixture(params=["connect over UDP", "connect over TCP", "sendmsg"])
def ask(request: pytest.FixtureRequest, mesh: Mesh) -> Ask:
    """Each of the three ways in which a question leaves: ask(address, port)."""
    if request.param == "sendmsg":
        return lambda address, number, **sock: mesh.dial(SEND, address, number, **sock)
    type = socket.SOCK_STREAM if "TCP" in request.param else socket.SOCK_DGRAM
    return lambda address, number, **sock: mesh.connect(address, number, type=type, **sock)


def test_question_goes_to_the_proxy_on_the_same_port(mesh: Mesh, ask: Ask):
    mesh.dns_proxy(PROXY)

    run = ask(RESOLVER, DNS)

    assert run.retval == 1
    assert run.dst == (PROXY, DNS)


def test_question_remembers_where_it_was_going(mesh: Mesh, ask: Ask):
    mesh.dns_proxy(PROXY)

    run = ask(RESOLVER, DNS)

    assert mesh.remembered(run) == (RESOLVER, DNS)
    assert not run.storage("km_sockstorage").via_waypoint


def test_question_records_no_time_of_connect(mesh: Mesh, ask: Ask):
    mesh.dns_proxy(PROXY)

    run = ask(RESOLVER, DNS)

    assert run.storage("km_sockstorage").connect_ns == 0


def test_second_question_keeps_the_first_destination(mesh: Mesh, ask: Ask):
    mesh.dns_proxy(PROXY)
    sock = mesh.new_socket(socket.SOCK_DGRAM)

    ask(RESOLVER, DNS, sock=sock)
    second = ask(ELSEWHERE, DNS, sock=sock)

    assert second.dst == (PROXY, DNS)
    assert mesh.remembered(second) == (RESOLVER, DNS)


def test_question_passes_untouched_without_a_proxy(mesh: Mesh, ask: Ask):
    run = ask(RESOLVER, DNS)

    assert_left_alone(mesh, run, RESOLVER, DNS)


def test_question_passes_untouched_in_an_unmanaged_namespace(mesh: Mesh, ask: Ask):
    mesh.dns_proxy(PROXY)
    mesh.unmanage()

    run = ask(RESOLVER, DNS)

    assert_left_alone(mesh, run, RESOLVER, DNS)


@pytest.mark.parametrize("number", [54, 853, 0x3500])
def test_other_ports_do_not_go_to_the_proxy(mesh: Mesh, ask: Ask, number: int):
    # 0x3500 is 53 with its bytes swapped
    mesh.dns_proxy(PROXY)

    run = ask(RESOLVER, number)

    assert_left_alone(mesh, run, RESOLVER, number)


def test_the_proxys_waypoint_is_of_no_interest(mesh: Mesh, ask: Ask):
    mesh.backend(PROXY, uid=0, waypoint=("10.244.9.99", 15008))
    mesh.spy()

    run = ask(RESOLVER, DNS)

    assert run.dst == (PROXY, DNS)
    assert run.tail_calls == []


def test_a_dns_service_is_not_steered_when_there_is_a_proxy(mesh: Mesh):
    mesh.dns_proxy(PROXY)
    mesh.service(RESOLVER, ports={DNS: 5353}, endpoints=[mesh.family.pod])

    run = mesh.connect(RESOLVER, DNS)

    assert run.dst == (PROXY, DNS)


@over(IPV6, V4_MAPPED)
def test_connect6_knows_no_dns(mesh: Mesh):
    mesh.dns_proxy(PROXY)
    mesh.service(mesh.family.vip, ports={DNS: 5353}, endpoints=[mesh.family.pod])

    run = mesh.connect(mesh.family.vip, DNS)

    assert run.dst == (mesh.family.seen(mesh.family.pod), 5353)


# -- answers ---------------------------------------------------------------------------------------


def test_answer_comes_from_where_the_question_went(mesh: Mesh):
    mesh.dns_proxy(PROXY)
    sock = mesh.new_socket(socket.SOCK_DGRAM)
    mesh.dial(SEND, RESOLVER, DNS, sock=sock)

    answer = mesh.dial(RECEIVE, PROXY, DNS, sock=sock)

    assert answer.retval == 1
    assert answer.dst == (RESOLVER, DNS)


def test_answer_to_nothing_asked_comes_from_nowhere(mesh: Mesh):
    mesh.dns_proxy(PROXY)

    answer = mesh.dial(RECEIVE, PROXY, DNS)

    assert answer.dst == ("0.0.0.0", DNS)
    assert not any(bytes(answer.storage("km_sockstorage"))), "the storage is not made afresh"


def test_answer_passes_untouched_without_a_proxy(mesh: Mesh):
    answer = mesh.dial(RECEIVE, PROXY, DNS)

    assert_passed_untouched(answer, PROXY, DNS)
    assert answer.storage("km_sockstorage") is None


def test_answer_passes_untouched_in_an_unmanaged_namespace(mesh: Mesh):
    mesh.dns_proxy(PROXY)
    mesh.unmanage()

    assert_passed_untouched(mesh.dial(RECEIVE, PROXY, DNS), PROXY, DNS)


def test_question_goes_to_the_proxy_although_storage_fails(mesh: Mesh, ask: Ask):
    mesh.dns_proxy(PROXY)

    with faults.no_socket_memory():
        run = ask(RESOLVER, DNS)

    assert run.dst == (PROXY, DNS)
    assert run.storage("km_sockstorage") is None
    assert run.log, "the failure was not logged"


def test_answer_passes_untouched_when_storage_fails(mesh: Mesh):
    mesh.dns_proxy(PROXY)

    with faults.no_socket_memory():
        answer = mesh.dial(RECEIVE, PROXY, DNS)

    assert_passed_untouched(answer, PROXY, DNS)
    assert answer.log, "the failure was not logged"


@pytest.mark.parametrize("number", [54, 853, 0x3500])
def test_answer_from_another_port_passes_untouched(mesh: Mesh, number: int):
    mesh.dns_proxy(PROXY)

    assert_passed_untouched(mesh.dial(RECEIVE, PROXY, number), PROXY, number)


# -- control connections, which these programs obey as well ----------------------------------------


@pytest.mark.parametrize("program", [SEND, RECEIVE])
def test_dns_programs_join(unmanaged_mesh: Mesh, program: str):
    run = unmanaged_mesh.dial(program, "0.0.0.2", JOIN)

    assert_passed_untouched(run, "0.0.0.2", JOIN)
    assert list(unmanaged_mesh.obj.maps.km_manage.values()) == [0]


@pytest.mark.parametrize("program", [SEND, RECEIVE])
def test_dns_programs_leave(mesh: Mesh, program: str):
    run = mesh.dial(program, "0.0.0.2", LEAVE)

    assert_passed_untouched(run, "0.0.0.2", LEAVE)
    assert len(mesh.obj.maps.km_manage) == 0
