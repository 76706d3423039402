"""QEMU's monitor, as the supervisor hears it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from bpfunit.guest.supervisor import SnapshotError, Supervisor

pytestmark = pytest.mark.host


def test_a_qemu_that_ends_with_a_request_unread_is_a_snapshot_that_failed(tmp_path: Path) -> None:
    """The socket is then reset; one of a QEMU that had read all of them is at its end."""
    (tmp_path / "qemu").write_text("qemu: load of migration failed\n")
    supervisor = Supervisor.__new__(Supervisor)
    supervisor._directory, supervisor._asked = tmp_path, 0
    supervisor._monitor, qemu = socket.socketpair()

    def ends_with_a_request_unread() -> None:
        qemu.recv(1, socket.MSG_PEEK)
        qemu.close()

    thread = threading.Thread(target=ends_with_a_request_unread)
    with supervisor._monitor, supervisor._monitor.makefile() as lines:
        supervisor._monitor_lines = lines
        thread.start()
        with pytest.raises(SnapshotError, match="load of migration failed"):
            supervisor._ask("query-status")
    thread.join()
