"""Program types that look at packets and that the kernel itself can run: XDP, TC, cgroup_skb, ….

The kernel makes an ``sk_buff`` or ``xdp_buff`` of the bytes (``net/bpf/test_run.c``). What its
context may hold on the way in differs by type and is the kernel's to check.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, cast

from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.progtypes.base import ALLOW, ProgramRef, RawOutcome, Request, register
from bpfunit.progtypes.native import NativeType, told
from bpfunit.rewrite import insn as asm
from bpfunit.runs.program import Program
from bpfunit.runs.result import Result
from bpfunit.values.records import StructRecord, array_type

_HEADROOM = 256  # bytes that a program may add in front of or behind the packet by default
# the smallest Ethernet frame without its checksum, rounded up: a packet for a test that needs none
_ANY_PACKET = bytes(64)
_BPF_DROP = 2  # enum bpf_ret_code
ETH_HLEN = 14  # include/uapi/linux/if_ether.h
_ETH_P = {0x0800: ("IPv4", ETH_HLEN + 20), 0x86DD: ("IPv6", ETH_HLEN + 40)}
_PAGE_ROOM = 3520  # a page less 256 of the kernel's headroom and 320 of struct skb_shared_info
_u32 = ctypes.c_uint32


class SkBuff(StructRecord):
    """``struct __sk_buff`` of ``include/uapi/linux/bpf.h``, up to ``napi_id``'s neighbours.

    Fields behind ``hash`` differ in who may read them; the kernel takes the whole structure of the
    object's BTF (``obj.types["struct __sk_buff"]``) as a context as well.
    """

    _fields_: ClassVar[Any] = [
        *((name, _u32) for name in ("len", "pkt_type", "mark", "queue_mapping", "protocol")),
        *((name, _u32) for name in ("vlan_present", "vlan_tci", "vlan_proto", "priority")),
        *((name, _u32) for name in ("ingress_ifindex", "ifindex", "tc_index")),
        ("cb", array_type(_u32, 5)),
        ("hash", _u32),
    ]
    _members_: ClassVar[dict[str, Any]] = dict(_fields_)


class XdpMd(StructRecord):
    """``struct xdp_md`` of ``include/uapi/linux/bpf.h`` (Linux 4.8; 24 bytes since 5.8)."""

    _fields_: ClassVar[Any] = [
        (name, _u32)
        for name in (
            *("data", "data_end", "data_meta"),
            *("ingress_ifindex", "rx_queue_index", "egress_ifindex"),
        )
    ]
    _members_: ClassVar[dict[str, Any]] = dict(_fields_)


class PacketResult(Result):
    """The outcome of a run of a packet program.

    Attributes:
        data_in: the packet before the run.
    """

    def __init__(
        self,
        program: ProgramRef,
        engine: str,
        outcome: RawOutcome,
        ctx_in: Any = None,
        *,
        data_in: bytes = b"",
    ) -> None:
        super().__init__(program, engine, outcome, ctx_in)
        self.data_in = data_in

    @property
    def data(self) -> bytes:
        """The packet after the run."""
        return self.outcome.data

    @property
    def untouched(self) -> bool:
        """Whether the packet came out as it went in; its context is not compared.

        The kernel fills in some fields of a context by itself.
        """
        return self.data == self.data_in

    def describe(self) -> list[str]:
        """Return what went in and came out as lines for the report of a failing test."""
        lines = [f"packet in:  {_shown(self.data_in)}"]
        verdict = "untouched" if self.untouched else "rewritten"
        lines.append(f"packet out: {_shown(self.data)} ({verdict}), verdict {self.verdict}")
        if self.ctx_in is not None:
            lines += [f"context in:  {self.ctx_in!r}", f"context out: {self.ctx!r}"]
        return lines


def _shown(packet: bytes) -> str:
    more = " …" if len(packet) > 64 else ""
    return f"{len(packet)} bytes: {packet[:64].hex(' ', 4)}{more}"


class PacketProgram(Program):
    """A packet program (XDP, TC, cgroup_skb, …): a packet in, a packet out."""

    result_class = PacketResult

    def run(
        self,
        data: bytes | None = None,
        *,
        ctx: Any = None,
        headroom: int = _HEADROOM,
        repeat: int = 1,
        observe: bool = True,
    ) -> PacketResult:
        """Run the program on a packet and return what it did.

        Args:
            data: the packet from its Ethernet header on; 64 zeroes by default.
            ctx: the context that goes with it, a structure or bytes, where the type takes one.
            headroom: bytes by which the packet may grow.
            repeat: how often to run.
            observe: see :meth:`bpfunit.Program.run`.

        Raises:
            SyscallError: the kernel refused the run; ``errno`` says why.
            ContextError: ``data`` is not bytes.
            NotApplicableError: this engine cannot produce such a run.
        """
        self.check_open()
        if data is None:
            data = _ANY_PACKET
        elif not isinstance(data, (bytes, bytearray, memoryview)):
            self.refuse_input(data)
        data = bytes(data)
        raw = None if ctx is None else bytes(ctx)
        request = Request(raw, None, repeat, data, len(data) + headroom)
        return cast("PacketResult", self.execute(request, ctx, observe=observe, data_in=data))

    @property
    def runs_on_contexts(self) -> bool:
        """No: :meth:`run_many` takes packets."""
        return False

    def as_request(self, given: Any) -> Request:
        """Return the run on one packet of :meth:`run_many`."""
        if not isinstance(given, (bytes, bytearray, memoryview)):
            self.refuse_input(given)
        return Request(None, None, 1, bytes(given), len(given) + _HEADROOM)


class PacketType(NativeType):
    """What is known of a packet type.

    Args:
        number: the type.
        sections: libbpf's section names and their attach types.
        verdicts: names of return values.
        signed: whether verdicts can be negative: TC_ACT_UNSPEC.
    """

    takes = "a packet (data=) or a context (ctx=)"
    program_class = PacketProgram
    example = "data=bytes(64)"
    context: type[StructRecord] | None = SkBuff
    structure = "__sk_buff"
    readable = tuple(SkBuff._members_)

    def __init__(
        self,
        number: int,
        sections: Mapping[str, int],
        verdicts: Mapping[int, str] | None = None,
        *,
        signed: bool = False,
    ) -> None:
        super().__init__(number)
        self.sections, self.verdicts, self.signed = sections, verdicts or {}, signed

    def einval_hint(self, data: bytes | None, *, context: bool) -> str:
        """Say what EINVAL means for such a packet."""
        if data is not None and (hint := self.packet_hint(data)):
            return hint
        return super().einval_hint(data, context=context)

    def packet_hint(self, data: bytes) -> str:
        """Say what kernels have against a packet, "" for nothing."""
        size = len(data)
        if size < ETH_HLEN:
            return f"a packet of {size} bytes: it begins with an Ethernet header, {ETH_HLEN} bytes"
        name, least = _ETH_P.get(int.from_bytes(data[12:14], "big"), ("", 0))
        if size < least:
            return (
                f"a packet of {size} bytes whose EtherType says {name}: kernels want the whole"
                f" header, {least} bytes (Linux 6.16 to 6.18 take {ETH_HLEN})"
            )
        return _too_long(size)


def _too_long(size: int) -> str:
    if size <= _PAGE_ROOM:
        return ""
    return (
        f"a packet of {size} bytes: up to Linux 6.12 it has to fit a page together with what the"
        f" kernel keeps with it, about {_PAGE_ROOM} bytes"
    )


class XdpType(PacketType):
    """What is known of XDP."""

    context = XdpMd
    structure = "xdp_md"
    readable = ("ingress_ifindex", "rx_queue_index")

    def packet_hint(self, data: bytes) -> str:
        """Say what kernels have against a packet, "" for nothing."""
        if len(data) < ETH_HLEN:
            return f"{super().packet_hint(data)} (5.10 takes less for XDP)"
        return _too_long(len(data))

    def einval_hint(self, data: bytes | None, *, context: bool) -> str:
        """Say what EINVAL means for such a packet and context."""
        if data is not None and (hint := self.packet_hint(data)):
            return hint
        if context:
            return (
                "xdp_md: the kernel takes a context since Linux 5.15; data is where the packet"
                " begins behind its metadata, data_end its length, and ingress_ifindex and"
                " rx_queue_index name a device that is there"
            )
        return (
            "programs of devmaps and cpumaps (xdp/devmap, xdp/cpumap), which run on what another"
            " program redirected, have no test run"
        )


class CgroupSkbType(PacketType):
    """What is known of cgroup_skb."""

    def unfit(self) -> str:
        """Say where the kernel's own test run shows the program an empty packet."""
        if not packet_end_is_missing():
            return ""
        return (
            "in this kernel's own test run of cgroup_skb data_end is NULL, so that the program"
            " would see an empty packet; Linux 6.16 is right, and so is bpfunit_testrun.ko, loaded"
            " before the program"
        )


