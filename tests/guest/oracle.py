"""Random cases for the two engines: a context, a socket, and what the program does with them.

A case is run on both engines with ``bpf/oracle.bpf.c``, whose programs write down everything that
they see. Each is made from a seed alone, so that a failure repeats, and can be made simpler field
by field.
"""

from __future__ import annotations

import ipaddress
import random
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import bpfunit
from bpfunit import engines
from bpfunit.engines import NotApplicableError, RawOutcome, Request
from bpfunit.engines.live import LiveEngine
from bpfunit.errors import SyscallError
from bpfunit.netns import NetworkNamespace
from bpfunit.progtypes.sock_addr import BpfSockAddr, arrange
from bpfunit.progtypes.sock_addr.crafted import Crafted, words_of

_FIRST = bytes(4)  # the key of the only entry of an array
STREAM, DGRAM, RAW = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW
UDPLITE, MPTCP, SO_MARK = 136, 262, 36

# (type, protocol): the two that matter, often, and the others that a hook may or may not be run for
PROTOCOLS = (
    [(STREAM, socket.IPPROTO_TCP)] * 8
    + [(DGRAM, socket.IPPROTO_UDP)] * 8
    + [(STREAM, 0), (DGRAM, 0), (DGRAM, UDPLITE), (RAW, 255), (RAW, socket.IPPROTO_UDP)]
    + [(DGRAM, socket.IPPROTO_ICMP), (STREAM, MPTCP)]
)
DATAGRAM_PROTOCOLS = [(DGRAM, socket.IPPROTO_UDP)] * 12 + PROTOCOLS[8:]
PORTS = [0, 1, 53, 80, 443, 1023, 1024, 8080, 65535]
ADDRESSES = {
    socket.AF_INET: ["0.0.0.0", "127.0.0.1", "10.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.2"],
    socket.AF_INET6: ["::", "::1", "fd00::1", "::ffff:10.0.0.1", "fe80::1", "ff02::1", "::2"],
}


@dataclass(frozen=True)
class Case:
    """One run, in values that print well; ``0`` and empty is the simplest of each."""

    program: str
    family: int
    type: int
    protocol: int
    address: bytes
    port: int
    source: bytes = b""
    netns: int = 0
    mark: int = 0
    priority: int = 0
    verdict: int = 1
    new_address: bytes = b""
    new_port: int = -1
    new_source: bytes = b""
    error: int = 0
    remember: int = 0
    remembered: int = 0

    def simpler(self) -> Iterator[Case]:
        """Yield this case with one value fewer, for every value that it can do without."""
        for field in fields(self)[6:]:
            if getattr(self, field.name) != field.default:
                plain: dict[str, Any] = {field.name: field.default}
                yield replace(self, **plain)
        if self.port != 80:
            yield replace(self, port=80)


def _address(chance: random.Random, family: int) -> bytes:
    if chance.random() < 0.4:
        return socket.inet_pton(family, chance.choice(ADDRESSES[socket.AddressFamily(family)]))
    if family == socket.AF_INET6 and chance.random() < 0.3:
        return bytes(10) + b"\xff\xff" + chance.randbytes(4)
    return chance.randbytes(4 if family == socket.AF_INET else 16)


def make_case(program: bpfunit.SockAddrProgram, seed: int) -> Case:
    """Return the case of a seed for a program of the oracle."""
    chance = random.Random(program.attach_type << 32 | seed)
    hook = program.hook
    family = hook.family
    protocol = chance.choice(DATAGRAM_PROTOCOLS if hook.datagram else PROTOCOLS)
    if family == socket.AF_INET and hook.call in ("connect", "sendmsg") and chance.random() < 0.2:
        family = socket.AF_INET6  # a dual-stack socket that talks IPv4
    maybe = chance.random
    changes_errno = hook.call in ("connect", "bind", "sendmsg")
    return Case(
        program=program.name,
        family=family,
        type=int(protocol[0]),
        protocol=int(protocol[1]),
        address=_address(chance, hook.family),
        port=chance.choice(PORTS) if maybe() < 0.5 else chance.randrange(65536),
        source=_address(chance, hook.family) if hook.has_source and maybe() < 0.5 else b"",
        netns=chance.randrange(3),
        mark=chance.choice([0, 0, 1, 0xFFFFFFFF]),
        priority=chance.choice([0, 0, 1, 6]),
        verdict=chance.choice([1, 1, 0, 2, 3]) if changes_errno else 1,
        new_address=_address(chance, hook.family) if maybe() < 0.5 else b"",
        new_port=chance.choice(PORTS) if maybe() < 0.5 else -1,
        new_source=_address(chance, hook.family) if hook.has_source and maybe() < 0.4 else b"",
        error=chance.choice([1, 13, 111, 4095]) if changes_errno and maybe() < 0.2 else 0,
        remember=chance.choice([0, 1, 7]),
        remembered=chance.choice([0, 0, 5]),
    )


