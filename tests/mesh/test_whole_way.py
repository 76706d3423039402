"""One connection on its whole way, connect4 to sk_msg, with one socket's storage.

It is told twice: by crafted runs, and by a real connection with everything attached. Both happen in
a network namespace of their own with the same addresses and ports, so that even the keys of the
maps have to be equal.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import bpfunit
from bpfunit.netns import NetworkNamespace

from ..hook.families import Family
from ..hook.mesh import MAP_TYPES as HOOK_MAP_TYPES
from ..hook.mesh import Mesh
from .world import MAP_TYPES, SECONDS, WAYPOINT_PORT, World, listen, requests, tlv

CLIENT_PORT = 40000
MESSAGES = (b"GET /", b"and more")


@dataclass
class Story:
    """What became of a connection.

    ``client`` and ``server`` are the ends' storages, with the time of the connect taken out.
    """

    peer: tuple[str, int] = ("", 0)
    client: bytes = b""
    server: bytes = b""
    followed: list[bytes] = field(default_factory=list)
    callbacks: list[Any] = field(default_factory=list)
    asked: list[tuple[int, bytes]] = field(default_factory=list)
    received: bytes = b""
    left: list[bytes] = field(default_factory=list)


@dataclass
class Both:
    """The hook and its neighbours, which share the socket's storage."""

    hook: Mesh
    world: World

    def storage(self, sock: socket.socket) -> bytes:
        """Return a socket's storage without the time of its connect."""
        found = self.hook.obj.maps.km_sockstorage[sock]
        found.connect_ns = 0
        return bytes(found)


@pytest.fixture
def namespace(family: Family) -> Iterator[Callable[[], NetworkNamespace]]:
    """A function that makes a network namespace with the family's addresses."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(NetworkNamespace(*family.pods, family.waypoint))


@pytest.fixture
def both(
    bpf_load: Callable[..., Any], bpf_object_path: Path, mesh_object: Path, family: Family
) -> Iterator[Both]:
    hook = bpf_load(bpf_object_path, map_types=HOOK_MAP_TYPES)
    shared = {name: hook.maps[name] for name in ("km_manage", "km_sockstorage")}
    obj = bpf_load(mesh_object, map_types=MAP_TYPES, maps=shared)
    with closing(Mesh(hook, family)) as mesh, closing(World(obj, family)) as world:
        mesh.service(family.vip, ports={80: 8080}, waypoint=(family.waypoint, WAYPOINT_PORT))
        yield Both(mesh, world)


def manage(both: Both) -> None:
    """Let the mesh manage the calling thread's namespace, by cookie and by address."""
    both.hook.manage()
    both.world.manage(both.world.family.pod)
    both.world.manage(both.world.family.waypoint)


def workload(family: Family) -> socket.socket:
    """Return a socket of the first pod."""
    sock = socket.socket(family.socket_family)
    sock.settimeout(SECONDS)
    sock.bind((family.seen(family.pod), CLIENT_PORT))
    return sock


def received(server: socket.socket, size: int) -> bytes:
    """Read this many bytes."""
    got = b""
    while len(got) < size:
        more = server.recv(size - len(got))
        assert more, f"the connection ended after {got!r}"
        got += more
    return got


def by_crafted_runs(both: Both) -> Story:
    """Run each program in its turn on sockets that are connected without them."""
    family, world, story = both.world.family, both.world, Story()
    manage(both)
    with listen(family, WAYPOINT_PORT) as listener, workload(family) as client:
        chosen = both.hook.connect(family.vip, 80, sock=client)
        assert chosen.dst == (family.seen(family.waypoint), WAYPOINT_PORT)
        client.connect((family.seen(family.waypoint), WAYPOINT_PORT))
        story.peer = client.getpeername()[:2]
        server = listener.accept()[0]
        with server:
            world.follow.run("tcp_connect", sock=client)
            opened = world.follow.run("active_established", sock=client)
            accepted = world.follow.run("passive_established", sock=server)
            story.callbacks = [opened.cb_flags, accepted.cb_flags]
            story.asked = world.asked(accepted)
            story.followed = world.followed()
            runs = [world.encode.run(one, sock=client) for one in MESSAGES]
            assert [run.verdict for run in runs] == ["pass", "pass"]
            story.received = b"".join(run.data for run in runs)
            story.client, story.server = both.storage(client), both.storage(server)
            world.follow.run("state", sock=client)
            world.follow.run("state", sock=server)
            story.left = world.followed()
    return story


def by_a_real_connection(both: Both) -> Story:
    """Attach all three programs, dial the service, send, and close."""
    family, world, story = both.world.family, both.world, Story()
    manage(both)
    rings = world.obj.observation
    with (
        bpfunit.attach(both.hook.program, world.follow),
        bpfunit.attach_to_map(world.obj.maps.km_sockhash, world.encode),
        listen(family, WAYPOINT_PORT) as listener,
        workload(family) as client,
    ):
        rings.said()
        client.connect((family.seen(family.vip), 80))
        server = listener.accept()[0]
        with server:
            server.settimeout(SECONDS)
            story.peer = client.getpeername()[:2]
            events, _ = rings.said()
            story.asked = requests(events.get("km_auth_request", []))
            story.followed = world.followed()
            for one in MESSAGES:
                client.send(one)
            story.received = received(
                server, len(tlv(family, family.vip, 80)) + len(b"".join(MESSAGES))
            )
            story.client, story.server = both.storage(client), both.storage(server)
            # an op that the program does nothing at shows which callbacks are on
            story.callbacks = [
                world.follow.run("rtt", sock=one).cb_flags for one in (client, server)
            ]
        client.close()
        deadline = time.monotonic() + SECONDS
        while (left := world.followed()) and time.monotonic() < deadline:
            time.sleep(0.01)
        story.left = left
    return story


def test_crafted_runs_and_a_real_connection_agree(
    both: Both, namespace: Callable[[], NetworkNamespace], family: Family
):
    stories = []
    for tell in (by_crafted_runs, by_a_real_connection):
        with namespace().entered():
            stories.append(tell(both))
    crafted, real = stories

    assert crafted == real
    assert real.received == tlv(family, family.vip, 80) + b"".join(MESSAGES)
    assert len(real.followed) == len(real.asked) == 1
    assert real.callbacks == [{"state"}, {"state"}]
    assert real.left == []


def test_real_connection_of_an_unmanaged_workload_is_left_alone(
    both: Both, namespace: Callable[[], NetworkNamespace], family: Family
):
    world = both.world
    with (
        namespace().entered(),
        bpfunit.attach(both.hook.program, world.follow),
        bpfunit.attach_to_map(world.obj.maps.km_sockhash, world.encode),
        listen(family, WAYPOINT_PORT) as listener,
        workload(family) as client,
    ):
        client.connect((family.seen(family.waypoint), WAYPOINT_PORT))
        server = listener.accept()[0]
        with server:
            server.settimeout(SECONDS)
            client.send(b"GET /")
            assert received(server, 5) == b"GET /"
        assert world.followed() == []
        assert client not in both.hook.obj.maps.km_sockstorage
