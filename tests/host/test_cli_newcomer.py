"""What a newcomer meets first: each thing that can be missing, taken away for real.

The command runs as a process of its own, in an environment that lacks the thing: another ``PATH``,
a namespace without a network, a disk of two megabytes, another user.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from bpfunit.guest.accel import probe_kvm

pytestmark = pytest.mark.host

BPFUNIT = [sys.executable, "-m", "bpfunit.cli"]


def run(
    command: list[str], *, wrapper: list[str] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``bpfunit`` with a changed environment, within ``wrapper`` if there is one."""
    return subprocess.run(
        [*(wrapper or []), *BPFUNIT, *command],
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_pytest(
    directory: Path, kernel: str, *, wrapper: list[str] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a test that needs a guest, with a changed environment, within ``wrapper``."""
    (directory / "test_it.py").write_text("def test_it(): pass")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--kernel", kernel]
    return subprocess.run(
        [*(wrapper or []), *command, "test_it.py"],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def tools_without(directory: Path, *absent: str) -> str:
    """Return a ``PATH`` on which everything is but some tools."""
    directory.mkdir()
    for part in (*os.environ["PATH"].split(":"), "/usr/sbin", "/sbin"):
        for tool in Path(part).glob("*"):
            link = directory / tool.name
            if tool.name not in absent and not link.is_symlink():
                link.symlink_to(tool.resolve())
    return str(directory)


def doctor(**environment: Any) -> tuple[int, dict[str, dict[str, str]], dict[str, Any]]:
    """Return the doctor's exit code, its findings by name, and the whole document."""
    done = run(["doctor", "--json"], **environment)
    document = json.loads(done.stdout)
    return done.returncode, {f["name"]: f for f in document["findings"]}, document


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes things away as root")


def test_without_qemu_the_doctor_stops_and_names_the_package(tmp_path: Path) -> None:
    path = tools_without(tmp_path / "bin", "qemu-system-x86_64")
    code, findings, document = doctor(PATH=path)
    assert (code, document["ready"]) == (1, False)
    assert findings["qemu"]["status"] == "missing"
    assert "qemu-system-x86" in findings["qemu"]["remedy"]


def test_without_qemu_a_run_says_what_to_install(tmp_path: Path) -> None:
    path = tools_without(tmp_path / "bin", "qemu-system-x86_64")
    remedy = "no qemu-system-x86_64 in PATH; install qemu-system-x86"
    done = run(["shell", "--", "true"], PATH=path)
    assert done.returncode == 3
    assert remedy in done.stderr
    done = run_pytest(tmp_path, "6.12", PATH=path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert remedy in done.stderr


@pytest.mark.skipif(probe_kvm().usable, reason="with KVM any version of QEMU does")
def test_an_old_qemu_is_refused_for_the_kernels_that_it_breaks(tmp_path: Path) -> None:
    path = tools_without(tmp_path / "bin", "qemu-system-x86_64")
    old = Path(path, "qemu-system-x86_64")
    old.write_text("#!/bin/sh\necho QEMU emulator version 7.2.19\n")
    old.chmod(0o755)
    code, findings, document = doctor(PATH=path)
    assert code == 0, "5.10 and 6.1 still run"
    assert findings["accelerator"]["status"] == "note"
    assert "version 10 or newer" in findings["accelerator"]["remedy"]
    plan = {kernel["series"]: kernel for kernel in document["plan"]["kernels"]}
    assert plan["5.10"]["accelerator"] == "tcg"
    assert plan["6.12"]["accelerator"] == ""
    assert "corrupts kernels from 6.12 on" in plan["6.12"]["why"]
    done = run(["shell", "--", "true"], PATH=path)
    assert done.returncode == 3
    assert "install QEMU 10 or newer" in done.stderr
    done = run_pytest(tmp_path, "6.12", PATH=path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "install QEMU 10 or newer" in done.stderr


@pytest.mark.skipif(probe_kvm().usable, reason="KVM works here")
def test_without_kvm_the_doctor_says_why_and_that_it_works_all_the_same() -> None:
    code, findings, document = doctor()
    assert code == 0
    assert "software emulation works" in findings["accelerator"]["remedy"]
    assert document["plan"]["accelerator"] == "tcg"
    assert "/dev/kvm" in document["plan"]["why"]


def test_without_clang_the_doctor_notes_it_and_goes_on(tmp_path: Path) -> None:
    code, findings, _ = doctor(PATH=tools_without(tmp_path / "bin", "clang"))
    assert code == 0
    assert findings["clang"]["status"] == "note"
    assert "clang" in findings["clang"]["remedy"]


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("dnf", "dnf install qemu-system-x86-core"),
        ("pacman", "pacman -S qemu-system-x86"),
    ],
)
def test_remedies_speak_the_language_of_the_distribution(
    tmp_path: Path, manager: str, command: str
) -> None:
    path = tools_without(tmp_path / "bin", "qemu-system-x86_64", "apt-get")
    Path(path, manager).symlink_to("/bin/true")
    _, findings, _ = doctor(PATH=path)
    assert findings["qemu"]["remedy"].endswith(command)


@needs_root
def test_without_a_network_fetching_says_what_could_not_be_reached(tmp_path: Path) -> None:
    done = run(["kernels", "fetch", "6.12"], wrapper=["unshare", "-n"], BPFUNIT_CACHE=str(tmp_path))
    assert done.returncode == 3
    assert "check the network" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_pytest(
        tmp_path, "6.12", wrapper=["unshare", "-n"], BPFUNIT_CACHE=str(tmp_path / "cache")
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "check the network" in done.stderr


@needs_root
@pytest.mark.parametrize("size", ["2m", "60m"], ids=["for the index", "for the packages"])
def test_a_full_disk_says_where_and_how_to_go_elsewhere(tmp_path: Path, size: str) -> None:
    mount = f'mount -t tmpfs -o size={size} small "$BPFUNIT_CACHE" && exec "$@"'
    wrapper = ["unshare", "-m", "sh", "-c", mount, "sh"]
    done = run(["kernels", "fetch", "5.10"], wrapper=wrapper, BPFUNIT_CACHE=str(tmp_path))
    assert done.returncode == 3
    assert "No space left" in done.stderr or "are free" in done.stderr
    assert "free some space or set $BPFUNIT_CACHE" in done.stderr
    assert "Traceback" not in done.stderr


@needs_root
def test_a_full_temporary_directory_is_named(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mount = 'mount -t tmpfs -o size=1m small "$TMPDIR" && exec "$@"'
    wrapper = ["unshare", "-m", "sh", "-c", mount, "sh"]
    done = run(["shell", "--", "true"], wrapper=wrapper, TMPDIR=str(tmp_path))
    assert done.returncode == 3
    assert f"no space left in {tmp_path}" in done.stderr
    assert "set $TMPDIR or $BPFUNIT_CACHE to a place with room" in done.stderr
    directory = tmp_path_factory.mktemp("tests")
    done = run_pytest(directory, "6.12", wrapper=wrapper, TMPDIR=str(tmp_path))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "set $TMPDIR or $BPFUNIT_CACHE to a place with room" in done.stderr
    done = run(["doctor"], wrapper=wrapper, TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert "point TMPDIR to a directory with room" in done.stdout


@needs_root
def test_a_small_disk_is_noted_by_the_doctor(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=2m small "$BPFUNIT_CACHE" && exec "$@"'
    wrapper = ["unshare", "-m", "sh", "-c", mount, "sh"]
    done = run(["doctor"], wrapper=wrapper, BPFUNIT_CACHE=str(tmp_path))
    assert "2.0 MiB free, 3 GiB wanted" in done.stdout
    assert "bpfunit kernels remove" in done.stdout


def as_another_user(*command: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run a module of this Python as a user who owns nothing, with a cache."""
    wrapper = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    python = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    for one in (sys.executable, python):  # ours may lie in root's home
        probe = [*wrapper, "test", "-x", one]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip(f"another user may run neither {sys.executable} nor {python}")
    return subprocess.run(
        [*wrapper, one, "-m", *command],
        env={
            **os.environ,
            "BPFUNIT_CACHE": str(cache),
            "COLUMNS": "200",
            "HOME": "/nonexistent",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@needs_root
@pytest.mark.parametrize("closed", [False, True], ids=["not writable", "closed"])
def test_another_user_is_told_that_the_cache_is_not_his(closed: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:  # pytest's are closed to others
        cache = Path(directory) / "cache"
        cache.mkdir()
        Path(directory).chmod(0o700 if closed else 0o755)
        done = as_another_user("bpfunit.cli", "doctor", cache=cache)
    assert done.returncode == 1, done.stderr
    assert "is not writable" in done.stdout
    assert "point BPFUNIT_CACHE to a directory that you may write" in done.stdout


@needs_root
@pytest.mark.parametrize(
    "command",
    [("bpfunit.cli", "kernels", "list"), ("pytest", "-p", "no:cacheprovider", "--kernel", "6.12")],
    ids=["bpfunit", "pytest"],
)
def test_another_users_cache_is_an_error_that_says_what_to_do(command: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory) / "cache"
        cache.mkdir()
        done = as_another_user(*command, cache=cache)
    assert done.returncode not in (0, 5)  # 5 is pytest's for no tests
    said = done.stdout + done.stderr
    assert f"{directory} is closed to user 65534" in said
    assert "point BPFUNIT_CACHE to a directory that you may write" in said
    assert "Traceback" not in said


def test_a_test_that_needs_a_kernel_and_has_none_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\npytestmark = pytest.mark.guest\ndef test_it(): pass"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "give --kernel 6.12" in done.stdout


def test_an_unknown_kernel_lists_the_known_ones() -> None:
    done = run(["kernels", "fetch", "4.4"])
    assert done.returncode == 3
    assert done.stderr.startswith("bpfunit: resolve kernel: no '4.4'; there is: ")
    assert "6.12" in done.stderr


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("4.4", "resolve kernel: no '4.4'; there is: 5.10 ("),
        ("7.0", "resolve kernel 7.0: the archive has kept linux-binary"),
        ("./no/vmlinuz", "no/vmlinuz"),
    ],
)
def test_pytest_says_why_there_is_no_such_kernel(tmp_path: Path, kernel: str, said: str) -> None:
    done = run_pytest(tmp_path, kernel)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_without_its_data_is_told_to_be_reinstalled(tmp_path: Path) -> None:
    """Look at a copy of the package that lost the module's source and the catalogue."""
    package = Path(sys.modules["bpfunit"].__file__ or "").parent
    shutil.copytree(package, tmp_path / "bpfunit", ignore=shutil.ignore_patterns("_vm"))
    code = (
        "from bpfunit.cli._checks import check_package_data as check; "
        "found = check(); print(found.status, found.remedy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "missing reinstall: pip install --force-reinstall bpfunit"
