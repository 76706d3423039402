"""Hostile requests of the types that take their input by ``data_in``, or as it is: sk_skb, tracing.

Short by default; ``BPFUNIT_FUZZ_TYPES=100000 BPFUNIT_FUZZ_SEED=7 pytest --kernel 6.12 …`` is long.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from bpfunit._sys import bpf
from bpfunit._sys.uapi import MapType, ProgType
from bpfunit.errors import SyscallError
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun, rawtcp
from . import test_module_reuseport as reuseport
from . import test_module_sk_skb as sk_skb
from . import test_module_sock as sock_type
from . import test_module_sysctl as sysctl
from . import test_module_tracing as tracing
from .rawrun import Descriptor, TypedProgram
from .rawtcp import SockMap, tcp_pair
from .test_module_fuzz import SEED, SPLAT, TAINTED_BY_A_SPLAT, State, kernel_log, settle

pytestmark = pytest.mark.guest

REQUESTS = int(os.environ.get("BPFUNIT_FUZZ_TYPES", "2000"))
WORDS = (0, 1, 2, 3, 4, 7, 8, 63, 255, 256, 4095, 4096, 65535, 65536, 1 << 31, (1 << 32) - 1)
# pointers that lead nowhere, into the kernel's text, its stacks, its modules, and off the map
POINTERS = (
    *(0, 1, 4096, 1 << 46, 1 << 47, 1 << 63, (1 << 64) - 1, (1 << 64) - 8),
    *(0xFFFFFFFF81000000, 0xFFFFFFFF82000000, 0xFFFFC90000000000, 0xFFFF888000000000),
    *(0xFFFFFFFFC0000000, 0xFFFFFFFFFF600000),
)


@pytest.fixture
def healthy() -> Iterator[None]:
    """See that the kernel says nothing of a bug, and holds no more than before."""
    with rawtcp.no_tcp_connections():
        pass  # the modules of their families are loaded now
    before = State.now()
    with kernel_log() as said:
        yield
        splats = [line for line in said() if SPLAT.search(line)]
    assert splats == []
    tainted = int(Path("/proc/sys/kernel/tainted").read_text())
    assert not tainted & TAINTED_BY_A_SPLAT
    assert settle(before) == []


def requests_of(
    seed: str, make: Callable[[random.Random], tuple[TypedProgram, bytes | None, bytes | None]]
) -> dict[str, int]:
    """Make requests by chance and return how many ran, and how many were refused by which errno."""
    chance = random.Random(f"{SEED} {seed}")
    counted: dict[str, int] = {}
    for _ in range(REQUESTS):
        program, ctx, data = make(chance)
        fields = {}
        if chance.random() < 0.05:
            name = chance.choice(("flags", "cpu", "batch_size", "ctx_size_in", "data_size_in"))
            fields[name] = chance.choice(WORDS)
            if name.endswith("size_in"):  # longer than the buffer is another process's to try
                fields[name] = min(fields[name], len((ctx if name[0] == "c" else data) or b""))
        room = chance.choice((0, 0, 8, 256, 8192))
        try:
            program.request(
                ctx,
                data,
                ctx_room=room if ctx is not None else 0,
                data_room=chance.choice((0, 4, 40, 256, 1 << 17)),
                repeat=chance.choice((0, 1, 2, 50)),
                **fields,
            )
            outcome = "ran"
        except SyscallError as refused:
            outcome = str(refused.errno)
        counted[outcome] = counted.get(outcome, 0) + 1
    return counted


def mutated(chance: random.Random, header: bytes) -> bytes:
    """Change some words of a header."""
    raw = bytearray(header)
    while chance.random() < 0.3:
        struct.pack_into("=I", raw, 4 * chance.randrange(len(raw) // 4), chance.choice(WORDS))
    return bytes(raw)


def test_sk_skb_under_hostile_hands(healthy: None) -> None:
    with ExitStack() as stack:
        pairs = [stack.enter_context(tcp_pair(f)) for f in (socket.AF_INET, socket.AF_INET6)]
        socks = stack.enter_context(SockMap())
        socks.put(0, pairs[0][0])
        socks.put(1, pairs[1][1])
        wrong = stack.enter_context(rawtcp.no_tcp_connections())
        fds = [one.fileno() for pair in pairs for one in pair] * 8
        fds += [fd for fd, _ in wrong.values()]
        programs = [
            stack.enter_context(sk_skb.Program(code))
            for code in (
                sk_skb.ACCEPT,
                sk_skb.ALL,
                *([*sk_skb.call(sk_skb.PULL, n), *sk_skb.ACCEPT] for n in (0, 1, 100, 70000)),
                *(
                    [*sk_skb.call(sk_skb.CHANGE_TAIL, n, 0), *sk_skb.ACCEPT]
                    for n in (0, 1, 1000, 65535)
                ),
                *(
                    [*sk_skb.call(sk_skb.CHANGE_HEAD, n, 0), *sk_skb.redirect(socks, 1)]
                    for n in (1, 200, 9000)
                ),
                *(
                    [*sk_skb.call(sk_skb.ADJUST_ROOM, n, 0, 0), *sk_skb.redirect(socks, 0, 1)]
                    for n in (4, 100, -4)
                ),
                sk_skb.redirect(socks, 7, 3),
            )
        ]

        def make(chance: random.Random) -> tuple[TypedProgram, bytes | None, bytes | None]:
            size = chance.choice((0, 1, 5, 1460, 4096, 20000, 65536, 65537))
            header = sk_skb.request(
                b"",
                chance.choice((1, 2, 2, 2, 2)),
                chance.choice((0, 0, min(size, 7), size)),
                chance.choice(WORDS),
                sock=chance.choice(fds) & 0xFFFFFFFF,
            )
            data = mutated(chance, header) + bytes(size)
            if chance.random() < 0.03:
                data = data[: chance.randrange(len(header) + 1)]
            return chance.choice(programs), None, data

        counted = requests_of("sk_skb", make)
    print(counted)
    assert counted["ran"] + counted["28"] > REQUESTS // 10  # ENOSPC comes after the run
    assert set(counted) > {"ran", "22", "28", "97"}


def wrong_and_right(stack: ExitStack) -> list[int]:
    """Descriptors of sockets in every state, and of much that is none."""
    socks: list[socket.socket] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        socks += stack.enter_context(tcp_pair(family))
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            socks.append(stack.enter_context(socket.socket(family, kind)))
            socks += stack.enter_context(reuseport.group(family, kind, 2))
    wrong = stack.enter_context(rawtcp.no_tcp_connections())
    return [one.fileno() for one in socks] * 4 + [fd for fd, _ in wrong.values()]


def test_sock_under_hostile_hands(healthy: None) -> None:
    with ExitStack() as stack:
        fds = wrong_and_right(stack)
        bodies = [rawrun.ALLOW, sock_type.returning(0)]
        programs = [
            stack.enter_context(sock_type.load(body, hook))
            for hook in sock_type.HOOKS
            for body in bodies
        ]
        marks = [*sock_type.set_word(sock_type.MARK, 3), *sock_type.set_word(sock_type.PRIORITY, 1)]
        programs += [
            stack.enter_context(sock_type.load([*marks, *rawrun.ALLOW], hook))
            for hook in (sock_type.CREATE, sock_type.RELEASE)
        ]

        def make(chance: random.Random) -> tuple[TypedProgram, bytes | None, bytes | None]:
            data = mutated(chance, rawtcp.head(chance.choice(fds) & 0xFFFFFFFF))
            if chance.random() < 0.05:
                data += bytes(chance.choice((1, 64)))
            return chance.choice(programs), None, data

        counted = requests_of("sock", make)
    print(counted)
    assert counted["ran"] > REQUESTS // 10
    assert set(counted) >= {"ran", "9", "22", "97", "99", "106"}


def test_sysctl_under_hostile_hands(healthy: None) -> None:
    names = ("a/b", "kernel/domainname", "/", "a//b", "a/" * 16 + "b", "a/" + "b" * 254, "", "a/..")
    with ExitStack() as stack:
        cells = stack.enter_context(sysctl.cells_of(8192))
        programs = [
            stack.enter_context(sysctl.Program([*sysctl.look(cells, room), *body, *sysctl.ALLOW]))
            for room in (1, 5, 64)
            for body in (
                [],
                sysctl.set_new(cells, 1),
                sysctl.set_new(cells, 4095),
                sysctl.set_new(cells, 4096),
                sysctl.set_position(-1),
            )
        ]

        def make(chance: random.Random) -> tuple[TypedProgram, bytes | None, bytes | None]:
            sizes = (0, 1, 63, 4095, 4096, 4096, 4097)
            current, new = (chance.randbytes(chance.choice(sizes)) for _ in range(2))
            name = chance.choice(names[:2]) if chance.random() < 0.7 else chance.choice(names)
            given = new if chance.random() < 0.7 else None
            data = sysctl.request(name, current, given, chance.choice((0, 1, 1 << 40)))
            data = mutated(chance, data[:40]) + data[40:]
            if chance.random() < 0.05:
                data = data[: chance.randrange(len(data))]
            return chance.choice(programs), None, data

        counted = requests_of("sysctl", make)
    print(counted)
    assert counted["ran"] + counted["28"] > REQUESTS // 10
    assert set(counted) >= {"ran", "7", "22", "28"}


def test_sk_reuseport_under_hostile_hands(healthy: None) -> None:
    with ExitStack() as stack:
        fds = wrong_and_right(stack)
        udp = stack.enter_context(reuseport.group())
        six = stack.enter_context(reuseport.group(socket.AF_INET6))
        listening = stack.enter_context(reuseport.group(kind=socket.SOCK_STREAM))
        good = [
            (udp[0], reuseport.packet(("10.0.0.9", 5), reuseport.where(udp[0]), b"1234")),
            (six[0], reuseport.packet(("::9", 5), reuseport.where(six[0]), bytes(100))),
            (
                listening[0],
                reuseport.packet(
                    ("10.0.0.9", 5), reuseport.where(listening[0]), kind=socket.SOCK_STREAM
                ),
            ),
        ]
        cells = stack.enter_context(rawrun.Cells())
        socks = stack.enter_context(reuseport.Socks())
        socks.put(0, udp[1])
        socks.put(1, listening[1])
        look = [reuseport.look(cells, transport) for transport in (20, 40)]
        programs = [
            stack.enter_context(reuseport.Program([*before, *after]))
            for before in ([], *look)
            for after in (
                reuseport.PASS,
                reuseport.select(socks),
                reuseport.select(socks, payload_at=8),
                reuseport.select(socks, payload_at=65535),
            )
        ]

        def make(chance: random.Random) -> tuple[TypedProgram, bytes | None, bytes | None]:
            sock, packet = chance.choice(good)
            fd = sock.fileno() if chance.random() < 0.7 else chance.choice(fds)
            header = reuseport.request(packet, hash=chance.choice(WORDS), sock=fd & 0xFFFFFFFF)[:32]
            if chance.random() < 0.3:
                body = bytearray(packet)
                body[chance.randrange(len(body))] = chance.randrange(256)
                packet = bytes(body[: chance.randrange(len(body) + 1)])
            return chance.choice(programs), None, mutated(chance, header) + packet

        counted = requests_of("sk_reuseport", make)
    print(counted)
    assert counted["ran"] > REQUESTS // 10
    assert set(counted) >= {"ran", "22", "28", "91", "97", "99", "107"}


def stacks(flags: int) -> list[Insn]:
    """Ask for a stack, kernel's or user's, on the program's own."""
    return [
        asm.mov_reg(1, 6),
        asm.mov_reg(2, 10),
        asm.alu_imm(asm.ADD, 2, -256),
        asm.mov_imm(3, 256),
        asm.mov_imm(4, flags),
        rawrun.call(tracing.GET_STACK),
    ]


