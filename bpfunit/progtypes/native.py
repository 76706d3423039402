"""What the kernel's own test run takes and tells, by program type.

Source: ``bpf_prog_test_run_*()`` in the kernel's ``net/bpf/test_run.c``.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from typing import NamedTuple

from bpfunit._sys import bpf
from bpfunit._sys.uapi import AttachType, Cmd, ProgType, TestRunAttr
from bpfunit.rewrite import insn as asm

ETH_HLEN = 14  # include/uapi/linux/if_ether.h
_IPV4_LEAST, _IPV6_LEAST = ETH_HLEN + 20, ETH_HLEN + 40
_ETH_P = {0x0800: ("IPv4", _IPV4_LEAST), 0x86DD: ("IPv6", _IPV6_LEAST)}
_FLOW_DROP = 2  # BPF_DROP, enum bpf_ret_code

SKB_TYPES = frozenset(
    {
        ProgType.SOCKET_FILTER,
        ProgType.SCHED_CLS,
        ProgType.SCHED_ACT,
        ProgType.CGROUP_SKB,
        ProgType.LWT_IN,
        ProgType.LWT_OUT,
        ProgType.LWT_XMIT,
        ProgType.LWT_SEG6LOCAL,
    }
)
# types whose test run takes a packet
PACKET_TYPES = SKB_TYPES | {ProgType.XDP, ProgType.FLOW_DISSECTOR}
# types whose run is one call of the program: the kernel wants repeat 0 and takes no time
_ONCE = frozenset({ProgType.RAW_TRACEPOINT, ProgType.RAW_TRACEPOINT_WRITABLE, ProgType.SYSCALL})
# types with negative verdicts: TC_ACT_UNSPEC, an errno
_SIGNED = _ONCE | {
    ProgType.SCHED_CLS,
    ProgType.SCHED_ACT,
    ProgType.LWT_IN,
    ProgType.LWT_OUT,
    ProgType.LWT_XMIT,
    ProgType.LWT_SEG6LOCAL,
    ProgType.TRACING,
    ProgType.STRUCT_OPS,
}
_CONTEXTS: dict[int, str] = {
    **dict.fromkeys(SKB_TYPES, "__sk_buff"),
    ProgType.XDP: "xdp_md",
    ProgType.FLOW_DISSECTOR: "bpf_flow_keys",
    ProgType.SK_LOOKUP: "bpf_sk_lookup",
}


class Shape(NamedTuple):
    """How a type's test run is asked and answers.

    ``once``: the kernel runs it once a call and measures nothing. ``answers``: there is a
    ``ctx_out``; otherwise a ``syscall`` program's context comes back in the buffer that it came in.
    """

    once: bool = False
    answers: bool = True
    signed: bool = False


def shape_of(prog_type: int) -> Shape:
    """Return the shape of a type's test run."""
    once = prog_type in _ONCE
    return Shape(once, not once and prog_type != ProgType.FLOW_DISSECTOR, prog_type in _SIGNED)


def verdict(prog_type: int, raw: int) -> int:
    """Return a program's return value as a number of its type: signed where verdicts are."""
    return raw - (1 << 32) if prog_type in _SIGNED and raw >> 31 else raw


def retval_note(prog_type: int, attach_type: int) -> str:
    """Say what ``retval`` is where it is not what the program returned, "" where it is."""
    if prog_type == ProgType.FLOW_DISSECTOR and _flow_dissector_is_boolean():
        return "1 where the program returned BPF_OK, else 0 (the kernel's doing before Linux 6.2)"
    if prog_type == ProgType.TRACING and attach_type == AttachType.MODIFY_RETURN:
        return (
            "in the lower half the sum of what the kernel's bpf_modify_return_test functions"
            " returned, in the upper half how many had their side effect"
        )
    if prog_type == ProgType.TRACING:
        return "0: the kernel calls the traced functions and drops what programs return"
    return ""


