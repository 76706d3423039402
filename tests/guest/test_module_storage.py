"""Programs with cgroup storage: they have the value of the cgroup they are attached to (5.18)."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpfunit import features
from bpfunit._sys import bpf, uapi
from bpfunit._sys.cgroup import Cgroup
from bpfunit._sys.uapi import AttachType, Cmd, MapType, ProgType
from bpfunit.rewrite import insn as asm
from bpfunit.rewrite.insn import Insn

from . import rawrun, rawtcp, test_module_sockopt, test_module_sysctl
from .rawrun import Cells, Descriptor, TypedProgram

pytestmark = pytest.mark.guest

GET_LOCAL_STORAGE = 81  # enum bpf_func_id
CPUS = len(os.sched_getaffinity(0))
OLD = features.kernel_version() < (5, 18)
KINDS = [MapType.CGROUP_STORAGE, MapType.PERCPU_CGROUP_STORAGE]


class Values(Descriptor):
    """A map of one number for each cgroup that a program is attached to."""

    def __init__(self, map_type: int, key_size: int = 16) -> None:
        super().__init__(bpf.map_create("values", map_type, key_size, 8, 0))
        self._key_size = key_size
        self._count = CPUS if map_type == MapType.PERCPU_CGROUP_STORAGE else 1

    def _attr(self, cgroup: Cgroup, attach_type: int, value: Any) -> uapi.MapElemAttr:
        key = struct.pack("=QII", cgroup.path.stat().st_ino, attach_type, 0)[: self._key_size]
        self._kept = ctypes.create_string_buffer(key)
        return uapi.MapElemAttr(
            map_fd=self.fd, key=ctypes.addressof(self._kept), value=ctypes.addressof(value)
        )

    def get(self, cgroup: Cgroup, attach_type: int) -> int:
        """The number, of all processors together."""
        value = ctypes.create_string_buffer(8 * self._count)
        attr = self._attr(cgroup, attach_type, value)
        bpf.call_checked("read value", Cmd.MAP_LOOKUP_ELEM, attr)
        return sum(struct.unpack(f"={self._count}Q", value.raw))

    def put(self, cgroup: Cgroup, attach_type: int, number: int) -> None:
        """Set the number, on every processor."""
        value = ctypes.create_string_buffer(struct.pack("=Q", number) * self._count)
        attr = self._attr(cgroup, attach_type, value)
        bpf.call_checked("write value", Cmd.MAP_UPDATE_ELEM, attr)


def counting(values: Values, cells: Cells) -> list[Insn]:
    """Add 1 to the cgroup's number, and copy it into the first cell."""
    return [
        *rawrun.load_map(1, values.fd),
        asm.mov_imm(2, 0),
        rawrun.call(GET_LOCAL_STORAGE),
        asm.load(8, 1, 0, 0),
        asm.alu_imm(asm.ADD, 1, 1),
        asm.store(8, 0, 0, 1),
        asm.mov_reg(8, 1),
        *asm.load_map_value(7, cells.fd, 0),
        asm.store(4, 7, 0, 8),
        *rawrun.ALLOW,
    ]


Run = Callable[[TypedProgram, socket.socket, int], None]


def _context(context: bytes) -> Run:
    return lambda program, sock, repeat: void(program.request(context, repeat=repeat))


def _data(make: Callable[[int], bytes]) -> Run:
    return lambda program, sock, repeat: void(
        program.request(data=make(sock.fileno()), ctx_room=0, data_room=8192, repeat=repeat)
    )


def void(_answer: object) -> None:
    """Nothing of the answer matters here."""


CONNECT4 = bytes(rawrun.BpfSockAddr(user_family=2, family=2, type=1))
ESTABLISHED = 4  # BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
TYPES: dict[str, tuple[int, int, Run]] = {
    "connect4": (ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT, _context(CONNECT4)),
    "device": (
        ProgType.CGROUP_DEVICE,
        AttachType.CGROUP_DEVICE,
        _context(struct.pack("=3I", 2 << 16 | 2, 1, 3)),
    ),
    "sock_create": (
        ProgType.CGROUP_SOCK,
        AttachType.CGROUP_INET_SOCK_CREATE,
        _data(rawtcp.head),
    ),
    "setsockopt": (
        ProgType.CGROUP_SOCKOPT,
        AttachType.CGROUP_SETSOCKOPT,
        _data(lambda fd: test_module_sockopt.request(b"1234", sock=fd)),
    ),
    "sysctl": (
        ProgType.CGROUP_SYSCTL,
        AttachType.CGROUP_SYSCTL,
        _data(lambda fd: test_module_sysctl.request()),
    ),
}


