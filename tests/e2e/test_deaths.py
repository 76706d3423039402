"""Guests that really die, each in its own way, and what the run says of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.host
pytest_plugins = ["pytester"]

KERNEL = os.environ.get("BPFUNIT_E2E_KERNEL", "6.12")
LIMIT = 600  # seconds for any one run here; a machine without KVM that is busy takes its time


def run_in_guest(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--kernel", KERNEL, *arguments, timeout=LIMIT
    )


def start_in_guest(pytester: pytest.Pytester) -> subprocess.Popen[bytes]:
    """Start a run whose only test tells that it runs, and then sleeps."""
    pytester.makepyfile(
        """
        import os, time

        def test_sleeps():
            os.write(os.open("/dev/console", os.O_WRONLY), b"the test runs\\n")
            time.sleep(500)
        """
    )
    environment = dict(os.environ, TMPDIR=str(pytester.path))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--kernel", KERNEL]
    with (pytester.path / "output").open("wb") as output:
        return subprocess.Popen(
            command, cwd=pytester.path, env=environment, stdout=output, stderr=output
        )


def wait_for(what: str, condition: object, seconds: float = LIMIT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)


def test_runs(pytester: pytest.Pytester) -> bool:
    return any(
        b"the test runs" in console.read_bytes()
        for console in pytester.path.glob("bpfunit-*/*/*/console")
    )


test_runs.__test__ = False  # type: ignore[attr-defined]


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def assert_nothing_is_left(pytester: pytest.Pytester, processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    wait_for("directories removed", lambda: not list(pytester.path.glob("bpfunit-*")), 10)


def test_a_qemu_that_does_not_start_is_told_in_its_own_words(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(): pass")
    result = run_in_guest(pytester, "--guest-qemu-arg=-no-such-option", "--guest-restarts=0")
    assert result.ret == 70
    result.stdout.fnmatch_lines(["*QEMU did not start: *-no-such-option: invalid option*"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_panic_out_of_memory_and_endless_test_are_named_and_the_rest_runs(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import os, time
        from pathlib import Path

        def test_before(): pass

        def test_panics():
            Path("/proc/sysrq-trigger").write_text("c")

        def test_exhausts_memory():
            Path("/proc/self/oom_score_adj").write_text("1000")
            held = []
            while True:
                held.append(b"x" * (1 << 24))

        def test_never_ends():
            time.sleep(1000)

        def test_after(): pass
        """
    )
    result = run_in_guest(
        pytester, "--guest-test-timeout=30", "--matrix-json=matrix.json", "--guest-memory=512"
    )
    assert result.ret == 70
    rows = json.loads((pytester.path / "matrix.json").read_text())["tests"]
    deaths = {}
    for row in rows:
        (cell,) = row["outcomes"].values()
        deaths[row["id"].rpartition("::")[2]] = (cell["outcome"], cell["death"])
    assert deaths == {
        "test_before": ("passed", ""),
        "test_panics": ("crashed", "panic"),
        "test_exhausts_memory": ("crashed", "out_of_memory"),
        "test_never_ends": ("crashed", "test_timeout"),
        "test_after": ("passed", ""),
    }
    result.stdout.fnmatch_lines_random(
        [
            "*Last words of the guest*",
            "*sysrq: Trigger a crash*",
            "*Call Trace:*",
            "*Out of memory: Killed process*",
            "*line * in test_never_ends*",
        ]
    )


def test_hung_guest_is_killed_and_its_kernel_says_where_it_hung(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import os
        from pathlib import Path

        def test_starves_the_guest():
            Path("/proc/sys/kernel/sched_rt_runtime_us").write_text("-1")
            # 6.12 and newer keep a share of each processor for ordinary tasks, unless told not to
            for server in Path("/sys/kernel/debug/sched/fair_server").glob("*/runtime"):
                server.write_text("0")
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
            while True:
                pass
        """
    )
    result = run_in_guest(pytester, "--guest-timeout=20", "--guest-restarts=0")
    assert result.ret == 70
    result.stdout.fnmatch_lines(
        [
            "*guest hangs: no sign of life for 20 s*while this test ran*",
            "*Kernel panic - not syncing: NMI*",
        ]
    )


def test_killed_qemu_is_told_from_a_failing_test(pytester: pytest.Pytester) -> None:
    process = start_in_guest(pytester)
    try:
        wait_for("the test runs", lambda: test_runs(pytester))
        (qemu,) = [one for one in descendants(process) if "qemu" in one.name()]
        qemu.kill()
        assert process.wait(LIMIT) == 70
    finally:
        process.kill()
    assert "QEMU killed: by SIGKILL" in (pytester.path / "output").read_text()


def test_guest_that_never_boots_ends_the_run_and_is_not_green(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile("def test_passes(): pass")
    result = run_in_guest(
        pytester, "--guest-append=init=/nothing rdinit=/nothing panic=0", "--guest-boot-timeout=20",
        "--guest-restarts=0",
    )  # fmt: skip
    assert result.ret == 70
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*no test was collected*"])


def test_worker_that_cannot_start_says_why(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_passes(): pass")
    pytester.makeconftest("import os\nif os.environ.get('BPFUNIT_GUEST'): os._exit(3)\n")
    result = run_in_guest(pytester, "--guest-restarts=0")
    assert result.ret == 70
    result.stdout.fnmatch_lines(["*worker ended: the worker ended with status 3*"])


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_survives_the_end_of_pytest(pytester: pytest.Pytester, sig: signal.Signals) -> None:
    process = start_in_guest(pytester)
    try:
        wait_for("the test runs", lambda: test_runs(pytester))
        processes = descendants(process)
        assert any("qemu" in one.name() for one in processes)
        process.send_signal(sig)
        assert process.wait(60) != 0
    finally:
        process.kill()
    assert_nothing_is_left(pytester, processes)


def test_kvm_device_without_processor_support_is_not_used(tmp_path: Path) -> None:
    from bpfunit.guest.accel import choose, probe_kvm

    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu vme sse2\n")
    found = probe_kvm(device=Path("/dev/null"), cpuinfo=cpuinfo)
    assert not found.usable
    assert "neither vmx nor svm" in found.reason
    assert choose("auto", "5.10.0-46-amd64", found) == "tcg"


def test_missing_kvm_device_is_named(tmp_path: Path) -> None:
    from bpfunit.guest.accel import probe_kvm

    assert probe_kvm(device=tmp_path / "kvm").reason == f"there is no {tmp_path / 'kvm'}"
