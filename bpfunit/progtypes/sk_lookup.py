"""``sk_lookup`` programs, which choose the socket of a connection; the kernel runs them (5.13)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, ClassVar

from bpfunit._sys.uapi import AttachType, ProgType
from bpfunit.progtypes.base import register
from bpfunit.progtypes.native import NativeType
from bpfunit.values.records import StructRecord, array_type

_u32 = ctypes.c_uint32


class SkLookup(StructRecord):
    """``struct bpf_sk_lookup`` of ``include/uapi/linux/bpf.h`` as of Linux 5.17, 72 bytes.

    ``remote_port`` is in network, ``local_port`` in host byte order.
    """

    _fields_: ClassVar[Any] = [
        ("cookie", ctypes.c_uint64),
        ("family", _u32),
        ("protocol", _u32),
        ("remote_ip4", _u32),
        ("remote_ip6", array_type(_u32, 4)),
        ("remote_port", _u32),
        ("local_ip4", _u32),
        ("local_ip6", array_type(_u32, 4)),
        ("local_port", _u32),
        ("ingress_ifindex", _u32),
    ]
    _members_: ClassVar[dict[str, Any]] = dict(_fields_)


class SkLookupType(NativeType):
    """What is known of ``BPF_PROG_TYPE_SK_LOOKUP`` (Linux 5.9)."""

    context = SkLookup
    sections: Mapping[str, int] = {"sk_lookup": AttachType.SK_LOOKUP}
    # what every kernel has: ingress_ifindex came with 5.17
    readable = (
        *("family", "protocol", "remote_ip4", "remote_ip6", "remote_port"),
        *("local_ip4", "local_ip6", "local_port"),
    )
    structure = "bpf_sk_lookup"
    takes = "a context (ctx=)"
    verdicts: Mapping[int, str] = {0: "SK_DROP", 1: "SK_PASS"}

    def einval_hint(self, data: bytes | None, *, context: bool) -> str:
        """Say what EINVAL means for such a request."""
        if not context or data is not None:
            return "sk_lookup takes a context (ctx=) and no packet"
        return super().einval_hint(data, context=context)


register(SkLookupType(ProgType.SK_LOOKUP))
