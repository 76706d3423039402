"""What a program sees of its crafted context, and what comes back, for every attach type."""

from __future__ import annotations

import ctypes
import os
import socket

import pytest

from bpfunit._sys import bpf, uapi
from bpfunit._sys.uapi import AttachType, Cmd
from bpfunit.errors import SyscallError
from bpfunit.progtypes.sock_addr import HOOKS
from bpfunit.rewrite import insn as asm

from . import rawrun
from .rawrun import Cells, RawProgram

pytestmark = pytest.mark.guest

every_attach_type = pytest.mark.parametrize(
    "attach_type", HOOKS, ids=lambda number: AttachType(number).name.removeprefix("CGROUP_")
)
sendmsg_types = pytest.mark.parametrize(
    "attach_type", [AttachType.CGROUP_UDP4_SENDMSG, AttachType.CGROUP_UDP6_SENDMSG], ids=str
)

ADDRESSES: dict[int, tuple[str, str]] = {
    socket.AF_INET: ("10.1.2.3:4660", "10.9.8.7"),
    socket.AF_INET6: ("[fd00:1:2:3:4:5:6:7]:4660", "fd00::9"),
}


def crafted(program: RawProgram) -> rawrun.BpfSockAddr:
    hook = HOOKS[program.attach_type]
    destination, source = ADDRESSES[hook.family]
    return program.craft(dst=destination, src=source if hook.has_source else None)


@every_attach_type
def test_program_sees_the_crafted_context(attach_type: int) -> None:
    seen = [rawrun.USER_FAMILY, rawrun.FAMILY, rawrun.TYPE, rawrun.PROTOCOL]
    seen += rawrun.address_fields(attach_type)
    with Cells() as cells, RawProgram(rawrun.record(cells, seen), attach_type) as program:
        context = crafted(program)
        answer = program.run(context)
        words = memoryview(bytes(context)).cast("I")
        assert cells.read()[: len(seen)] == tuple(words[offset // 4] for offset in seen)
        assert (answer.retval, answer.err) == (1, 0)
        assert answer.ctx == context, "a program that changes nothing gives back what it got"


@every_attach_type
def test_what_the_program_writes_comes_back(attach_type: int) -> None:
    fields = rawrun.address_fields(attach_type)
    code = []
    for number, offset in enumerate(fields):
        value = 0x1234 if offset == rawrun.USER_PORT else 0x01020304 + number
        code += [asm.mov_imm(2, value), asm.store(4, 1, offset, 2)]
    with RawProgram(code + rawrun.ALLOW, attach_type) as program:
        before = crafted(program)
        after = memoryview(bytes(program.run(before).ctx)).cast("I")
    for index, word in enumerate(memoryview(bytes(before)).cast("I")):
        offset = 4 * index
        if offset == rawrun.USER_PORT:
            assert after[index] == 0x1234
        elif offset in fields:
            assert after[index] == 0x01020304 + fields.index(offset)
        else:
            assert after[index] == word, f"the word at {offset} is not the program's to change"


@sendmsg_types
def test_source_of_a_datagram_is_zero_when_none_is_crafted(attach_type: int) -> None:
    offsets = rawrun.address_fields(attach_type)
    sources = [offset for offset in offsets if offset >= rawrun.MSG_SRC_IP4]
    with Cells() as cells, RawProgram(rawrun.record(cells, sources), attach_type) as program:
        program.run(program.craft(dst=ADDRESSES[HOOKS[attach_type].family][0]))
        assert cells.read()[: len(sources)] == (0,) * len(sources)


def test_short_context_is_extended_with_zeroes() -> None:
    offsets = [rawrun.USER_IP4, rawrun.USER_PORT, rawrun.FAMILY, rawrun.TYPE]
    with Cells() as cells, RawProgram(rawrun.record(cells, offsets)) as program:
        context = program.craft(dst="10.0.0.1:80")
        answer = program.run(bytes(context)[: rawrun.PROTOCOL])
        assert cells.read()[:2] == (context.user_ip4, context.user_port)
        assert answer.ctx.protocol == socket.IPPROTO_TCP, "the socket's, which chose its default"


def test_long_context_of_zeroes_past_the_end_is_accepted() -> None:
    with RawProgram(rawrun.ALLOW) as program:
        context = program.craft(dst="10.0.0.1:80")
        assert program.run(bytes(context) + bytes(100)).ctx == context


@pytest.mark.parametrize(
    ("attach_type", "destination"),
    [(AttachType.CGROUP_INET4_BIND, "0.0.0.0:80"), (AttachType.CGROUP_UDP4_SENDMSG, "10.0.0.1:80")],
    ids=str,
)
def test_unspecified_family_is_shown_where_the_kernel_lets_it_through(
    attach_type: int, destination: str
) -> None:
    family = [rawrun.USER_FAMILY]
    with Cells() as cells, RawProgram(rawrun.record(cells, family), attach_type) as program:
        context = program.craft(dst=destination)
        context.user_family = socket.AF_UNSPEC
        assert program.run(context).ctx == context
        assert cells.read()[0] == socket.AF_UNSPEC


def test_connected_datagram_socket_shows_no_ipv6_destination() -> None:
    with RawProgram(rawrun.ALLOW, AttachType.CGROUP_UDP6_SENDMSG) as program:
        context = program.craft()
        context.user_family = socket.AF_UNSPEC
        assert program.run(context).retval == 1
        context.user_port = socket.htons(53)
        with pytest.raises(SyscallError) as refused:
            program.run(context)
        assert refused.value.errno == 97  # EAFNOSUPPORT: such an address never reaches the hook


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=str)
def test_unix_attach_types_are_refused(family: int) -> None:
    unix_connect = 49  # BPF_CGROUP_UNIX_CONNECT, Linux 6.7
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if release < (6, 7):
        with pytest.raises(SyscallError) as refused:
            RawProgram(rawrun.ALLOW, unix_connect)
        assert refused.value.errno == 22
        return
    with RawProgram(rawrun.ALLOW, unix_connect) as program:
        context = rawrun.BpfSockAddr(user_family=family, family=family, type=1)
        with pytest.raises(SyscallError) as refused:
            program.run(context)
        assert refused.value.errno == 95  # EOPNOTSUPP


@pytest.mark.parametrize(
    ("number", "name"),
    [(6, "XDP"), (8, "CGROUP_SKB")],
)
def test_other_program_types_keep_the_kernels_own_test_run(number: int, name: str) -> None:
    """The module gives operations to one type only; packets still run through the kernel's."""
    fd, log = bpf.prog_load("other", number, 0, asm.encode(rawrun.ALLOW))
    assert fd >= 0, log
    with rawrun.Descriptor(fd):
        packet = ctypes.create_string_buffer(64)
        attr = uapi.TestRunAttr(prog_fd=fd, data_in=ctypes.addressof(packet), data_size_in=64)
        assert bpf.call(Cmd.PROG_TEST_RUN, attr) == 0, name
        assert attr.retval == 1
