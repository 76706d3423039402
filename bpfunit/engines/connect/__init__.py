"""The engine behind real system calls: the program attached to a cgroup, a real socket, a real call."""

from __future__ import annotations

from .. import register
from .cgroup import Cgroup, CgroupError
from .engine import ConnectEngine

__all__ = ["Cgroup", "CgroupError", "ConnectEngine"]

register("connect", ConnectEngine)
