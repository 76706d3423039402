"""Socket-address programs (``cgroup_sock_addr``): connect, bind, sendmsg, recvmsg and the names."""

from __future__ import annotations

from bpfunit.progtypes.base import ContextError
from bpfunit.progtypes.sock_addr.context import HOOKS, SOCK_ADDR_SIZE, BpfSockAddr, Hook, craft
from bpfunit.progtypes.sock_addr.program import (
    SOCK_ADDR,
    SockAddrProgram,
    SockAddrResult,
    SockAddrRun,
)

__all__ = [
    "HOOKS",
    "SOCK_ADDR",
    "SOCK_ADDR_SIZE",
    "BpfSockAddr",
    "ContextError",
    "Hook",
    "SockAddrProgram",
    "SockAddrResult",
    "SockAddrRun",
    "craft",
]
