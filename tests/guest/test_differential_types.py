"""Runs by chance, each held against the same program attached and the ordinary call.

Some hundred for each type; ``BPFUNIT_CASES=12000 pytest --kernel 6.12 …`` makes 3,000.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import test_module_reuseport as reuseport
from . import test_module_sock as sock_type
from . import test_module_sockopt as sockopt
from . import test_module_sysctl as sysctl
from .rawrun import ALLOW, Cells, TypedProgram

pytestmark = pytest.mark.guest

CASES = max(24, int(os.environ.get("BPFUNIT_CASES", "1200")) // 4)
SEED = os.environ.get("BPFUNIT_FUZZ_SEED", "1")
DENY = [asm.mov_imm(0, 0), asm.exit_()]


def errno_of(call: object, *args: object) -> int:
    """What a call ends with: 0 or a negative errno."""
    try:
        call(*args)  # type: ignore[operator]
    except OSError as error:
        return -(error.errno or 0)
    return 0


# ---- sysctl ----


def sysctl_programs(stack: ExitStack, cells: Cells) -> list[sysctl.Program]:
    look = sysctl.look(cells)
    bodies = [
        ALLOW,
        DENY,
        *([*sysctl.set_new(cells, size), *ALLOW] for size in (1, 5, 17)),
        [*sysctl.set_new(cells, 9), *DENY],
        *([*sysctl.set_position(at), *ALLOW] for at in (0, 1, 70)),
    ]
    return [stack.enter_context(sysctl.Program([*look, *body])) for body in bodies]


def test_sysctl() -> None:
    """What is in the file after a write of the attached program is what the run said."""
    chance = random.Random(f"{SEED} sysctl")
    path = Path("/proc/sys", sysctl.DOMAIN)
    with sysctl.cells_of() as cells, ExitStack() as stack:
        programs = sysctl_programs(stack, cells)
        cgroup = stack.enter_context(Cgroup())
        stack.callback(path.write_bytes, path.read_bytes())
        for case in range(CASES):
            program = chance.choice(programs)
            before = bytes(chance.choice(b"abc.-") for _ in range(chance.randrange(1, 63))) + b"\n"
            ours = bytes(chance.choice(b"xyz\n ") for _ in range(24))
            new = None
            if chance.random() < 0.7:
                new = chance.randbytes(chance.choice((0, 1, 2, 30, 63, 64, 65, 300, 4096)))
            position = chance.choice((0, 0, 0, 1, 40, 5000))
            path.write_bytes(before)
            current = path.read_bytes()
            cells.write(bytes(sysctl.SET_TO) + ours)
            with cgroup.attached(AttachType.CGROUP_SYSCTL, program.fd), cgroup.entered():
                real = sysctl.real_call(sysctl.DOMAIN, new, position)
            seen, left = cells.read(), path.read_bytes()
            cells.write(bytes(sysctl.SET_TO) + ours)
            run = program.ask(sysctl.DOMAIN, current, new, position)
            assert cells.read() == seen, case
            path.write_bytes(before)
            said: bytes | int = run.err
            if not run.err:  # what the kernel makes of it, without a program
                value = run.new if run.updated else new
                said = sysctl.real_call(sysctl.DOMAIN, value, run.position)
            assert (real, left) == (said, path.read_bytes()), (case, new, position, run)


# ---- sockopt ----

OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_PRIORITY),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    (socket.IPPROTO_IP, socket.IP_TTL),
    (socket.SOL_SOCKET, 4711),
]


def states(sock: socket.socket) -> list[int]:
    return [sock.getsockopt(*option) for option in OPTIONS[:4]]


def sockopt_programs(
    stack: ExitStack, chance: random.Random, cells: Cells, *, get: bool
) -> list[sockopt.Program]:
    attach_type = sockopt.GET if get else sockopt.SET
    made = []
    for _ in range(24):
        code: list[Insn] = sockopt.look(cells, get=get)
        if chance.random() < 0.5:
            code += sockopt.store_word(chance.choice((0, 1, 2, 64, 1000)))
        if chance.random() < 0.6:
            code += sockopt.set_field(sockopt.OPTLEN, chance.choice((-2, -1, 0, 1, 4, 16, 17, 40)))
        if not get and chance.random() < 0.2:
            level, name = chance.choice(OPTIONS)
            code += sockopt.set_field(sockopt.LEVEL, level)
            code += sockopt.set_field(sockopt.OPTNAME, name)
        if get and chance.random() < 0.2:
            code += sockopt.set_field(sockopt.RETVAL, 0)
        code += DENY if chance.random() < 0.15 else ALLOW
        made.append(stack.enter_context(sockopt.Program(code, attach_type)))
    return made


def test_setsockopt() -> None:
    """The socket has afterwards what the run said that the kernel sets."""
    chance = random.Random(f"{SEED} setsockopt")
    with Cells() as cells, ExitStack() as stack, Cgroup() as cgroup:
        programs = sockopt_programs(stack, chance, cells, get=False)
        for case in range(CASES):
            program, option = chance.choice(programs), chance.choice(OPTIONS)
            value = struct.pack("=I", chance.choice((0, 1, 5, 64, 255, 100000)))
            value += bytes(chance.choice((0, 0, 4, 12, 13, 200)))
            value = value[: chance.choice((0, 1, 3, 4, 4, 4, len(value)))]
            with socket.socket() as other:
                with cgroup.entered():
                    sock = socket.socket()
                with sock:
                    with cgroup.attached(sockopt.SET, program.fd):
                        real = sockopt.errno_of_set(sock, option, value)
                    seen = cells.read()
                    cells.clear()
                    run = program.ask(other, value, option)
                    assert cells.read() == seen, case
                    cells.clear()
                    said = run.err
                    if not said and run.action != sockopt.BYPASS:
                        kept = run.action == sockopt.KEEP
                        into = value if kept else run.data[: run.optlen]
                        said = sockopt.errno_of_set(other, (run.level, run.optname), into)
                    found = (real, states(sock))
                    assert found == (said, states(other)), (case, option, value, run)


def test_getsockopt() -> None:
    """The caller gets what the run said."""
    chance = random.Random(f"{SEED} getsockopt")
    with Cells() as cells, ExitStack() as stack, Cgroup() as cgroup:
        programs = sockopt_programs(stack, chance, cells, get=True)
        with cgroup.entered():
            sock = stack.enter_context(socket.socket())
        for case in range(CASES):
            program, option = chance.choice(programs), chance.choice(OPTIONS)
            room = chance.choice((1, 2, 4, 4, 4, 8, 16, 40, 100))
            kernel = sockopt.got(sock, option, room)
            with cgroup.attached(sockopt.GET, program.fd):
                real = sockopt.got(sock, option, room)
            seen = cells.read()
            cells.clear()
            value, failed = (kernel, 0) if isinstance(kernel, bytes) else (b"", kernel)
            run = program.ask(sock, value, option, room, failed)
            assert cells.read() == seen, case
            cells.clear()
            said: bytes | int = run.err or value
            if not run.err and run.action == sockopt.REPLACE:
                said = run.data[: run.optlen]
            if failed and not run.err and run.action == sockopt.KEEP:
                # the caller's buffer as it was, whatever that is
                assert isinstance(real, bytes), case
                said = real[:room].ljust(room, b"\0")
            assert real == said, (case, option, room, run)


# ---- sock ----


def by_words(cells: Cells, attach_type: int, chance: random.Random) -> list[Insn]:
    """Copy what can be read, and deny where some bits of a word are set."""
    words = sock_type.readable(attach_type)
    code = [asm.mov_reg(6, 1), *asm.load_map_value(7, cells.fd, 0)]
    for cell, offset in enumerate(words):
        code += [asm.load(4, 2, 6, offset), asm.store(4, 7, 4 * cell, 2)]
    if attach_type == sock_type.CREATE:
        for offset in (sock_type.MARK, sock_type.PRIORITY):
            if chance.random() < 0.7:
                code += [asm.mov_imm(2, chance.randrange(1 << 16)), asm.store(4, 6, offset, 2)]
    code += [asm.load(4, 2, 6, chance.choice(words)), asm.alu_imm(0x50, 2, chance.choice((1, 6)))]
    return [
        *code,
        asm.mov_imm(0, 1),
        asm.branch_imm(asm.JEQ, 2, 0, 1),
        asm.mov_imm(0, 0),
        asm.exit_(),
    ]


def sock_programs(
    stack: ExitStack, chance: random.Random, cells: Cells, attach_type: int
) -> list[TypedProgram]:
    return [
        stack.enter_context(sock_type.load(by_words(cells, attach_type, chance), attach_type))
        for _ in range(16)
    ]


def test_sock_create() -> None:
    """The new socket has what the run said, or there is none."""
    chance = random.Random(f"{SEED} create")
    endpoints = [e for n, e in sock_type.ENDPOINTS.items() if n[:3] in ("tcp", "raw")]
    endpoints += [e for n, e in sock_type.ENDPOINTS.items() if n in ("udp4", "udp6")]
    with Cells() as cells, ExitStack() as stack, Cgroup() as cgroup:
        programs = sock_programs(stack, chance, cells, sock_type.CREATE)
        for case in range(CASES):
            program, endpoint = chance.choice(programs), chance.choice(endpoints)
            real: tuple[int, ...] = ()
            with (
                cgroup.attached(program.attach_type, program.fd),
                cgroup.entered(),
                suppress(PermissionError),
                socket.socket(*endpoint) as sock,
            ):
                real = tuple(sock.getsockopt(socket.SOL_SOCKET, o) for o in (36, 12))
            seen = cells.read()
            cells.clear()
            with socket.socket(*endpoint) as sock:
                _, err, _, mark, priority = sock_type.ask(program, sock)
            assert cells.read() == seen, case
            cells.clear()
            said = () if err == -errno.EPERM else (mark, priority)
            assert real == said, (case, endpoint)


@pytest.mark.parametrize("attach_type", [sock_type.BIND4, sock_type.BIND6], ids=["4", "6"])
def test_post_bind(attach_type: int) -> None:
    """A real bind ends as the run on a socket that was bound said."""
    chance = random.Random(f"{SEED} bind {attach_type}")
    six = attach_type == sock_type.BIND6
    hosts = ["::1", "::", "::ffff:127.0.0.1"] if six else ["127.0.0.1", "0.0.0.0", "127.9.8.7"]
    with Cells() as cells, ExitStack() as stack, Cgroup() as cgroup:
        programs = sock_programs(stack, chance, cells, attach_type)
        for case in range(CASES):
            program = chance.choice(programs)
            family = socket.AF_INET6 if six else socket.AF_INET
            kind = chance.choice((socket.SOCK_STREAM, socket.SOCK_DGRAM))
            address = (chance.choice(hosts), chance.randrange(1024, 32000))
            with cgroup.entered():
                sock = socket.socket(family, kind)
            with sock, cgroup.attached(program.attach_type, program.fd):
                real = errno_of(sock.bind, address)
            seen = cells.read()
            cells.clear()
            with socket.socket(family, kind) as bound:
                bound.bind(address)
                err = sock_type.ask(program, bound)[1]
            assert cells.read() == seen, case
            cells.clear()
            assert real == err, (case, address)


# ---- reuseport ----


def test_reuseport() -> None:
    """A real datagram comes to the socket that the run selected, or to none."""
    chance = random.Random(f"{SEED} reuseport")
    with Cells() as cells, reuseport.Socks() as socks, ExitStack() as stack:
        members = stack.enter_context(reuseport.group(count=4))
        for number, member in enumerate(members):
            socks.put(number, member)
            member.setblocking(False)
        client = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        client.bind(("127.0.0.1", 0))
        look = reuseport.look(cells, 20)
        programs = [
            stack.enter_context(
                reuseport.Program([*look, *reuseport.select(socks, payload_at=at, verdict=verdict)])
            )
            for at in (None, 0, 8, 9, 100)
            for verdict in (1, 1, 0)
        ]
        for case in range(CASES):
            program = chance.choice(programs)
            program.attach(members[0])
            size = chance.choice((0, 1, 2, 90, 93, 1000, 3000))
            payload = bytes(chance.choice((0, 1, 2, 3, 3, 4, 77)) for _ in range(size))
            cells.clear()
            client.sendto(payload, reuseport.where(members[0]))
            got = []
            for number, member in enumerate(members):
                with suppress(BlockingIOError):
                    assert member.recv(4096) == payload
                    got.append(number)
            seen = cells.read()
            cells.clear()
            body = reuseport.packet(reuseport.where(client), reuseport.where(members[0]), payload)
            run = program.ask(chance.choice(members), body, hash=seen[4])
            assert cells.read() == seen, case
            if run.verdict == reuseport.HASH:
                assert len(got) == 1, case
            else:
                said = [n for n, member in enumerate(members) if reuseport.is_chosen(run, member)]
                assert got == said, (case, size, run)
