"""Hostile requests of every type of the module but socket addresses, which fuzz/ is for.

Short by default; ``BPFUNIT_FUZZ_TYPES=100000 BPFUNIT_FUZZ_SEED=7 pytest --kernel 6.12 …`` is long,
and ``--guest-cpus 2`` has two threads in the kernel at a time. Sockets are closed and replaced
meanwhile.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from bpfunit._sys import bpf, sockets
from bpfunit._sys.uapi import MapType, ProgType
from bpfunit.errors import SyscallError
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun, rawtcp
from . import test_module_device as device_type
from . import test_module_reuseport as reuseport
from . import test_module_sk_msg as sk_msg
from . import test_module_sk_skb as sk_skb
from . import test_module_sock as sock_type
from . import test_module_sock_ops as sock_ops
from . import test_module_sockopt as sockopt
from . import test_module_sysctl as sysctl
from . import test_module_tracing as tracing
from .rawrun import Descriptor, TypedProgram
from .rawtcp import SockMap, tcp_pair
from .test_module_fuzz import SEED, SPLAT, TAINTED_BY_A_SPLAT, State, kernel_log, settle

pytestmark = pytest.mark.guest

REQUESTS = int(os.environ.get("BPFUNIT_FUZZ_TYPES", "2000"))
THREADS = min(os.cpu_count() or 1, 4)
Make = Callable[[random.Random], tuple[TypedProgram, bytes | None, bytes | None]]
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


def requests_of(seed: str, make: Make) -> dict[str, int]:
    """Make requests by chance and return how many ran, and how many were refused by which errno.

    Every processor of the guest makes its share.
    """
    shares = [f"{seed} {n}" if n else seed for n in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        counts = list(pool.map(lambda share: share_of_requests(share, make), shares))
    return {
        name: sum(c.get(name, 0) for c in counts) for name in sorted({n for c in counts for n in c})
    }


def share_of_requests(seed: str, make: Make) -> dict[str, int]:
    chance = random.Random(f"{SEED} {seed}")
    counted: dict[str, int] = {}
    for _ in range(REQUESTS // THREADS):
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


@contextmanager
def churning(pairs: Sequence[tuple[socket.socket, socket.socket]]) -> Iterator[None]:
    """Shut, disconnect and replace TCP connections under their descriptors within the block."""
    stop = threading.Event()
    unspec = struct.pack("=H14x", socket.AF_UNSPEC)
    at_once = struct.pack("=ii", 1, 0)  # what is closed goes without a wait

    def churn() -> None:
        chance = random.Random(f"{SEED} churn")
        while not stop.wait(0.002):
            pair, what = chance.choice(pairs), chance.random()
            with suppress(OSError):
                if what < 0.1:
                    chance.choice(pair).shutdown(chance.choice((socket.SHUT_RD, socket.SHUT_WR)))
                elif what < 0.2:
                    sockets.connect(chance.choice(pair).fileno(), unspec)
                else:
                    with tcp_pair(pair[0].family) as made:
                        for new, old in zip(made, pair, strict=True):
                            new.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                            os.dup2(new.fileno(), old.fileno(), inheritable=False)

    churner = threading.Thread(target=churn)
    churner.start()
    try:
        yield
    finally:
        stop.set()
        churner.join()


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


def test_sk_msg_under_hostile_hands(healthy: None) -> None:
    with ExitStack() as stack:
        pairs = [
            stack.enter_context(tcp_pair(family))
            for family in (socket.AF_INET, socket.AF_INET6, socket.AF_INET)
        ]
        socks = stack.enter_context(SockMap())
        socks.put(0, pairs[0][0])
        socks.put(1, pairs[1][1])
        wrong = stack.enter_context(rawtcp.no_tcp_connections())
        fds = [one.fileno() for pair in pairs for one in pair] * 8
        fds += [fd for fd, _ in wrong.values()]
        lengths = (0, 1, 7, 4096, 65535, -1)
        programs = [
            stack.enter_context(sk_msg.Program(code))
            for code in (
                sk_msg.ACCEPT,
                [asm.mov_imm(0, 0), asm.exit_()],
                *([*sk_msg.call(sk_msg.PULL, 0, n, 0), *sk_msg.ACCEPT] for n in lengths),
                *([*sk_msg.call(sk_msg.PUSH, n, 9, 0), *sk_msg.ACCEPT] for n in lengths),
                *([*sk_msg.call(sk_msg.PUSH, 1, n, 0), *sk_msg.ACCEPT] for n in lengths),
                *([*sk_msg.call(sk_msg.POP, n, 3, 0), *sk_msg.ACCEPT] for n in lengths),
                *([*sk_msg.call(sk_msg.POP, 1, n, 0), *sk_msg.ACCEPT] for n in lengths),
                *([*sk_msg.call(sk_msg.APPLY, n), *sk_msg.ACCEPT] for n in lengths),
                *([*sk_msg.call(sk_msg.CORK, n), *sk_msg.ACCEPT] for n in lengths),
                *(redirection(socks, key, flags) for key in (0, 1, 7) for flags in (0, 1, 2)),
            )
        ]

        def make(chance: random.Random) -> tuple[TypedProgram, bytes | None, bytes | None]:
            size = chance.choice((1, 5, 100, 1460, 4096, 20000, 65536))
            fragments: list[int] = []
            left = size
            while left and len(fragments) < chance.choice((0, 1, 2, 16)):
                fragments.append(chance.choice((left, chance.randrange(left) + 1)))
                left -= fragments[-1]
            if left and fragments:
                fragments[-1] += left
            header = sk_msg.message(
                b"", fragments, sock=chance.choice(fds) & 0xFFFFFFFF, flags=chance.choice((0, 1))
            )
            if chance.random() < 0.3:
                header = mutated(chance, header)
            data = header + bytes(size if chance.random() < 0.95 else chance.choice((0, 1 << 17)))
            if chance.random() < 0.03:
                data = data[: chance.randrange(len(header) + 1)]
            return chance.choice(programs), None, data

        with churning(pairs):
            counted = requests_of("sk_msg", make)
    print(counted)
    assert counted["ran"] + counted["28"] > REQUESTS // 10
    assert set(counted) >= {"ran", "9", "22", "28", "97", "107"}


def redirection(socks: SockMap, key: int, flags: int) -> list[Insn]:
    return [
        asm.mov_reg(1, 6),
        *rawrun.load_map(2, socks.fd),
        *(asm.mov_imm(3, key), asm.mov_imm(4, flags), rawrun.call(sk_msg.REDIRECT_MAP)),
        asm.exit_(),
    ]


OPS_OF_A_CONNECTION = (
    *(sock_ops.ACTIVE_ESTABLISHED, sock_ops.PASSIVE_ESTABLISHED, sock_ops.OPTION_LEN),
    *(sock_ops.TIMEOUT_INIT, sock_ops.BASE_RTT, sock_ops.RTO, sock_ops.STATE, sock_ops.RTT),
    *(sock_ops.PARSE, sock_ops.WRITE_OPTION),
)
ARGS = {
    sock_ops.RTO: 3,
    sock_ops.RETRANS: 3,
    sock_ops.STATE: 2,
    sock_ops.RTT: 2,
    sock_ops.OPTION_LEN: 1,
    sock_ops.WRITE_OPTION: 1,
}


def test_sock_ops_under_hostile_hands(healthy: None) -> None:
    with ExitStack() as stack:
        pairs = [
            stack.enter_context(tcp_pair(family))
            for family in (socket.AF_INET, socket.AF_INET6, socket.AF_INET)
        ]
        others = [
            stack.enter_context(socket.socket(family))
            for family in (socket.AF_INET, socket.AF_INET6)
        ]
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        fds = [one.fileno() for pair in pairs for one in pair] * 8
        fds += [one.fileno() for one in (*others, listener)] * 4
        wrong = stack.enter_context(rawtcp.no_tcp_connections())
        fds += [fd for fd, _ in wrong.values()]
        cells = stack.enter_context(rawrun.Cells())
        option = [asm.store_imm(8, 10, -16, 0x0403FD), asm.store_imm(8, 10, -8, 0)]
        bodies = [
            [],
            sock_ops.look(cells, *range(0, 92, 4)),
            *(with_numbers(sock_ops.CB_FLAGS_SET, n) for n in (0, 1, 0x7F, 0x80, -1)),
            *(with_numbers(sock_ops.RESERVE_OPTION, n, 0) for n in (0, 4, 40, 64)),
            *(
                [
                    *(*option, asm.mov_reg(1, 6), asm.mov_reg(2, 10), asm.alu_imm(asm.ADD, 2, -16)),
                    *(asm.mov_imm(3, 16), asm.mov_imm(4, flags), rawrun.call(helper)),
                ]
                for helper in (sock_ops.LOAD_OPTION, sock_ops.STORE_OPTION)
                for flags in (0, 1)
            ),
            *(
                [
                    *(*option, asm.mov_reg(1, 6), asm.mov_imm(2, level), asm.mov_imm(3, name)),
                    *(asm.mov_reg(4, 10), asm.alu_imm(asm.ADD, 4, -16), asm.mov_imm(5, 4)),
                    rawrun.call(sock_ops.SETSOCKOPT),
                ]
                for level, name in ((1, 8), (1, 12), (6, 13), (6, 1002), (6, 31), (0, 1))
            ),
        ]
        programs = [
            stack.enter_context(sock_ops.Program([*body, *sockopt.returning(value)]))
            for body in bodies
            for value in (1, 0)
        ]

        def make(chance: random.Random) -> tuple[TypedProgram, bytes | None, bytes | None]:
            op = chance.choice((*range(17), *OPS_OF_A_CONNECTION * 3))
            asks_for_room = op in (sock_ops.OPTION_LEN, sock_ops.WRITE_OPTION)
            room = chance.choice((4, 8, 40)) if asks_for_room else 0
            packet = b""
            if op in (sock_ops.PARSE, sock_ops.WRITE_OPTION) or (
                op in OPS_OF_A_CONNECTION[:3] and chance.random() < 0.5
            ):
                options = bytes((253, 4, 1, 2)) * max(room // 4, chance.choice((0, 1, 10)))
                packet = sock_ops.tcp_header(options, chance.choice((2, 16, 18)), bytes(9))
            args = [chance.choice((0, 1, 2, 4, 7, *WORDS[-3:])) for _ in range(ARGS.get(op, 0))]
            if asks_for_room and not packet:
                args = [1]  # BPF_WRITE_HDR_TCP_CURRENT_MSS
            if op == sock_ops.STATE:
                args = [sock_ops.ESTABLISHED, chance.choice((4, 7, 8, 31, 32))]
            data = sock_ops.request(
                op,
                chance.choice(fds) & 0xFFFFFFFF,
                args,
                cb_flags=chance.choice((None, None, 0, 1, 0x7F)),
                room=room,
            )
            if chance.random() < 0.3:
                data = mutated(chance, data)
            if chance.random() < 0.1:
                packet = chance.choice((packet[:19], bytes(20), chance.randbytes(80), bytes(5000)))
            if chance.random() < 0.03:
                data = data[: chance.randrange(len(data) + 1)]
            return chance.choice(programs), None, data + packet

        with churning(pairs):
            counted = requests_of("sock_ops", make)
    print(counted)
    assert counted["ran"] + counted["28"] > REQUESTS // 10
    assert set(counted) >= {"ran", "9", "22", "97"}


def with_numbers(helper: int, *numbers: int) -> list[Insn]:
    """Call a helper on the context with numbers as arguments."""
    loads = [asm.mov_imm(2 + n, value) for n, value in enumerate(numbers)]
    return [asm.mov_reg(1, 6), *loads, rawrun.call(helper)]


def test_sockopt_under_hostile_hands(healthy: None) -> None:
    with ExitStack() as stack:
        fds = wrong_and_right(stack)
        pairs = [stack.enter_context(tcp_pair(f)) for f in (socket.AF_INET, socket.AF_INET6)]
        fds += [one.fileno() for pair in pairs for one in pair] * 8
        cells = stack.enter_context(rawrun.Cells())
        optlens = (-(1 << 31), -1, 0, 1, 4, 4096, 4097, (1 << 31) - 1)
        set_bodies: list[list[Insn]] = [[], sockopt.store_word(7), sockopt.look(cells, get=False)]
        set_bodies += [sockopt.set_field(sockopt.OPTLEN, n) for n in optlens]
        set_bodies += [sockopt.set_field(sockopt.LEVEL, n) for n in (0, 6, -1)]
        get_bodies: list[list[Insn]] = [[], sockopt.store_word(7), sockopt.look(cells, get=True)]
        get_bodies += [sockopt.set_field(sockopt.OPTLEN, n) for n in optlens]
        get_bodies += [sockopt.set_field(sockopt.RETVAL, 0)]
        programs = [
            (
                stack.enter_context(
                    sockopt.Program([*body, *sockopt.returning(value)], attach_type)
                ),
                attach_type == sockopt.GET,
            )
            for attach_type, bodies in ((sockopt.SET, set_bodies), (sockopt.GET, get_bodies))
            for body in bodies
            for value in (0, 1)
        ]

        def make(chance: random.Random) -> tuple[TypedProgram, bytes | None, bytes | None]:
            options = ((1, 12), (1, 8), (6, 1), (6, 13), (0, 1), (41, 26), (6, 35), (-1, -1))
            size = chance.choice((0, 1, 4, 4, 4, 16, 4096, 4097, 9000))
            program, is_get = chance.choice(programs)
            room = retval = 0
            if is_get:
                room, retval = chance.choice((size, 4096)), chance.choice((0, 0, -1, -92))
                size = 0 if retval else size
            header = sockopt.request(
                b"", chance.choice(options), room, retval, sock=chance.choice(fds) & 0xFFFFFFFF
            )
            if chance.random() < 0.3:
                header = mutated(chance, header)
            data = header + bytes(size)
            if chance.random() < 0.03:
                data = data[: chance.randrange(len(header) + 1)]
            return program, None, data

        with churning(pairs):
            counted = requests_of("sockopt", make)
    print(counted)
    assert counted["ran"] + counted["28"] > REQUESTS // 10
    assert set(counted) >= {"ran", "9", "22", "28", "88"}


def test_device_under_hostile_hands(healthy: None) -> None:
    with ExitStack() as stack:
        cells = stack.enter_context(rawrun.Cells())
        programs = [
            stack.enter_context(device_type.load(code))
            for code in (
                rawrun.ALLOW,
                sockopt.returning(0),
                rawrun.record(cells, [0, 4, 8]),
            )
        ]

        def make(chance: random.Random) -> tuple[TypedProgram, bytes | None, bytes | None]:
            ctx = device_type.device(*chance.choice(device_type.POSSIBLE))
            if chance.random() < 0.5:
                numbers = (0, 1, 8, 255, 4095, 4096, (1 << 20) - 1, 1 << 20, (1 << 32) - 1)
                ctx = device_type.device(
                    chance.choice((0, 1, 2, 2, 2, 3, 255)),
                    chance.choice((0, 1, 2, 4, 6, 7, 8, 0x8000)),
                    chance.choice(numbers),
                    chance.choice(numbers),
                )
            if chance.random() < 0.1:
                ctx += bytes(chance.choice((1, 8, 4084, 5000)))
            if chance.random() < 0.1:
                ctx = ctx[: chance.randrange(len(ctx))] + b"\1" * chance.choice((0, 1))
            data = bytes(4) if chance.random() < 0.03 else None
            return chance.choice(programs), ctx if chance.random() < 0.97 else None, data

        counted = requests_of("device", make)
    print(counted)
    assert counted["ran"] > REQUESTS // 10
    assert set(counted) >= {"ran", "7", "22"}


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
        client = stack.enter_context(socket.create_connection(reuseport.where(listening[0])))
        server = stack.enter_context(reuseport.accepted(listening)[1])
        fds += [server.fileno(), client.fileno()] * 4
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
        with suppress(SyscallError):  # before 5.14 no such program loads
            programs += [
                stack.enter_context(reuseport.Program(code, reuseport.MIGRATING))
                for code in (reuseport.has_migrating(), reuseport.select(socks))
            ]

        def make(chance: random.Random) -> tuple[TypedProgram, bytes | None, bytes | None]:
            sock, packet = chance.choice(good)
            fd = sock.fileno() if chance.random() < 0.7 else chance.choice(fds)
            more = {"sock": fd & 0xFFFFFFFF}
            if chance.random() < 0.2:
                more.update(flags=reuseport.MIGRATE, migrating=chance.choice(fds) & 0xFFFFFFFF)
                packet = chance.choice((packet, b""))
            header = reuseport.request(packet, hash=chance.choice(WORDS), **more)[:32]
            if packet and chance.random() < 0.3:
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