@contextmanager
def loaded(kind: int, name: str) -> Iterator[tuple[Values, Cells, TypedProgram, Run]]:
    prog_type, attach_type, run = TYPES[name]
    with (
        Values(kind) as values,
        Cells() as cells,
        TypedProgram(counting(values, cells), prog_type, attach_type) as program,
    ):
        yield values, cells, program, run


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def refused(run: Callable[[], None], expected: int) -> None:
    with pytest.raises(OSError, match="raw program") as error:
        run()
    assert error.value.errno == expected


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", TYPES)
def test_value_of_nobody_is_zero_and_lasts_for_one_request(
    sock: socket.socket, kind: int, name: str
) -> None:
    with loaded(kind, name) as (_values, cells, program, run):
        if OLD:
            refused(lambda: run(program, sock, 1), errno.EOPNOTSUPP)
            return
        for _ in range(2):
            run(program, sock, 1)
            assert cells.read()[0] == 1
        run(program, sock, 5)
        assert cells.read()[0] == 5 if kind == MapType.CGROUP_STORAGE else 1 <= cells.read()[0] <= 5


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", TYPES)
def test_value_is_that_of_the_cgroup(sock: socket.socket, kind: int, name: str) -> None:
    with loaded(kind, name) as (values, cells, program, run), Cgroup() as cgroup:
        with cgroup.attached(program.attach_type, program.fd):
            values.put(cgroup, program.attach_type, 41)
            if OLD:
                refused(lambda: run(program, sock, 1), errno.EOPNOTSUPP)
                return
            run(program, sock, 1)
            assert cells.read()[0] == 42
            before = values.get(cgroup, program.attach_type)
            assert before == 41 * (1 if kind == MapType.CGROUP_STORAGE else CPUS) + 1
            run(program, sock, 1000)
            assert values.get(cgroup, program.attach_type) == before + 1000
        run(program, sock, 1)  # the value stays as long as the cgroup does
        assert values.get(cgroup, program.attach_type) == before + 1001


@pytest.mark.needs(since="5.18")
def test_real_calls_and_crafted_runs_count_in_one_value() -> None:
    with (
        loaded(MapType.CGROUP_STORAGE, "connect4") as (values, _, program, run),
        Cgroup() as cgroup,
        cgroup.attached(program.attach_type, program.fd),
    ):
        with cgroup.entered(), socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", 9))
            run(program, sock, 2)
            sock.connect(("127.0.0.1", 9))
        assert values.get(cgroup, program.attach_type) == 4


@pytest.mark.needs(since="5.18")
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_of_several_values_none_is_chosen(sock: socket.socket, kind: int) -> None:
    with loaded(kind, "connect4") as (values, _, program, run), ExitStack() as stack:
        cgroups = [stack.enter_context(Cgroup()) for _ in range(2)]
        for cgroup in cgroups:
            stack.enter_context(cgroup.attached(program.attach_type, program.fd))
        refused(lambda: run(program, sock, 1), errno.ENOTUNIQ)
        assert [values.get(cgroup, program.attach_type) for cgroup in cgroups] == [0, 0]


@pytest.mark.needs(since="5.18")
def test_sock_ops_program_counts() -> None:
    with Values(MapType.CGROUP_STORAGE, 8) as values, Cells() as cells:
        code = counting(values, cells)
        with TypedProgram(code, ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS) as program:
            with rawtcp.tcp_pair() as (client, _):
                data = rawtcp.head(client.fileno()) + struct.pack("=12I", ESTABLISHED, *[0] * 11)
                program.request(data=data, ctx_room=0, data_room=64, repeat=3)
            assert cells.read()[0] == 3


@pytest.mark.needs(since="5.18")
def test_values_of_our_own_are_freed() -> None:
    """Both kinds in one program, refused ones too."""
    with ExitStack() as stack:
        shared, each = (stack.enter_context(Values(kind)) for kind in KINDS)
        cells = stack.enter_context(Cells())
        code = [*counting(shared, cells)[:-2], *counting(each, cells)]
        program = stack.enter_context(
            TypedProgram(code, ProgType.CGROUP_DEVICE, AttachType.CGROUP_DEVICE)
        )
        good = struct.pack("=3I", 2 << 16 | 2, 1, 3)
        for _ in range(2000):
            program.request(good)
        before = percpu_kilobytes()
        for _ in range(20000):
            program.request(good)
        assert percpu_kilobytes() <= before + 64


def percpu_kilobytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Percpu:"))
