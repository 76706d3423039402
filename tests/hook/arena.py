"""Plays a scenario on the loaded hook and holds every call against the model."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, NamedTuple

from bpfunit import BpfSockAddr, ip, port
from bpfunit.progtypes.sock_addr import craft

from . import model
from .mesh import netns_cookie
from .model import Call, Memory, Outcome, World
from .scenarios import Round, Scenario

_MAPS = ("km_manage", "km_frontend", "km_service", "km_endpoint", "km_backend")
_SOCK = BpfSockAddr.sk.offset  # the context up to here is compared


class Arena:
    """One loaded hook on which any number of scenarios are played, each from empty maps.

    Args:
        obj: the loaded object.
    """

    def __init__(self, obj: Any) -> None:
        self.obj = obj
        self.cases = 0

    def play(self, scenario: Scenario) -> None:
        """Make the scenario's calls in order; fail at the first that the model does not allow."""
        world = replace(scenario.world)
        self._write(world)
        with ExitStack() as undo:
            if scenario.spies:
                undo.enter_context(self.obj.maps.km_cgr_tailcall.spy(0))
                undo.enter_context(self.obj.maps.km_cgr_tail6.spy(1))
            actors = _Actors(undo)
            for one in scenario.rounds:
                self._play_round(scenario, one, world, actors.of(one))
        assert bool(self.obj.maps.km_manage) == world.managed, "km_manage differs from the model"

    def _play_round(self, scenario: Scenario, one: Round, world: World, actor: _Actor) -> None:
        program = self.obj.programs[one.program]
        contexts = b"".join(
            _context(program.hook, address, number, one.tcp) for address, number in one.calls
        )
        runs = program.run_many(contexts, sock=actor.sock).raise_for_errors()
        for (address, number), run in zip(one.calls, runs, strict=True):
            call = Call(one.program, address, number, one.tcp)
            allowed = model.step(world, actor.memory, call)
            seen = _Seen.of(run)
            for outcome in allowed:
                context = _context(program.hook, outcome.address, outcome.port, one.tcp)[:_SOCK]
                entered = [context] if outcome.tail_call and scenario.spies else []
                storage = self._storage(seen, actor, outcome.memory)
                if seen == _Seen(1, context, storage, entered):
                    break
            else:
                raise AssertionError(_explain(scenario, call, actor, run, allowed))
            if storage is not None:
                actor.connect_ns = seen.connect_ns
            actor.memory, world.managed = outcome.memory, outcome.managed
            self.cases += 1

    def _storage(self, seen: _Seen, actor: _Actor, memory: Memory) -> bytes | None:
        """Return the bytes that the storage must have; the time is the one seen if it is new."""
        if not memory.exists:
            return None
        observed_now = memory.observed > actor.memory.observed
        is_new = seen.connect_ns > actor.connect_ns
        connect_ns = seen.connect_ns if observed_now and is_new else actor.connect_ns
        return connect_ns.to_bytes(8, sys.byteorder) + self._behind_the_time(
            memory.via_waypoint, memory.original
        )

    @lru_cache(maxsize=4096)  # noqa: B019 (one arena a test)
    def _behind_the_time(
        self, via_waypoint: bool, original: tuple[model.Address, int] | None
    ) -> bytes:
        """Return the storage behind its first field, connect_ns."""
        expected = self.obj.types.sock_storage_data(
            via_waypoint=via_waypoint, has_set_ip=original is not None
        )
        if original is not None:
            address, number = original
            family = "ipv4" if len(address) == 4 else "ipv6"
            setattr(expected.sk_tuple, family, {"daddr": ip(address), "dport": port(number)})
        return bytes(expected)[8:]

    def _write(self, world: World) -> None:
        maps = self.obj.maps
        for name in _MAPS:
            maps[name].clear()
        maps.km_frontend.update({ip(a): upstream for a, upstream in world.frontends.items()})
        maps.km_service.update({n: _service_value(s) for n, s in world.services.items()})
        maps.km_endpoint.update(world.endpoints)
        maps.km_backend.update({uid: _backend_value(b) for uid, b in world.backends.items()})
        if world.managed:
            self._manage()

    def _manage(self) -> None:
        cookie = netns_cookie()
        if cookie is None:  # before 5.14 nothing but a BPF program can tell the cookie
            self.obj.programs.cgroup_connect4_prog.run("0.0.0.2:929")
        else:
            self.obj.maps.km_manage[{"netns_cookie": cookie}] = 0


def _service_value(service: model.Service) -> dict[str, Any]:
    return {
        "prio_endpoint_count": service.counts,
        "lb_policy": service.policy,
        "service_port": [port(number) for number, _ in service.ports],
        "target_port": [port(number) for _, number in service.ports],
        "wp_addr": ip(service.waypoint),
        "waypoint_port": port(service.waypoint_port),
    }


def _backend_value(backend: model.Backend) -> dict[str, Any]:
    return {
        "addr": ip(backend.address),
        "wp_addr": ip(backend.waypoint),
        "waypoint_port": port(backend.waypoint_port),
    }


class _Seen(NamedTuple):
    """What is compared of a run."""

    retval: int
    context: bytes
    storage: bytes | None
    entered: list[bytes]

    @classmethod
    def of(cls, run: Any) -> _Seen:
        """Take it from a run of a bulk call."""
        storage = run.storage("km_sockstorage")
        return cls(
            run.retval,
            bytes(run.ctx)[:_SOCK],
            None if storage is None else bytes(storage),
            [bytes(call.ctx)[:_SOCK] for call in run.tail_calls],
        )

    @property
    def connect_ns(self) -> int:
        """The time in the storage, its first field; 0 without storage."""
        return int.from_bytes((self.storage or b"")[:8], sys.byteorder)


@lru_cache(maxsize=4096)
def _context(hook: Any, address: bytes, number: int, tcp: bool) -> bytes:
    """Return the context of a call, as the kernel crafts it for a socket of this protocol."""
    sock_type = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    return bytes(craft(hook, dst=(str(ip_address(address)), number), type=sock_type))


class _Actor:
    """A socket, what the model says it remembers, and the time of its last observed connect."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.memory = Memory()
        self.connect_ns = 0


class _Actors:
    """The sockets of one scenario, made when first used and closed with ``undo``."""

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo
        self._actors: dict[tuple[int, int, int], _Actor] = {}

    def of(self, one: Round) -> _Actor:
        """Return the actor of a round: rounds of one family, type and number share their socket."""
        family = socket.AF_INET6 if one.program == model.CONNECT6 else socket.AF_INET
        sock_type = socket.SOCK_STREAM if one.tcp else socket.SOCK_DGRAM
        key = (family, sock_type, one.socket)
        if key not in self._actors:
            self._actors[key] = _Actor(self._undo.enter_context(socket.socket(family, sock_type)))
        return self._actors[key]


def _explain(
    scenario: Scenario, call: Call, actor: _Actor, run: Any, allowed: list[Outcome]
) -> str:
    return "\n".join(
        [
            f"{call} with spies {'in' if scenario.spies else 'out of'} the slots",
            f"  socket: {actor.memory}",
            f"  hook:   {run.retval}, {run.ctx}, {run.storage('km_sockstorage')},"
            f" tail calls {[str(entered.ctx) for entered in run.tail_calls]}",
            *(f"  model:  {outcome}" for outcome in allowed),
            f"  in {scenario.world}",
        ]
    )
