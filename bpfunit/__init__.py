"""Unit tests for eBPF programs that Linux itself cannot unit-test.

Load an object, fill its maps, run a program with a crafted context, look at what it did::

    with bpfunit.load("hook.bpf.o") as obj:
        obj.maps.frontend[{"addr": ip("10.96.0.1")}] = {"upstream_id": 7}
        result = obj.programs.cgroup_connect4_prog.run("10.96.0.1:80")
        assert result.dst == "10.244.0.5:8080"
"""

from __future__ import annotations

from bpfunit.engines import NotApplicableError
from bpfunit.errors import BpfunitError, FieldError, FieldValueError, NotFoundError, SyscallError
from bpfunit.objects.logs import LogLine
from bpfunit.objects.maps import Map
from bpfunit.objects.object import Object, load
from bpfunit.objects.verifier import LoadError, VerifierError
from bpfunit.progtypes import discover
from bpfunit.progtypes.base import ContextError
from bpfunit.progtypes.packet import PacketProgram, PacketResult
from bpfunit.progtypes.sock_addr import BpfSockAddr, SockAddrProgram, SockAddrResult
from bpfunit.runs.attach import attach
from bpfunit.runs.bulk import BulkResult, BulkRun
from bpfunit.runs.program import Program
from bpfunit.runs.result import NotObservedError, Result
from bpfunit.tailcalls.tailcalls import ProgArray, Spy, TailCall
from bpfunit.values.btf import Types
from bpfunit.values.layout import BtfError
from bpfunit.values.net import IP, Endpoint, ip, ip4, ip6, port
from bpfunit.values.sources import load_types

__all__ = [
    "IP",
    "BpfSockAddr",
    "BpfunitError",
    "BtfError",
    "BulkResult",
    "BulkRun",
    "ContextError",
    "Endpoint",
    "FieldError",
    "FieldValueError",
    "LoadError",
    "LogLine",
    "Map",
    "NotApplicableError",
    "NotFoundError",
    "NotObservedError",
    "Object",
    "PacketProgram",
    "PacketResult",
    "ProgArray",
    "Program",
    "Result",
    "SockAddrProgram",
    "SockAddrResult",
    "Spy",
    "SyscallError",
    "TailCall",
    "Types",
    "VerifierError",
    "attach",
    "ip",
    "ip4",
    "ip6",
    "load",
    "load_types",
    "port",
]

discover()  # so that an object finds the class of each program's type
