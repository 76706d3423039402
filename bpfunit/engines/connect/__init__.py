"""The engine behind real system calls: a program attached to a cgroup, a socket, a call."""

from __future__ import annotations

from .. import register
from .cgroup import Cgroup, CgroupError
from .engine import ConnectEngine

__all__ = ["Cgroup", "CgroupError", "ConnectEngine"]

register("connect", ConnectEngine)
