"""An ordinary user: no root privilege anywhere on the host, root in the guest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfunit import kernels
from bpfunit._paths import cache_dir

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user"),
]

ROOT = Path(__file__).parents[2]
NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]

SUITE = """
import os
import pytest

pytestmark = pytest.mark.guest

def test_root_in_the_guest_reads_the_users_files_and_loads_programs(bpf_load):
    assert os.geteuid() == 0
    obj = bpf_load({object!r})
    assert obj.programs.cgroup_connect4_prog.run("192.0.2.1:80").untouched
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """Make a home directory of that user, with a kernel in its cache, so that nothing is fetched.

    It is no directory of pytest's, as root's are closed to other users.
    """
    release = kernels.resolve("6.12").release
    with tempfile.TemporaryDirectory(prefix="bpfunit-user-") as name:
        home = Path(name)
        for part in ("kernels", "modules"):
            for found in (cache_dir() / part).glob(f"{release}*"):
                if found.is_dir():
                    shutil.copytree(found, home / "cache" / part / found.name, symlinks=True)
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", home], check=True)
        yield home


def run_as_nobody(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HOME": str(home),
        "TMPDIR": str(home),
        "BPFUNIT_CACHE": str(home / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [*AS_NOBODY, sys.executable, *command],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_an_ordinary_user_runs_tests_in_a_guest(home: Path) -> None:
    if subprocess.run([*AS_NOBODY, "test", "-x", sys.executable], check=False).returncode != 0:
        pytest.skip(f"another user may not run {sys.executable}, which lies in root's home")
    target = shutil.copy(ROOT / "bpf/build/hook.bpf.o", home)
    (home / "test_user.py").write_text(SUITE.format(object=target))
    done = run_as_nobody(
        home, "-m", "pytest", "-p", "no:cacheprovider", "--kernel", "6.12", "test_user.py"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