def einval_hint(prog_type: int, data: bytes | None, context: bool) -> str:
    """Say what the kernel's test run of a type has against a request, when it says EINVAL."""
    name = _CONTEXTS.get(prog_type)
    if data is not None and prog_type in SKB_TYPES | {ProgType.XDP}:
        packet = _packet_hint(prog_type, data)
        if packet:
            return packet
        if context and prog_type == ProgType.XDP:
            return (
                "xdp_md: the kernel takes a context since Linux 5.15; data is where the packet"
                " begins behind its metadata, data_end its length, and ingress_ifindex and"
                " rx_queue_index name a device that is there"
            )
    if context and name:
        return (
            f"a field of struct {name} that a caller cannot set is not zero, or one that it can has"
            " a value that this kernel refuses"
        )
    if prog_type in _ONCE and not context:
        return "the program reads its context (ctx=), and none was given"
    if prog_type == ProgType.SK_LOOKUP:
        return "sk_lookup takes a context (ctx=) and no packet"
    return "the kernel's test run of this type does not take such a request"


def _packet_hint(prog_type: int, data: bytes) -> str:
    size = len(data)
    if size < ETH_HLEN:
        since = " (5.10 takes less for XDP)" if prog_type == ProgType.XDP else ""
        return (
            f"a packet of {size} bytes: it begins with an Ethernet header, {ETH_HLEN} bytes{since}"
        )
    name, least = _ETH_P.get(int.from_bytes(data[12:14], "big"), ("", 0))
    if prog_type in SKB_TYPES and size < least:
        return (
            f"a packet of {size} bytes whose EtherType says {name}: kernels want the whole header,"
            f" {least} bytes (Linux 6.16 to 6.18 take {ETH_HLEN})"
        )
    if size > _ROOM:
        return (
            f"a packet of {size} bytes: up to Linux 6.12 it has to fit a page together with what"
            f" the kernel keeps with it, about {_ROOM} bytes"
        )
    return ""


_ROOM = 3520  # a page without headroom (256 for XDP) and struct skb_shared_info (320)


def e2big_hint(prog_type: int) -> str:
    """Say which structure a context is longer than."""
    name = _CONTEXTS.get(prog_type)
    what = f"this kernel's struct {name}" if name else "what this kernel knows"
    return f"the context is longer than {what} and not zero past its end"


@lru_cache(maxsize=1)
def _flow_dissector_is_boolean() -> bool:
    """Ask this kernel: a program that drops either says so, or that it is not BPF_OK."""
    code = asm.encode([asm.mov_imm(0, _FLOW_DROP), asm.exit_()])
    return _told(ProgType.FLOW_DISSECTOR, AttachType.FLOW_DISSECTOR, code) != _FLOW_DROP


@lru_cache(maxsize=1)
def packet_end_is_missing() -> bool:
    """Whether the test run of cgroup_skb shows a ``data_end`` of NULL (stock, before Linux 6.16).

    The module of ``vm/testrun`` mends it for programs that are loaded after it.
    """
    # r0 = skb->data_end != 0
    load_end = asm.load(4, 2, 1, 80)  # offsetof(struct __sk_buff, data_end)
    code = [asm.mov_imm(0, 0), load_end, asm.branch_imm(asm.JEQ, 2, 0, 1), asm.mov_imm(0, 1)]
    code.append(asm.exit_())
    return _told(ProgType.CGROUP_SKB, AttachType.CGROUP_INET_EGRESS, asm.encode(code)) == 0


def _told(prog_type: int, attach_type: int, code: bytes) -> int | None:
    """Return what a program's test run tells about an empty packet, None where it has none."""
    fd, _ = bpf.prog_load("bpfunit_ask", prog_type, attach_type, code)
    if fd < 0:
        return None
    try:
        packet = ctypes.create_string_buffer(64)
        attr = TestRunAttr(
            prog_fd=fd, repeat=1, data_in=ctypes.addressof(packet), data_size_in=len(packet)
        )
        result = bpf.call(Cmd.PROG_TEST_RUN, attr)
        return attr.retval if result >= 0 else None
    finally:
        os.close(fd)
