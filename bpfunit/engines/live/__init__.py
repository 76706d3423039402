"""The engine behind real system calls: a program attached to a cgroup, a socket, a call."""

from __future__ import annotations

from bpfunit.engines import register
from bpfunit.engines.live.cgroup import Cgroup, CgroupError
from bpfunit.engines.live.engine import ConnectEngine

__all__ = ["Cgroup", "CgroupError", "ConnectEngine"]

register("connect", ConnectEngine)
