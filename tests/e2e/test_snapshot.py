"""Guests restored from one snapshot are new ones in all that a test can tell."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from xml.etree import ElementTree

import execnet
import pytest

from bpfunit.guest.spec import GuestSpec
from bpfunit.guest.tsc import tsc_khz
from bpfunit.kernels import resolve

pytestmark = pytest.mark.host
pytest_plugins = ["pytester"]

KERNEL = os.environ.get("BPFUNIT_E2E_KERNEL", "6.12")
MEMORY = 896


@pytest.fixture(autouse=True)
def _own_cache(cache_of_the_tests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spoil no snapshot but our own: another run may be using those of the machine."""
    monkeypatch.setenv("BPFUNIT_CACHE", str(cache_of_the_tests))


TESTS = """
    import json, os, random, time
    from pathlib import Path

    import pytest

    def test_says_what_it_sees(record_property):
        seen = {
            "kernel_random": os.urandom(16).hex(),
            "uuid": Path("/proc/sys/kernel/random/uuid").read_text(),
            "python_random": random.random(),
            "time": time.time(),
            "directory": os.getcwd(),
            "variable": os.environ.get("BPFUNIT_OF_THIS_RUN"),
            "zone": time.strftime("%Z"),
            "file": Path("of_this_run").read_text(),
            "restored": "bpfunit.snapshot" in Path("/proc/cmdline").read_text().split(),
            "initramfs": os.path.exists("/warm"),
            "root": Path("/proc/1", "root").stat().st_ino == os.stat("/").st_ino,
            "user_namespace": os.spawnlp(os.P_WAIT, "unshare", "unshare", "-U", "true"),
        }
        record_property("seen", json.dumps(seen))
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    command = ["-p", "no:cacheprovider", "--kernel", KERNEL, f"--guest-memory={MEMORY}"]
    return pytester.runpytest_subprocess(*command, *arguments, timeout=600)


def seen(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, number: int
) -> dict[str, object]:
    monkeypatch.setenv("BPFUNIT_OF_THIS_RUN", str(number))
    monkeypatch.setenv("TZ", f"AAA{number}")
    (pytester.path / "of_this_run").write_text(str(number))
    result = run(pytester, "--junitxml=junit.xml")
    assert result.ret == 0, str(result.stdout)
    (found,) = ElementTree.parse(pytester.path / "junit.xml").iter("property")
    return json.loads(found.attrib["value"])


def test_two_guests_of_one_snapshot_share_nothing_of_the_past(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(TESTS)
    first, second = (seen(pytester, monkeypatch, number) for number in (1, 2))
    for what in ("kernel_random", "uuid", "python_random"):
        assert first[what] != second[what]
    for number, one in ((1, first), (2, second)):
        assert one["variable"] == one["file"] == str(number)
        assert one["zone"] == "AAA"
        assert one["directory"] == str(pytester.path)
        assert one["restored"]
        assert not one["initramfs"]
        assert one["root"]
        assert one["user_namespace"] == 0  # refused to a process whose root is not the namespace's
    assert abs(time.time() - float(str(second["time"]))) < 120


def test_a_snapshot_that_does_not_load_is_named_and_the_guest_boots(
    pytester: pytest.Pytester, cache_of_the_tests: Path
) -> None:
    pytester.makepyfile("def test_runs(): pass")
    assert run(pytester, "--guest-cpus=2").ret == 0
    slots = (cache_of_the_tests / "snapshots").glob("*/meta.json")
    slot = max((path.parent for path in slots), key=lambda path: path.stat().st_mtime)
    state = (slot / "state").read_bytes()
    (slot / "state").write_bytes(state[: len(state) // 2])
    try:
        assert run(pytester, "--guest-cpus=2").ret == 0
        again = run(pytester, "--guest-cpus=2")
        assert again.ret == 0
        again.stdout.fnmatch_lines([f"*boots since its snapshot failed: *; remove {slot} to *"])
    finally:
        for name in ("failed", "state", "meta.json"):
            (slot / name).unlink(missing_ok=True)


def test_a_guest_whose_clock_runs_wrong_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that is told half its counter's rate counts two seconds for each of ours."""
    rate = tsc_khz()
    assert rate is not None
    monkeypatch.setattr("bpfunit.guest.spec.tsc_khz", lambda: rate // 2)
    xspec = GuestSpec(resolve(KERNEL), memory=640).prepare(tmp_path / "guest")
    described = json.loads((tmp_path / "guest" / "guest.json").read_text())
    slot = Path(described["snapshot"]["slot"])
    group = execnet.Group()
    try:
        gateway = group.makegateway(xspec)  # the guest boots all the same
        assert gateway.remote_exec("channel.send(1)").receive(timeout=300) == 1
        found = re.search(r"runs at ([0-9.]+) times ours", (slot / "failed").read_text())
        assert found is not None
        assert float(found[1]) == pytest.approx(2, abs=0.3)
    finally:
        group.terminate(timeout=5)
        shutil.rmtree(slot)


def test_it_can_be_switched_off(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPFUNIT_SNAPSHOT", "0")
    pytester.makepyfile("def test_boots(): assert 'bpfunit.dir=' in open('/proc/cmdline').read()")
    assert run(pytester).ret == 0