def reads(fetch: Sequence[Insn]) -> list[Insn]:
    """Read what a pointer of the context points to."""
    return [
        *fetch,
        asm.mov_reg(1, 10),
        asm.alu_imm(asm.ADD, 1, -64),
        asm.mov_imm(2, 64),
        rawrun.call(tracing.PROBE_READ_KERNEL),
    ]


@pytest.mark.parametrize("prog_type", [ProgType.KPROBE, ProgType.TRACEPOINT], ids=str)
def test_tracing_under_hostile_hands(healthy: None, prog_type: int) -> None:
    with ExitStack() as stack:
        out = stack.enter_context(
            Descriptor(bpf.map_create("out", MapType.PERF_EVENT_ARRAY, 4, 4, 4))
        )
        sample = [
            asm.mov_reg(1, 6),
            *rawrun.load_map(2, out.fd),
            asm.load_imm64(3, 0xFFFFFFFF)[0],
            Insn(0),
            asm.mov_reg(4, 10),
            asm.alu_imm(asm.ADD, 4, -8),
            asm.store_imm(8, 10, -8, 1),
            asm.mov_imm(5, 8),
            rawrun.call(tracing.PERF_EVENT_OUTPUT),
        ]
        last = 160 if prog_type == ProgType.KPROBE else 56
        pieces = [
            [],
            stacks(0),
            stacks(256),  # BPF_F_USER_STACK
            sample,
            reads([asm.load(8, 3, 6, 8)]),
            reads([asm.load(8, 3, 6, last)]),
            [*stacks(0), *stacks(256), *sample],
        ]
        programs = [
            stack.enter_context(
                TypedProgram([asm.mov_reg(6, 1), *piece, *tracing.RETURN_0], prog_type)
            )
            for piece in pieces
        ]

        def make(chance: random.Random) -> tuple[TypedProgram, bytes | None, bytes | None]:
            words = [chance.choice(POINTERS + WORDS) for _ in range(chance.choice((0, 8, 21, 22)))]
            words = [w + chance.choice((0, 0, 8, 1)) & (1 << 64) - 1 for w in words]
            if prog_type == ProgType.TRACEPOINT and words and chance.random() < 0.9:
                words[0] = 0
            if prog_type == ProgType.KPROBE and len(words) == 22 and chance.random() < 0.5:
                words[21] = 0  # past the end, where only zeroes may be
            if len(words) > 17 and chance.random() < 0.5:
                words[17] = chance.choice((0x10, 0x33, 0x23))  # cs of the kernel, of user space
            ctx = struct.pack(f"={len(words)}Q", *words)
            data = None
            if chance.random() < 0.3:
                data = mutated(chance, tracing.head(chance.choice(POINTERS)))
            return chance.choice(programs), ctx if chance.random() < 0.97 else None, data

        counted = requests_of(str(prog_type), make)
    print(counted)
    assert counted["ran"] > REQUESTS // 10
    assert set(counted) > {"ran", "22"}