def make_socket(case: Case, namespaces: Sequence[NetworkNamespace]) -> socket.socket:
    """Make the socket of a case; namespace 0 is the thread's own, the others are those given."""
    with ExitStack() as stack:
        if case.netns:
            stack.enter_context(namespaces[case.netns - 1].entered())
        made = socket.socket(case.family, case.type, case.protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("=I", case.mark))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, case.priority)
    except BaseException:
        made.close()
        raise
    return made


@dataclass(frozen=True)
class Answer:
    """What one engine made of a case: the outcome and all that the program saw, or an error."""

    outcome: RawOutcome | None
    seen: bytes = b""
    storage: bytes | None = None
    error: Exception | None = None


class Bench:
    """One program of the oracle, with both engines around it.

    A context manager: the program stays attached within the block, since it takes the kernel longer
    to attach it than to run it.
    """

    def __init__(
        self, oracle: bpfunit.Object, name: str, namespaces: Sequence[NetworkNamespace]
    ) -> None:
        self.program = oracle.programs[name]
        self._maps, self._namespaces = oracle.maps, namespaces
        self._stack = ExitStack()
        crafted = engines.get("testrun")
        self._run = {"testrun": lambda request: crafted.run(self.program.ref, request)}

    def __enter__(self) -> Bench:
        real = engines.get("live")
        assert isinstance(real, LiveEngine)
        self._run["live"] = self._stack.enter_context(real.prepared(self.program.ref))
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def context(self, case: Case) -> bytes:
        """Return the context of a case."""
        crafted = BpfSockAddr()
        v4 = self.program.hook.family == socket.AF_INET
        raw = struct.pack("=I", int(self.program.hook.family))
        raw += case.address.ljust(4, b"\0") + bytes(16) if v4 else bytes(4) + case.address
        raw += struct.pack("!H", case.port) + bytes(2)
        raw += struct.pack("=III", case.family, case.type, case.protocol)
        source = case.source or bytes(4 if v4 else 16)
        raw += source + bytes(16) if v4 else bytes(4) + source
        return raw.ljust(len(bytes(crafted)), b"\0")

    def ask(self, case: Case) -> tuple[Answer, Answer] | None:
        """Run a case by real call and by test run, on one socket; None where none can be made."""
        program, maps = self.program, self._maps
        try:
            sock = make_socket(case, self._namespaces)
        except OSError:
            return None
        with sock:
            context = self.context(case)
            # as bytes, like all of this: most of the time would go into typed records
            maps.plans.update_raw(_FIRST, _plan(case))
            call = program.hook.call
            if call == "sendmsg" and case.type != STREAM:
                # sendmsg(2) binds an unbound socket before its hook, so only bound ones are real
                sock.bind(("", 0))
            crafted = Crafted(program.attach_type, words_of(context))
            try:
                with _prepared(call, crafted, sock):
                    answers = [
                        self._answer(engine, Request(context, sock), case)
                        for engine in ("live", "testrun")
                    ]
            except NotApplicableError as error:
                real = Answer(None, error=error)
                return real, self._answer("testrun", Request(context, sock), case)
            return answers[0], answers[1]

    def _answer(self, engine: str, request: Request, case: Case) -> Answer:
        maps = self._maps
        maps.sightings.update_raw(_FIRST, bytes(maps.sightings.value_size))
        if case.remembered:
            maps.memory[request.sock] = case.remembered
        elif maps.memory.lookup(request.sock) is not None:
            del maps.memory[request.sock]
        fresh = self.program.hook.call in ("connect", "bind", "sendmsg", "recvmsg")
        try:
            outcome = self._run[engine](request._replace(fresh=fresh))
        except (SyscallError, NotApplicableError) as error:
            return Answer(None, error=error)
        return Answer(outcome, maps.sightings.lookup(0), maps.memory.lookup(request.sock))


