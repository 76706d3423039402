"""What a guest can reach of its host: nothing to write to, nothing to talk to."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest


@pytest.fixture
def host_tree(tmp_path: Path) -> Iterator[Path]:
    """The host's files, mounted anew by a root that wants to write to them."""
    tags = list(Path("/sys/bus/virtio/drivers/9pnet_virtio").glob("virtio*/mount_tag"))
    assert tags, "the guest has its files from the host over 9p"
    target = tmp_path / "host"
    target.mkdir()
    tag = tags[0].read_text(encoding="ascii").rstrip("\0\n")
    options = "rw,trans=virtio,version=9p2000.L,access=any"
    subprocess.run(["mount", "-t", "9p", "-o", options, tag, str(target)], check=True, timeout=60)
    yield target
    subprocess.run(["umount", str(target)], check=True, timeout=60)


@pytest.mark.parametrize("place", ["etc", "tmp", "var/tmp", "root", "usr/bin"])
def test_no_file_of_the_host_can_be_made(host_tree: Path, place: str):
    with pytest.raises(OSError) as refusal:
        (host_tree / place / "bpfunit-was-here").write_text("x", encoding="ascii")
    assert refusal.value.errno == errno.EROFS


def test_no_file_of_the_host_can_be_changed_or_removed(host_tree: Path):
    victim = host_tree / "etc/passwd"
    before = victim.read_bytes()

    for crime in (
        lambda: os.truncate(victim, 0),
        lambda: victim.unlink(),
        lambda: victim.rename(host_tree / "etc/bpfunit-was-here"),
        lambda: victim.chmod(0o777),
        lambda: os.utime(victim, (0, 0)),
        lambda: os.mknod(host_tree / "tmp/bpfunit-was-here"),
        lambda: os.setxattr(victim, "user.bpfunit", b"x"),
    ):
        with pytest.raises(OSError) as refusal:
            crime()
        assert refusal.value.errno in (errno.EROFS, errno.EOPNOTSUPP)

    assert victim.read_bytes() == before


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
