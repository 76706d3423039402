"""A guest that does its worst, seen from the host: nothing there has changed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import execnet
import pytest

from bpfunit.guest.spec import GuestSpec
from bpfunit.kernels import resolve

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.host

KERNEL = "6.12"
SYSCTLS = (
    "kernel/hostname",
    "kernel/panic",
    "kernel/printk",
    "net/ipv4/ip_forward",
    "net/core/bpf_jit_enable",
    "vm/overcommit_memory",
)

VANDAL = """
import os, shutil, signal
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest
HOME, SENTINEL = Path({home!r}), {sentinel!r}


def test_files():
    assert (HOME / "kept/file").read_text() == "as it was"
    (HOME / "kept/file").write_text("vandalised")
    shutil.rmtree(HOME / "kept")
    (HOME / "new").write_text("from the guest")
    assert not (HOME / "kept").exists()


def test_processes():
    names = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(SENTINEL in name.decode(errors="replace") for name in names)
    for one in Path("/proc").glob("[0-9]*"):
        if (one / "comm").exists() and (one / "comm").read_text() == "sleep\\n":
            os.kill(int(one.name), signal.SIGKILL)


@pytest.mark.parametrize("name", {sysctls!r})
def test_sysctls(name):
    place = Path("/proc/sys") / name
    before = place.read_text()
    place.write_text("vandal" if name.endswith("name") else "1" if before != "1\\n" else "0")
    assert place.read_text() != before or name == "net/core/bpf_jit_enable"


def test_modules():
    assert Path("/sys/module/bpfunit_testrun").exists()
"""


@pytest.fixture
def sentinel() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host."""
    with subprocess.Popen(["sleep", "86123"]) as process:
        yield process
        process.kill()


def _sysctls() -> dict[str, str]:
    return {name: (Path("/proc/sys") / name).read_text() for name in SYSCTLS}


def test_vandal_in_a_guest_changes_nothing_on_the_host(
    pytester: pytest.Pytester, sentinel: subprocess.Popen[bytes]
):
    kept = pytester.path / "kept"
    kept.mkdir()
    (kept / "file").write_text("as it was", encoding="ascii")
    source = VANDAL.format(home=str(pytester.path), sentinel="86123", sysctls=SYSCTLS)
    pytester.makepyfile(test_vandal=source)
    before = _sysctls()

    result = pytester.runpytest_subprocess("--kernel", KERNEL, timeout=300)

    result.assert_outcomes(passed=3 + len(SYSCTLS))  # it did all that in its guest
    assert (kept / "file").read_text(encoding="ascii") == "as it was"
    assert not (pytester.path / "new").exists()
    assert sentinel.poll() is None
    assert _sysctls() == before
    assert not Path("/sys/module/bpfunit_testrun").exists()


WRITE = """
import subprocess
from pathlib import Path

place = Path("/run/again")
place.mkdir()
options = "rw,trans=virtio,version=9p2000.L,access=any"
command = ["mount", "-t", "9p", "-o", options, "again", str(place)]
mounted = subprocess.run(command, capture_output=True, text=True)
answers = {"mounted": mounted.stderr}
below = Path(f"{place}{directory}")
for name, action in {
    "read": lambda: (below / "file").read_text(),
    "write": lambda: (below / "file").write_text("vandalised"),
    "create": lambda: (below / "new").write_text("from the guest"),
    "remove": lambda: (below / "file").unlink(),
    "mode": lambda: (below / "file").chmod(0o777),
}.items():
    try:
        answers[name] = str(action())
    except OSError as error:
        answers[name] = error.errno
channel.send(json.dumps(answers))
"""


def test_qemu_itself_keeps_the_hosts_files_from_being_written(tmp_path: Path):
    """A guest that is root, and has a channel to the files that nothing else is mounted over."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("as it was", encoding="ascii")
    again = ("-device", "virtio-9p-pci,fsdev=host,mount_tag=again")
    xspec = GuestSpec(resolve(KERNEL), qemu_args=again).prepare(tmp_path / "guest")
    group = execnet.Group()
    try:
        gateway = group.makegateway(xspec)
        channel = gateway.remote_exec(f"import json\ndirectory = {str(kept)!r}\n{WRITE}")
        answers = json.loads(channel.receive(timeout=120))
    finally:
        group.terminate(timeout=5)

    refused = dict.fromkeys(("write", "create", "remove", "mode"), os.strerror(errno.EROFS))
    said = {name: os.strerror(answers[name]) for name in refused}
    assert answers["mounted"] == ""
    assert answers["read"] == "as it was", "the guest sees the very files"
    assert said == refused
    assert [path.name for path in kept.iterdir()] == ["file"]
    assert (kept / "file").read_text(encoding="ascii") == "as it was"