class FlowDissectorType(PacketType):
    """What is known of flow_dissector."""

    context = None
    structure = "bpf_flow_keys"
    readable = ()
    answers = False

    def packet_hint(self, data: bytes) -> str:
        """Say nothing: the kernel's rules for this type are others."""
        return ""

    def retval_note(self, attach_type: int) -> str:
        """Say where the kernel turns the verdict into a boolean."""
        if not _flow_dissector_is_boolean():
            return ""
        return "1 where the program returned BPF_OK, else 0 (the kernel's doing before Linux 6.2)"


@lru_cache(maxsize=1)
def _flow_dissector_is_boolean() -> bool:
    """Ask this kernel: a program that drops either says so, or that it is not BPF_OK."""
    code = asm.encode([asm.mov_imm(0, _BPF_DROP), asm.exit_()])
    return told(ProgType.FLOW_DISSECTOR, AttachType.FLOW_DISSECTOR, code) != _BPF_DROP


@lru_cache(maxsize=1)
def packet_end_is_missing() -> bool:
    """Whether the test run of cgroup_skb shows a ``data_end`` of NULL (stock, before Linux 6.16).

    The module of ``vm/testrun`` mends it for programs that are loaded after it.
    """
    # r0 = skb->data_end != 0
    load_end = asm.load(4, 2, 1, 80)  # offsetof(struct __sk_buff, data_end)
    code = [asm.mov_imm(0, 0), load_end, asm.branch_imm(asm.JEQ, 2, 0, 1), asm.mov_imm(0, 1)]
    code.append(asm.exit_())
    return told(ProgType.CGROUP_SKB, AttachType.CGROUP_INET_EGRESS, asm.encode(code)) == 0