@contextmanager
def _bound(crafted: Crafted, sock: socket.socket) -> Iterator[None]:
    arrange.bound(crafted, sock, ours=True)
    yield


def _prepared(call: str, crafted: Crafted, sock: socket.socket) -> AbstractContextManager[None]:
    """Have the socket as the hook of a name finds it, for both engines alike."""
    if call == "getpeername":
        return arrange.connected(crafted, sock, ours=True)
    return _bound(crafted, sock) if call == "getsockname" else nullcontext()


def _plan(case: Case) -> bytes:
    """Return ``struct plan`` of the oracle."""
    return struct.pack(
        "=II16sIII16sII",
        case.verdict,
        bool(case.new_address),
        case.new_address,
        case.new_port >= 0,
        socket.htons(max(case.new_port, 0)),
        bool(case.new_source),
        case.new_source,
        case.error,
        case.remember,
    )


class Tally:
    """What became of the cases of one program.

    Attributes:
        compared: both engines ran the case, and agreed.
        refused: neither did: the module refused it, and no real call leads there.
        crafted_only: the module ran it, and no real call does; docs/engines.md lists which.
    """

    def __init__(self) -> None:
        self.compared = self.refused = self.crafted_only = 0

    def judge(self, case: Case, answers: tuple[Answer, Answer]) -> str:
        """Count a case's pair of answers; return what differs, "" for nothing."""
        real, crafted = answers
        if real.outcome and crafted.outcome:
            self.compared += 1
            return _unequal(real, crafted)
        if real.outcome:
            return f"testrun refuses what a real call does: {crafted.error}"
        if crafted.outcome is None:
            self.refused += 1
            return ""
        self.crafted_only += 1
        if "runs no such hook" in str(real.error):
            return f"testrun runs a hook that the kernel has not: {real.error}"
        if not _crafted_alone(case):
            return f"testrun runs what is not listed as crafted alone: {real.error}"
        return ""


def _crafted_alone(case: Case) -> bool:
    """Whether docs/engines.md lists this among what the module runs and the engine live cannot.

    This list is there to be complete: a case beyond it is a defect of the module or of the engine.
    """
    address = ipaddress.ip_address(case.address)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    to = mapped or address
    to_many = to.is_multicast or str(to) == "255.255.255.255"
    match case.program[:-1]:
        case "sendmsg":
            return case.port == 0 or mapped is not None
        case "recvmsg":
            return to.is_unspecified if to.version == 4 else to.is_multicast
        case "getpeername":
            return case.port == 0 or to.is_unspecified or to_many or case.protocol == MPTCP
        case "getsockname":
            return case.type == RAW or (to_many and address.version == 6)
    return False


def _unequal(real: Answer, crafted: Answer) -> str:
    assert real.outcome is not None
    assert crafted.outcome is not None
    pairs = [
        (n, getattr(real.outcome, n), getattr(crafted.outcome, n)) for n in ("retval", "errno")
    ]
    # the socket pointer behind the addresses is the caller's descriptor, not the hook's
    pairs.append(("context", words_of(real.outcome.ctx), words_of(crafted.outcome.ctx)))
    pairs.append(("storage", real.storage, crafted.storage))
    pairs.append(
        ("what the program saw (struct seen)", real.seen.hex(" ", 4), crafted.seen.hex(" ", 4))
    )
    found = [f"{n}: connect {a!r}, testrun {b!r}" for n, a, b in pairs if a != b]
    return "\n".join(found)


def simplest(bench: Bench, case: Case) -> Case:
    """Return the simplest case near this one that still differs."""
    for candidate in case.simpler():
        answers = bench.ask(candidate)
        if answers and Tally().judge(candidate, answers):
            return simplest(bench, candidate)
    return case
