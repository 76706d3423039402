"""Crafted contexts: what the kernel would fill in, and what no live system produces."""

from __future__ import annotations

import ctypes
import socket

import pytest

from bpfunit import BpfSockAddr, ContextError, FieldValueError, ip4, ip6, port
from bpfunit.progtypes.sock_addr import HOOKS, Hook, craft

CONNECT4 = Hook(socket.AF_INET, "connect")
CONNECT6 = Hook(socket.AF_INET6, "connect")
SENDMSG4 = Hook(socket.AF_INET, "sendmsg")
SENDMSG6 = Hook(socket.AF_INET6, "sendmsg")


def test_structure_is_that_of_the_kernel() -> None:
    # include/uapi/linux/bpf.h: 60 bytes of 32-bit fields, then the pointer, 8-byte aligned
    assert ctypes.sizeof(BpfSockAddr) == 72
    assert (BpfSockAddr.msg_src_ip6.offset, BpfSockAddr.sk.offset) == (44, 64)


def test_every_attach_type_of_the_program_type_is_known() -> None:
    calls = {(hook.call, hook.family) for hook in HOOKS.values()}
    assert len(HOOKS) == len(calls) == 12


def test_connect_defaults_to_tcp_and_sendmsg_to_udp() -> None:
    stream, datagram = craft(CONNECT4), craft(SENDMSG4)
    assert (stream.type, stream.protocol) == (socket.SOCK_STREAM, socket.IPPROTO_TCP)
    assert (datagram.type, datagram.protocol) == (socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    assert stream.user_family == stream.family == socket.AF_INET


@pytest.mark.parametrize("dst", ["10.96.0.1:80", ("10.96.0.1", 80), ["10.96.0.1", 80]])
def test_destination_is_written_in_network_byte_order(dst: object) -> None:
    context = craft(CONNECT4, dst=dst)  # type: ignore[arg-type]
    assert (context.user_ip4, context.user_port) == (ip4("10.96.0.1"), port(80))
    assert context.user == "10.96.0.1:80"
    assert not any(context.user_ip6)


def test_ipv6_and_v4_mapped_destinations_fill_four_words() -> None:
    context = craft(CONNECT6, dst="[::ffff:10.0.0.1]:443")
    assert tuple(context.user_ip6) == ip6("::ffff:10.0.0.1")
    assert context.user == "[::ffff:10.0.0.1]:443"
    assert context.user_ip4 == 0


@pytest.mark.parametrize(
    ("hook", "src", "host"),
    [
        (SENDMSG4, "10.0.0.9", "10.0.0.9"),
        (SENDMSG4, "10.0.0.9:5", "10.0.0.9"),
        (SENDMSG4, ("10.0.0.9", 5), "10.0.0.9"),
        (SENDMSG6, "fd00::9", "fd00::9"),
        (SENDMSG6, "[fd00::9]:5", "fd00::9"),
    ],
)
def test_source_of_a_datagram_may_have_a_port_that_is_ignored(
    hook: Hook, src: str, host: str
) -> None:
    assert craft(hook, src=src).source == (host, 0)


def test_each_context_is_a_copy_of_its_own() -> None:
    first = craft(CONNECT4, dst="10.96.0.1:80")
    first.user_port = port(81)
    assert craft(CONNECT4, dst="10.96.0.1:80").user == "10.96.0.1:80"


def test_address_of_the_other_family_is_refused_with_the_remedy() -> None:
    with pytest.raises(ContextError, match=r"write \[::ffff:10\.0\.0\.1\]:80"):
        craft(CONNECT6, dst="10.0.0.1:80")
    with pytest.raises(ContextError, match="connect4 hook never sees the IPv6 address"):
        craft(CONNECT4, dst="[fd00::1]:80")


def test_source_where_the_hook_has_none_is_refused() -> None:
    with pytest.raises(ContextError, match="a connect hook has no source address"):
        craft(CONNECT4, src="10.0.0.1")


def test_number_that_no_field_holds_is_refused() -> None:
    with pytest.raises(FieldValueError, match=r"BpfSockAddr\.type: -1 is out of range"):
        craft(CONNECT4, type=-1)


def test_context_prints_its_addresses() -> None:
    text = repr(craft(SENDMSG4, dst="10.0.0.1:53", src="10.0.0.9"))
    assert "user=10.0.0.1:53" in text
    assert "source=10.0.0.9" in text


@pytest.mark.parametrize(
    ("call", "family", "written", "shown"),
    [
        ("connect", 4, 99, True),
        ("connect", 6, 2, True),
        ("connect", 4, 0, False),
        ("bind", 6, 0, True),
        ("bind", 4, 0xFFFF, True),
        ("bind", 4, 0x10000, False),
        ("sendmsg", 4, 0, True),
        ("sendmsg", 4, 10, False),
        ("recvmsg", 6, 2, False),
        ("getpeername", 4, 0, False),
    ],
)
def test_family_that_the_caller_wrote_is_crafted_where_a_call_shows_it(
    call: str, family: int, written: int, shown: bool
):
    hook = Hook(socket.AF_INET if family == 4 else socket.AF_INET6, call)
    if shown:
        address = "10.0.0.1:80" if family == 4 else "[fd00::1]:80"
        context = craft(hook, dst=address, user_family=written)
        assert context.user_family == written
        assert str(context.user) == address
    else:
        with pytest.raises(ContextError, match="never sees user_family"):
            craft(hook, user_family=written)
