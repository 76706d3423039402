"""A guest behind execnet's ssh gateway, over an sshd of the test's own on the loopback address."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(SSHD is None, reason="no sshd here (Debian: openssh-server)"),
]

SUITE = """
import os

def test_where(): assert os.uname().release.startswith("6.12.")
def test_module(): assert os.path.exists("/sys/module/bpfunit_testrun")
"""


def key(path: Path) -> Path:
    """A new key pair without a passphrase."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path


@pytest.fixture
def ssh_config(tmp_path: Path) -> Iterator[Path]:
    """The client's configuration for the host ``box``, which is this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    host_key, user_key = key(tmp_path / "host_key"), key(tmp_path / "user_key")
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd drops its privileges into it
    (tmp_path / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {host_key}\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {user_key}.pub\nStrictModes no\nPasswordAuthentication no\n",
        encoding="ascii",
    )
    public = " ".join(host_key.with_suffix(".pub").read_text(encoding="ascii").split()[:2])
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {public}\n", encoding="ascii")
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host box\nHostName 127.0.0.1\nPort {port}\nUser {getpass.getuser()}\n"
        f"IdentityFile {user_key}\nIdentitiesOnly yes\nUserKnownHostsFile {known}\nBatchMode yes\n",
        encoding="ascii",
    )
    with subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(tmp_path / "sshd_config")]) as sshd:
        deadline = time.monotonic() + 30
        while subprocess.run(["ssh", "-F", config, "box", "true"], check=False).returncode != 0:
            assert sshd.poll() is None
            assert time.monotonic() < deadline, "sshd does not let us in"
            time.sleep(0.5)
        yield config
        sshd.terminate()


def test_guest_of_another_machine_runs_the_tests(pytester: pytest.Pytester, ssh_config: Path):
    pytester.makepyfile(test_suite=SUITE)
    python = f"{sys.executable} -m bpfunit.plugin.gateway 6.12"
    result = pytester.runpytest_subprocess(
        f"--tx=ssh=box//ssh_config={ssh_config}//chdir={pytester.path}//python={python}",
        "--dist=each",
        "--matrix-json=m.json",
        timeout=400,
    )

    result.assert_outcomes(passed=2)
    found = json.loads((pytester.path / "m.json").read_text(encoding="utf-8"))
    [kernel] = found["kernels"]
    assert kernel["release"].startswith("6.12.")
    assert kernel["counts"] == {"passed": 2}
