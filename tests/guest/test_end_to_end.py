"""From end to end: real servers behind the addresses that the hook chooses, and real clients."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

import bpfunit
from bpfunit.netns import NetworkNamespace

from ..hook.families import ALL, IPV4, Family
from ..hook.mesh import DNS, MAP_TYPES, Mesh

pytestmark = pytest.mark.guest

SECONDS = 20  # loopback answers at once; what does not is a failure, and not waited for


@pytest.fixture(params=ALL, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """Each kind of connection in turn: IPv4, IPv6, and IPv4 on an IPv6 socket."""
    return request.param


@pytest.fixture
def network(family: Family) -> Iterator[None]:
    """A network namespace with the addresses of pods and waypoint, but not of the service."""
    with NetworkNamespace(*family.pods, family.waypoint) as namespace, namespace.entered():
        yield


@pytest.fixture
def mesh(
    network: None, bpf_load: Callable[..., Any], bpf_object_path: Any, family: Family
) -> Iterator[Mesh]:
    """The hook, which manages that namespace; attached by the tests themselves."""
    obj = bpf_load(bpf_object_path, map_types=MAP_TYPES)
    with closing(Mesh(obj, family)) as mesh:
        mesh.manage()
        yield mesh


@pytest.fixture
def listen() -> Iterator[Callable[[str, int], socket.socket]]:
    """A function that starts a TCP server at an address."""
    with ExitStack() as servers:

        def start(address: str, number: int) -> socket.socket:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            server = servers.enter_context(socket.create_server((address, number), family=family))
            server.settimeout(SECONDS)
            return server

        yield start


def client_of(family: Family) -> socket.socket:
    client = socket.socket(family.socket_family)
    client.settimeout(SECONDS)
    return client


def assert_talking(client: socket.socket, server: socket.socket, family: Family) -> None:
    """The client is connected to this very server, in the view of both."""
    accepted, peer = server.accept()
    with accepted:
        accepted.settimeout(SECONDS)
        address, number = server.getsockname()[:2]
        assert client.getpeername()[:2] == (family.seen(address), number)
        assert accepted.getsockname()[:2] == (address, number)
        own = client.getsockname()[:2]
        assert own == (family.seen(peer[0]), peer[1])
        client.sendall(b"who are you?")
        assert accepted.recv(64) == b"who are you?"
        accepted.sendall(address.encode())
        assert client.recv(64) == address.encode()


def test_client_of_the_service_talks_to_its_pod(
    mesh: Mesh, family: Family, listen: Callable[[str, int], socket.socket]
):
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])
    server = listen(family.pod, 8080)

    with bpfunit.attach(mesh.program), client_of(family) as client:
        client.connect((family.seen(family.vip), 80))
        assert_talking(client, server, family)


def test_client_of_a_waypoint_service_talks_to_the_waypoint(
    mesh: Mesh, family: Family, listen: Callable[[str, int], socket.socket]
):
    mesh.service(
        family.vip, ports={80: 8080}, endpoints=[family.pod], waypoint=(family.waypoint, 15019)
    )
    mesh.tail_array[family.tail_index] = mesh.program  # as in production
    server = listen(family.waypoint, 15019)

    with bpfunit.attach(mesh.program), client_of(family) as client:
        client.connect((family.seen(family.vip), 80))
        assert_talking(client, server, family)
        remembered = mesh.obj.maps.km_sockstorage[client]

    assert remembered.via_waypoint
    assert remembered.has_set_ip


def test_every_pod_of_the_service_is_reached(
    mesh: Mesh, family: Family, listen: Callable[[str, int], socket.socket]
):
    mesh.service(family.vip, ports={80: 8080}, endpoints=family.pods)
    servers = {pod: listen(pod, 8080) for pod in family.pods}
    reached = set()

    with bpfunit.attach(mesh.program):
        for _ in range(40 * len(servers)):
            with client_of(family) as client:
                client.connect((family.seen(family.vip), 80))
                reached.add(client.getpeername()[0])

    assert reached == {family.seen(pod) for pod in servers}


def test_without_the_program_the_service_is_nowhere(mesh: Mesh, family: Family):
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])

    with client_of(family) as client, pytest.raises(OSError) as failure:
        client.connect((family.seen(family.vip), 80))

    assert failure.value.errno == errno.ENETUNREACH


def test_socket_made_before_the_program_was_attached_is_left_alone(mesh: Mesh, family: Family):
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])

    attached, dialled = bpfunit.attach(mesh.program), pytest.raises(OSError)
    with client_of(family) as client, attached, dialled as failure:
        client.connect((family.seen(family.vip), 80))

    assert failure.value.errno == errno.ENETUNREACH


def test_unmanaged_namespace_is_left_alone(mesh: Mesh, family: Family):
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])
    mesh.unmanage()

    attached, dialled = bpfunit.attach(mesh.program), pytest.raises(OSError)
    with attached, client_of(family) as client, dialled as failure:
        client.connect((family.seen(family.vip), 80))

    assert failure.value.errno == errno.ENETUNREACH


def test_dialling_the_control_address_manages_the_namespace(
    mesh: Mesh, family: Family, listen: Callable[[str, int], socket.socket]
):
    mesh.service(family.vip, ports={80: 8080}, endpoints=[family.pod])
    mesh.unmanage()
    server = listen(family.pod, 8080)

    with bpfunit.attach(mesh.program):
        with client_of(family) as announcer, pytest.raises(OSError):
            announcer.connect((family.control, 929))
        with client_of(family) as client:
            client.connect((family.seen(family.vip), 80))
            assert_talking(client, server, family)


@pytest.mark.parametrize("family", [IPV4], ids=str, indirect=False)
def test_dns_question_reaches_the_proxy_and_its_answer_comes_back(mesh: Mesh, family: Family):
    mesh.dns_proxy(family.pod)
    sends, receives = (
        mesh.obj.programs[name] for name in ("bpf_redirect_dns_send", "bpf_restore_dns_recv")
    )

    with ExitStack() as sockets:
        proxy = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        proxy.settimeout(SECONDS)
        proxy.bind((family.pod, DNS))
        sockets.enter_context(bpfunit.attach(sends, receives))
        client = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        client.settimeout(SECONDS)
        client.sendto(b"where?", (family.vip, DNS))
        question, asker = proxy.recvfrom(64)
        proxy.sendto(b"here", asker)
        answer, sender = client.recvfrom(64)

    assert (question, answer) == (b"where?", b"here")
    assert sender == (family.vip, DNS)