_XDP = dict(enumerate(["XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT"]))
_TC = dict(
    enumerate(
        [
            *("TC_ACT_OK", "TC_ACT_RECLASSIFY", "TC_ACT_SHOT", "TC_ACT_PIPE", "TC_ACT_STOLEN"),
            *("TC_ACT_QUEUED", "TC_ACT_REPEAT", "TC_ACT_REDIRECT", "TC_ACT_TRAP"),
        ]
    )
) | {-1: "TC_ACT_UNSPEC"}
_LWT = {0: "BPF_OK", 2: "BPF_DROP", 7: "BPF_REDIRECT", 128: "BPF_LWT_REROUTE"}

for _type in (
    XdpType(
        ProgType.XDP,
        {
            "xdp": AttachType.XDP,
            "xdp/devmap": AttachType.XDP_DEVMAP,
            "xdp/cpumap": AttachType.XDP_CPUMAP,
            "xdp.frags": AttachType.XDP,
            "xdp.frags/devmap": AttachType.XDP_DEVMAP,
            "xdp.frags/cpumap": AttachType.XDP_CPUMAP,
        },
        _XDP,
    ),
    PacketType(
        ProgType.SCHED_CLS,
        {
            "tc": 0,
            "classifier": 0,
            "tc/ingress": 0,
            "tc/egress": 0,
            "tcx/ingress": 46,
            "tcx/egress": 47,  # BPF_TCX_INGRESS, BPF_TCX_EGRESS, Linux 6.6
        },
        _TC,
        signed=True,
    ),
    PacketType(ProgType.SCHED_ACT, {"action": 0}, _TC, signed=True),
    PacketType(ProgType.SOCKET_FILTER, {"socket": 0}),
    CgroupSkbType(
        ProgType.CGROUP_SKB,
        {
            "cgroup_skb/ingress": AttachType.CGROUP_INET_INGRESS,
            "cgroup_skb/egress": AttachType.CGROUP_INET_EGRESS,
            "cgroup/skb": 0,
        },
        ALLOW,
    ),
    PacketType(ProgType.LWT_IN, {"lwt_in": 0}, _LWT, signed=True),
    PacketType(ProgType.LWT_OUT, {"lwt_out": 0}, _LWT, signed=True),
    PacketType(ProgType.LWT_XMIT, {"lwt_xmit": 0}, _LWT, signed=True),
    PacketType(ProgType.LWT_SEG6LOCAL, {"lwt_seg6local": 0}, _LWT, signed=True),
    FlowDissectorType(
        ProgType.FLOW_DISSECTOR,
        {"flow_dissector": AttachType.FLOW_DISSECTOR},
        {0: "BPF_OK", 2: "BPF_DROP", 129: "BPF_FLOW_DISSECTOR_CONTINUE"},
    ),
):
    register(_type)
