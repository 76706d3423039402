"""When a guest's snapshot is still good, and what becomes of one that is not."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpfunit.guest import snapshot, tsc, warm
from bpfunit.guest.supervisor.snapshots import _copy_what_is_used

pytestmark = pytest.mark.host

CONFIGURATION = {"release": "6.12.0-test", "memory": 1024}
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "BPFUNIT_SOMETHING": "1"}


@pytest.fixture
def initramfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BPFUNIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "initramfs"
    path.write_bytes(b"what a guest boots")
    return path


def saved(found: snapshot.Snapshot) -> Path:
    """Leave in a slot what a supervisor leaves there."""
    (found.slot / "ram").write_bytes(b"memory")
    (found.slot / "state").write_bytes(b"devices")
    return found.slot


def test_a_snapshot_is_ready_once_it_was_saved(initramfs: Path) -> None:
    first = snapshot.find(CONFIGURATION, ENVIRONMENT, initramfs)
    assert not first.ready
    saved(first)
    again = snapshot.find(CONFIGURATION, ENVIRONMENT, initramfs)
    assert again.ready
    assert again.slot == first.slot


def test_another_environment_of_the_interpreter_is_another_snapshot(initramfs: Path) -> None:
    plain = snapshot.find(CONFIGURATION, ENVIRONMENT, initramfs)
    assert (
        snapshot.find(CONFIGURATION, {**ENVIRONMENT, "BPFUNIT_SOMETHING": "2"}, initramfs).slot
        == plain.slot
    )
    seeded = snapshot.find(CONFIGURATION, {**ENVIRONMENT, "PYTHONHASHSEED": "1"}, initramfs)
    assert seeded.slot != plain.slot
    assert (
        snapshot.find({**CONFIGURATION, "memory": 512}, ENVIRONMENT, initramfs).slot != plain.slot
    )


def test_a_changed_module_makes_it_stale(initramfs: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "sitecustomize.py"  # every interpreter imports it
    plugin.write_text("answer = 1\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    slot = saved(snapshot.find(CONFIGURATION, environment, initramfs))
    assert str(plugin) in json.loads((slot / "meta.json").read_text())["files"]
    assert snapshot.find(CONFIGURATION, environment, initramfs).ready
    plugin.write_text("answer = 'another'\n")
    assert not snapshot.find(CONFIGURATION, environment, initramfs).ready
    assert not (slot / "ram").exists()


def test_the_initramfs_is_there_for_whoever_makes_the_snapshot_alone(initramfs: Path) -> None:
    slot = saved(snapshot.find(CONFIGURATION, ENVIRONMENT, initramfs))
    (slot / "initramfs").unlink()  # as who made it does
    assert snapshot.find(CONFIGURATION, ENVIRONMENT, initramfs).ready
    assert not (slot / "initramfs").exists()
    (slot / "state").unlink()
    assert not snapshot.find(CONFIGURATION, ENVIRONMENT, initramfs).ready
    assert (slot / "initramfs").read_bytes().startswith(initramfs.read_bytes())


def test_pages_that_hold_nothing_take_no_room(tmp_path: Path) -> None:
    pages = [bytes(4096), os.urandom(4096), b"\xcc" * 4096, bytes(4095) + b"\1"]
    pages += [bytes(4096)] * 200 + [b"\xcc" * 4095 + b"\xcd"]
    (tmp_path / "all").write_bytes(b"".join(pages))
    _copy_what_is_used(tmp_path / "all", tmp_path / "used")
    kept = [page if page != b"\xcc" * 4096 else bytes(4096) for page in pages]
    assert (tmp_path / "used").read_bytes() == b"".join(kept)
    assert (tmp_path / "used").stat().st_blocks <= 3 * 8


def test_a_library_without_what_debuggers_read_is_the_same_to_a_process(tmp_path: Path) -> None:
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    whole, part = tmp_path / "whole.so", tmp_path / "part.so"
    subprocess.run(["cc", "-g3", "-shared", "-fPIC", "-o", whole, source], check=True)
    part.write_bytes(snapshot.loaded(whole.read_bytes()))
    assert part.stat().st_size < whole.stat().st_size
    assert ctypes.CDLL(str(part)).answer() == 42
    assert snapshot.loaded(b"\x7fELF, or not") == b"\x7fELF, or not"


def test_why_one_failed_is_told_for_an_hour_or_until_something_changes(initramfs: Path) -> None:
    slot = saved(snapshot.find(CONFIGURATION, ENVIRONMENT, initramfs))
    (slot / "failed").write_text("no reason")
    assert snapshot.find(CONFIGURATION, ENVIRONMENT, initramfs).failed == "no reason"
    changed = snapshot.find({**CONFIGURATION, "boots": "another kernel"}, ENVIRONMENT, initramfs)
    assert not changed.failed
    os.utime(slot / "failed", (time.time() - 4000,) * 2)
    assert not snapshot.find(CONFIGURATION, ENVIRONMENT, initramfs).failed


def test_one_that_nobody_uses_is_removed_when_another_is_made(initramfs: Path) -> None:
    old = saved(snapshot.find(CONFIGURATION, ENVIRONMENT, initramfs))
    kept = saved(snapshot.find({**CONFIGURATION, "memory": 512}, ENVIRONMENT, initramfs))
    long_ago = time.time() - 30 * 86400
    os.utime(old, (long_ago, long_ago))
    snapshot.find({**CONFIGURATION, "memory": 256}, ENVIRONMENT, initramfs)
    assert not old.exists()
    assert kept.exists()


def test_pytest_itself_imports_the_plugins_and_rewrites_their_assertions() -> None:
    code = """
import runpy, sys
path = sys.argv.pop()
runpy.run_path(path)["warm"]()
print(type(sys.modules["bpfunit"].__loader__).__name__, "hypothesis" in sys.modules)
"""
    command = [sys.executable, "-c", code, warm.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["AssertionRewritingHook", "True"]


def test_bytecode_comes_with_its_source_and_libraries_by_the_names_they_are_loaded_by(
    initramfs: Path,
) -> None:
    """Python passes over bytecode without a source; the loader knows libraries by soname."""
    slot = snapshot.find(CONFIGURATION, ENVIRONMENT, initramfs).slot
    files = json.loads((slot / "meta.json").read_text())["files"]
    compiled = [name for name in files if name.endswith(f"{sys.implementation.cache_tag}.pyc")]
    assert len(compiled) > 100
    for name in compiled:
        assert importlib.util.source_from_cache(name) in files
    archive = (slot / "initramfs").read_bytes()
    for loaded in ("lib64/ld-linux-x86-64.so.2", "libc.so.6", sys.executable.lstrip("/")):
        assert f"{loaded}\0".encode() in archive


def test_the_counters_rate_is_the_same_on_an_idle_and_on_a_busy_machine() -> None:
    idle = tsc.tsc_khz()
    assert idle is not None
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        tsc.tsc_khz.cache_clear()
        assert tsc.tsc_khz() == pytest.approx(idle, rel=0.01)
    finally:
        for one in busy:
            one.kill()
            one.wait()
