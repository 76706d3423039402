"""QEMU's monitor, as the supervisor hears it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from bpfunit.guest.supervisor.qemu import MonitorError, Qemu

pytestmark = pytest.mark.host


def test_a_qemu_that_ends_with_a_request_unread_is_an_error(tmp_path: Path) -> None:
    """The socket is then reset; one of a QEMU that had read all of them is at its end."""
    (tmp_path / "qemu").write_text("qemu: load of migration failed\n")
    supervised = Qemu(tmp_path)
    supervised.monitor, qemu = socket.socketpair()

    def ends_with_a_request_unread() -> None:
        qemu.recv(1, socket.MSG_PEEK)
        qemu.close()

    thread = threading.Thread(target=ends_with_a_request_unread)
    with supervised.monitor, supervised.monitor.makefile() as lines:
        supervised._answers = lines
        thread.start()
        with pytest.raises(MonitorError, match="load of migration failed"):
            supervised.ask("query-status")
    thread.join()
