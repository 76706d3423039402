"""Which fields of a context go into a stock kernel's test run, and which come back."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.errors import SyscallError
from bpfunit.netns import NetworkNamespace
from bpfunit.rewrite import insn as asm

from ..guest.rawrun import Cells
from .conftest import Facts
from .stock import loaded, packet, run, stock

pytestmark = pytest.mark.guest

# offset and size of the fields: struct __sk_buff and struct xdp_md, include/uapi/linux/bpf.h
_SK_BUFF = {
    "len": (0, 4),
    "pkt_type": (4, 4),
    "mark": (8, 4),
    "queue_mapping": (12, 4),
    "protocol": (16, 4),
    "vlan_present": (20, 4),
    "vlan_tci": (24, 4),
    "vlan_proto": (28, 4),
    "priority": (32, 4),
    "ingress_ifindex": (36, 4),
    "ifindex": (40, 4),
    "tc_index": (44, 4),
    "cb[0]": (48, 4),
    "hash": (68, 4),
    "tc_classid": (72, 4),
    "data": (76, 4),
    "napi_id": (84, 4),
    "tstamp": (152, 8),
    "wire_len": (160, 4),
    "gso_segs": (164, 4),
    "gso_size": (176, 4),
    "hwtstamp": (184, 8),
}
_SK_BUFF_SIZE = 192
_XDP = {
    "data": (0, 4),
    "data_end": (4, 4),
    "data_meta": (8, 4),
    "ingress_ifindex": (12, 4),
    "rx_queue_index": (16, 4),
    "egress_ifindex": (20, 4),
}
_XDP_SIZE = 24
_PACKET = packet(64)
# 1 is a mark, a priority, a segment; lengths fit the packet, and are not what it has anyway.
_VALUES = {"len": 64, "wire_len": 100, "data_end": 64, "data_meta": 0}
_IFINDEX = ("ifindex", "ingress_ifindex")


@pytest.fixture
def interface() -> Iterator[int]:
    """Have an interface beside the loopback interface, which is what a run has by default."""
    with NetworkNamespace() as namespace, namespace.entered():
        subprocess.run(["ip", "link", "add", "facts0", "type", "dummy"], check=True)
        subprocess.run(["ip", "link", "set", "facts0", "up"], check=True)
        yield socket.if_nametoindex("facts0")


def _seen(
    prog_type: int, attach_type: int, at: int, size: int, ctx: bytes
) -> tuple[int, int, bytes]:
    """Run a program that reads a field; return the errno, what it read and what came back.

    Raises:
        SyscallError: programs may not read the field.
    """
    with Cells() as cells:
        code = [
            asm.load(size, 2, 1, at),
            *asm.load_map_value(3, cells.fd, 0),
            asm.store(size, 3, 0, 2),
            asm.mov_imm(0, 1),
            asm.exit_(),
        ]
        with loaded(code, prog_type, attach_type) as fd:
            error, back = run(fd, _PACKET, ctx)
        words = cells.read()
        seen = struct.pack("=2I", *words[:2])[:size]
        return error, int.from_bytes(seen, sys.byteorder), back


def _fact(prog_type: int, attach_type: int, total: int, at: int, size: int, value: int) -> str:
    base = bytearray(total)
    if prog_type == ProgType.XDP:
        struct.pack_into("=I", base, 4, len(_PACKET))  # data_end, without which nothing runs
    ctx = bytearray(base)
    struct.pack_into("=Q" if size == 8 else "=I", ctx, at, value)
    with stock():
        code = [asm.mov_imm(0, 1), asm.exit_()]
        with loaded(code, prog_type, attach_type) as fd:
            error, back = run(fd, _PACKET, bytes(ctx))
        if error:
            return "refused"
        try:
            _, seen, _ = _seen(prog_type, attach_type, at, size, bytes(ctx))
            _, without, _ = _seen(prog_type, attach_type, at, size, bytes(base))
            goes_in = seen == value != without
        except SyscallError:
            goes_in = False  # no program may read it
    comes_out = back[at : at + size] == value.to_bytes(size, sys.byteorder)
    return ", ".join(["in"] * goes_in + ["out"] * comes_out) or "ignored"


@pytest.mark.parametrize("field", _SK_BUFF)
def test_sk_buff(facts: Facts, interface: int, field: str):
    at, size = _SK_BUFF[field]
    value = interface if field in _IFINDEX else _VALUES.get(field, 1)
    found = _fact(ProgType.SCHED_CLS, 0, _SK_BUFF_SIZE, at, size, value)
    facts.say("Context fields of TC", field, found)


@pytest.mark.parametrize("field", [name for name in _XDP if name not in _VALUES])
def test_xdp_md(facts: Facts, interface: int, field: str):
    at, size = _XDP[field]
    value = interface if field in _IFINDEX else 1
    found = _fact(ProgType.XDP, AttachType.XDP, _XDP_SIZE, at, size, value)
    facts.say("Context fields of XDP", field, found)
