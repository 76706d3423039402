"""What a guest can reach of its host: nothing to write to, nothing to talk to."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest


def test_host_tree_cannot_be_mounted_a_second_time(tmp_path: Path):
    tags = list(Path("/sys/bus/virtio/drivers/9pnet_virtio").glob("virtio*/mount_tag"))
    assert tags, "the guest has its files from the host over 9p"
    tag = tags[0].read_text(encoding="ascii").rstrip("\0\n")
    options = "rw,trans=virtio,version=9p2000.L,access=any"
    command = ["mount", "-t", "9p", "-o", options, tag, str(tmp_path)]

    mounted = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    # The kernel gives a 9p channel to one mount alone, and has one below the overlay already.
    # What a second channel to the same files may do: tests/e2e/test_isolation.py.
    if mounted.returncode == 0:
        subprocess.run(["umount", str(tmp_path)], check=True, timeout=60)
    assert mounted.returncode != 0
    assert "already mounted" in mounted.stderr


def test_no_mount_of_the_host_is_within_reach():
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    assert [fields[1] for fields in mounts if fields[2] in ("9p", "virtiofs")] == []


def test_there_is_no_disk():
    hardware = [disk.name for disk in Path("/sys/block").iterdir() if (disk / "device").exists()]
    assert hardware == []


def test_there_is_no_network_card():
    cards = [card.name for card in Path("/sys/class/net").iterdir() if (card / "device").exists()]
    assert cards == []


def test_changes_to_files_are_made_in_memory():
    # what the tests write by mistake goes to the upper layer of the overlay
    root = next(
        line for line in Path("/proc/mounts").read_text().splitlines() if line.split()[1] == "/"
    )
    assert root.split()[2] in ("overlay", "tmpfs")


def test_what_a_kernel_offers_is_mounted_and_loopback_is_up():
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    mounts = {fields[1]: fields[2] for fields in lines}
    assert (
        mounts.items()
        >= {
            "/proc": "proc",
            "/sys": "sysfs",
            "/sys/fs/cgroup": "cgroup2",
            "/sys/fs/bpf": "bpf",
            "/sys/kernel/debug": "debugfs",
            "/sys/kernel/tracing": "tracefs",
            "/dev": "devtmpfs",
            "/dev/pts": "devpts",
            "/dev/shm": "tmpfs",
            "/run": "tmpfs",
        }.items()
    ), mounts
    assert Path("/dev/fd").readlink() == Path("/proc/self/fd")
    assert os.ttyname(os.openpty()[1]).startswith("/dev/pts/")
    assert socket.gethostname() == "bpfunit"
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()):
        pass
