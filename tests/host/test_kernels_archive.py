"""Fetching from an archive: signatures, pins, the cache. Real apt on a small archive, offline."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kernels_archive import SUITE, Archive, Key, catalogue_text

from bpfunit._arch import ARCHITECTURES
from bpfunit.kernels import (
    FetchError,
    KernelsError,
    PinVanishedError,
    UnknownKernelError,
    _fetch,
    _foreign,
    inventory,
    load_catalogue,
    remove,
    resolve,
    resolve_many,
    update_pins,
)
from bpfunit.kernels._progress import Reporter

pytestmark = pytest.mark.host

OLD = "6.12.5+deb12-amd64"
NEW = "6.12.10+deb12-amd64"
SPLIT = "7.3.4+deb13-amd64"


@pytest.fixture(scope="module")
def key():
    key = Key()
    yield key
    key.close()


@pytest.fixture
def archive(tmp_path, monkeypatch, key):
    """Return an empty archive, with cache and catalogue that go with it."""
    archive = Archive(tmp_path / "mirror", key)
    monkeypatch.setenv("BPFUNIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BPFUNIT_MIRROR", archive.uri)
    monkeypatch.setenv("BPFUNIT_KERNELS", str(tmp_path / "kernels.toml"))
    monkeypatch.delenv("BPFUNIT_KEYRING", raising=False)
    monkeypatch.delenv("BPFUNIT_STRICT_PINS", raising=False)
    text = catalogue_text(key.keyring, f"{OLD} 6.12.5-1 headers", f"{SPLIT} 7.3.4-1")
    (tmp_path / "kernels.toml").write_text(text, encoding="utf-8")
    return archive


@pytest.fixture
def kernels_dir(tmp_path):
    return tmp_path / "cache/kernels"


def left_in(directory):
    """Return what lies in a directory of the cache, without locks."""
    paths = directory.iterdir() if directory.exists() else ()
    return [path.name for path in paths if not path.name.endswith(".lock")]


def test_a_kernel_of_another_architecture_comes_with_build_tools_of_this_one(archive, tmp_path):
    release = "6.12.5+deb12-arm64"
    text = catalogue_text(archive.key.keyring, f"{OLD} 6.12.5-1", f"{release} 6.12.5-1 headers")
    (tmp_path / "kernels.toml").write_text(text, encoding="utf-8")
    archive.add_kernel(OLD, "6.12.5-1")
    archive.add_arm64_kernel(release, "6.12.5-1")
    archive.publish()
    catalogue = load_catalogue()
    entry = catalogue.find("6.12/arm64")
    assert entry is not None
    assert (entry.name, entry.release, entry.flavour) == ("6.12/arm64", release, "arm64")
    plan = _fetch.find_release(catalogue, entry, release)
    assert plan is not None
    with Reporter() as reporter:
        record = _fetch.fetch(catalogue, entry, plan, reporter.task("test"))
    assert (record.name, record.architecture) == ("6.12/arm64", "aarch64")
    root = tmp_path / "cache/kernels" / release
    tool = root / "usr/lib/linux-kbuild-6.12.5+deb12/scripts/fixdep"
    assert tool.read_text() == "runs on amd64"
    common = root / "usr/src/linux-headers-6.12.5+deb12-common/arch"
    assert [path.name for path in common.iterdir()] == ["arm64"]
    newest = _fetch.find_newest(catalogue, entry)
    assert newest is not None
    assert newest.packages == plan.packages
    assert resolve("6.12").release == OLD
    assert [status.record is not None for status in inventory()] == [True, True]
    remove("6.12")
    assert [status.record is not None for status in inventory()] == [False, True]
    remove("6.12/arm64")
    assert left_in(tmp_path / "cache/kernels") == []


def test_another_architecture_needs_what_the_catalogue_says_of_it(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with Reporter() as reporter, pytest.raises(KernelsError, match=r"has no table \[foreign\]"):
        _foreign.emulator(ARCHITECTURES["aarch64"], reporter.task("test"))
    with pytest.raises(KernelsError, match="they need the Python that runs here"):
        _foreign.userland_dir(ARCHITECTURES["aarch64"])


def test_a_kernel_is_unpacked_as_vng_and_kbuild_want_it(archive, kernels_dir):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    kernel = resolve("6.12")
    root = kernels_dir / OLD
    assert (kernel.series, kernel.release, kernel.note) == ("6.12", OLD, "")
    assert kernel.source == f"{SUITE} 6.12.5-1"
    assert kernel.image == root / f"boot/vmlinuz-{OLD}"
    assert kernel.image.read_text() == f"image of {OLD}"
    assert kernel.modules_root == root
    modules = root / "lib/modules" / OLD
    assert (modules / "modules.dep").is_file()
    assert (modules / "kernel/net/README").is_file()
    assert not (modules / "kernel/sound").exists()
    assert not (root / "usr/share").exists()
    common = root / "usr/src/linux-headers-6.12.5+deb12-common"
    assert sorted(path.name for path in (common / "arch").iterdir()) == ["x86"]
    assert (modules / "source").resolve() == common
    assert (modules / "build").resolve() == kernel.headers
    where = ["make", "-s", "-C", str(kernel.headers), "where"]
    made = subprocess.run(where, capture_output=True)
    assert made.stdout.decode() == f"common: {kernel.headers}\n", made.stderr


def test_a_kernel_in_pieces_is_put_together(archive):
    archive.add_split_kernel(SPLIT, "7.3.4-1")
    archive.publish()
    kernel = resolve("7.3")
    assert kernel.modules_root is not None
    assert kernel.image.read_text() == f"image of {SPLIT}"
    assert kernel.headers is None
    assert (kernel.modules_root / "lib/modules" / SPLIT / "kernel/net/README").is_file()
    assert not (kernel.modules_root / "usr/lib/modules").exists()


def test_a_cached_kernel_needs_neither_archive_nor_apt_nor_time(archive, monkeypatch):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    first = resolve("6.12")
    shutil.rmtree(archive.root)
    monkeypatch.setenv("PATH", "/nonexistent")
    load_catalogue()
    started = time.perf_counter()
    assert resolve("6.12") == first
    assert resolve(OLD) == first
    assert time.perf_counter() - started < 0.1


def test_a_tampered_package_is_refused_and_leaves_nothing(archive, kernels_dir):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    package = archive.packages[f"linux-image-{OLD}"]
    data = bytearray(package.read_bytes())
    at = data.index(b"image of")
    data[at : at + 5] = b"IMAGE"
    package.write_bytes(data)
    with pytest.raises(FetchError, match=r"(?i)hash"):
        resolve("6.12")
    assert left_in(kernels_dir) == []


def test_a_tampered_index_is_refused(archive, kernels_dir):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    archive.index.write_text(archive.index.read_text().replace("6.12.5-1", "6.12.6-1"))
    with pytest.raises(FetchError, match=r"(?i)hash|unexpected size"):
        resolve("6.12")
    assert left_in(kernels_dir) == []


def test_an_archive_signed_by_another_key_is_refused(archive):
    other = Key()
    try:
        archive.add_kernel(OLD, "6.12.5-1")
        archive.publish(key=other)
    finally:
        other.close()
    with pytest.raises(FetchError, match=r"NO_PUBKEY|Missing key|is not signed"):
        resolve("6.12")


def test_an_unsigned_archive_is_refused(archive):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    signed = archive.dists / "InRelease"
    text = signed.read_text().split("\n\n", 1)[1].split("-----BEGIN PGP SIGNATURE")[0]
    (archive.dists / "Release").write_text(text)
    signed.unlink()
    with pytest.raises(FetchError, match="not signed"):
        resolve("6.12")


def test_a_missing_keyring_is_said_before_anything_is_fetched(archive, monkeypatch, tmp_path):
    monkeypatch.setenv("BPFUNIT_KEYRING", str(tmp_path / "none.gpg"))
    with pytest.raises(FetchError, match=r"no keyring at .*none\.gpg; install debian-archive-key"):
        resolve("6.12")


def test_an_archive_that_cannot_be_reached_is_named(archive, monkeypatch):
    monkeypatch.setenv("BPFUNIT_MIRROR", "http://127.0.0.1:9/gone")
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:9/gone/debian: .*\$BPFUNIT_MIRROR"):
        resolve("6.12")


def test_a_vanished_pin_becomes_the_newest_release_with_headers_and_says_so(archive):
    archive.add_kernel("6.12.9+deb12-amd64", "6.12.9-1")
    archive.add_kernel(NEW, "6.12.10-1")
    archive.add_kernel("6.12.11+deb12-amd64", "6.12.11-1", headers=False)
    archive.add_kernel("6.120.1+deb12-amd64", "6.120.1-1")
    archive.add_kernel("6.12.12+deb12-rt-amd64", "6.12.12-1")
    archive.publish()
    kernel = resolve("6.12")
    assert kernel.release == NEW
    assert kernel.headers is not None
    assert OLD in kernel.note
    assert "gone from the archive" in kernel.note
    assert "bpfunit kernels update" in kernel.note
    shutil.rmtree(archive.root)
    assert resolve("6.12") == kernel
    status = inventory()[0]
    assert status.record is not None
    assert (status.substitute, status.record.release) == (True, NEW)


def test_strict_pins_fail_instead(archive, monkeypatch, kernels_dir):
    archive.add_kernel(NEW, "6.12.10-1")
    archive.publish()
    with pytest.raises(
        PinVanishedError, match=rf"{OLD} is gone from test.*{NEW}".replace("+", r"\+")
    ):
        resolve("6.12", strict=True)
    monkeypatch.setenv("BPFUNIT_STRICT_PINS", "1")
    with pytest.raises(PinVanishedError):
        resolve("6.12")
    assert left_in(kernels_dir) == []
    assert resolve("6.12", strict=False).release == NEW
    with pytest.raises(PinVanishedError):
        resolve("6.12")


def test_a_pin_that_appears_after_the_index_was_fetched_is_found(archive, monkeypatch):
    archive.add_split_kernel(SPLIT, "7.3.4-1")
    archive.publish()
    resolve("7.3")
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    monkeypatch.setattr("bpfunit.kernels._fetch.RECHECK_AGE_S", 0)
    assert resolve("6.12").release == OLD


def test_a_series_that_is_gone_altogether_says_what_to_do(archive):
    archive.add_kernel("6.1.1-amd64", "6.1.1-1")
    archive.publish()
    with pytest.raises(PinVanishedError, match=r"gone from test, and so is every other release"):
        resolve("6.12")


def test_an_image_without_its_modules_is_passed_over(archive):
    archive.add_split_kernel("7.3.9+deb13-amd64", "7.3.9-1", modules=False)
    archive.add_split_kernel("7.3.5+deb13-amd64", "7.3.5-1")
    archive.publish()
    assert resolve("7.3").release == "7.3.5+deb13-amd64"


def test_a_pinned_image_without_its_modules_says_what_is_missing(archive):
    archive.add_split_kernel(SPLIT, "7.3.4-1", modules=False)
    archive.publish()
    with pytest.raises(FetchError, match=r"depends on linux-modules-7\.3\.4.*does not have"):
        resolve("7.3")


def test_an_image_without_linux_base_still_unpacks(archive):
    archive.add_split_kernel(SPLIT, "7.3.4-1")
    archive.drop("linux-base-")
    archive.publish()
    kernel = resolve("7.3")
    assert kernel.modules_root is not None
    assert (kernel.modules_root / "lib/modules" / SPLIT / "modules.builtin").read_text() == ""


def test_an_exact_release_that_is_not_pinned_is_found(archive):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.add_kernel(NEW, "6.12.10-1", headers=False)
    archive.publish()
    kernel = resolve(NEW)
    assert (kernel.release, kernel.headers, kernel.note) == (NEW, None, "")
    assert resolve("6.12.10+deb12") == kernel
    record = inventory()[-1].record
    assert record is not None
    assert record.release == NEW


@pytest.mark.parametrize("spec", ["6.13", "6.12.99-amd64", "nonsense", "7"])
def test_an_unknown_kernel_lists_what_there_is(archive, spec):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    with pytest.raises(UnknownKernelError) as error:
        resolve(spec)
    assert str(error.value).startswith(
        f"resolve kernel: no {spec!r}; there is: 6.12 ({OLD}), 7.3 ("
    )


def test_a_package_without_an_image_leaves_nothing(archive, kernels_dir):
    archive.add(f"linux-image-{OLD}", "6.12.5-1", {f"lib/modules/{OLD}/kernel/README": ""})
    archive.add_headers(OLD, "6.12.5-1")
    archive.publish()
    with pytest.raises(FetchError, match=r"expected boot/vmlinuz-.* found none"):
        resolve("6.12")
    assert left_in(kernels_dir) == []


def start_fetch_that_hangs(archive):
    """Start a fetch in a process group of its own; return it once it is unpacking and waits."""
    tools = archive.root / "bin"
    tools.mkdir()
    (tools / "dpkg-deb").write_text(f"#!/bin/sh\ntouch {tools}/started\nexec sleep 60\n")
    (tools / "dpkg-deb").chmod(0o755)
    # Not subprocess.Popen(process_group=0): Python 3.10 lacks it.
    fetcher = subprocess.Popen(
        [sys.executable, "-m", "bpfunit.kernels", "fetch", "6.12"],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tools / "started").exists():
        assert time.monotonic() < deadline, "the fetch never came to unpacking"
        time.sleep(0.05)
    return fetcher


def test_a_killed_fetch_leaves_nothing_that_counts(archive, kernels_dir):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    with start_fetch_that_hangs(archive) as fetcher:
        os.killpg(fetcher.pid, signal.SIGKILL)
    assert [name for name in left_in(kernels_dir) if ".tmp-" in name] != []
    assert inventory()[0].record is None
    assert resolve("6.12").release == OLD
    assert left_in(kernels_dir) == [OLD]


def test_an_interrupted_fetch_leaves_nothing(archive, kernels_dir):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    with start_fetch_that_hangs(archive) as fetcher:
        os.killpg(fetcher.pid, signal.SIGINT)
        assert fetcher.wait(timeout=20) != 0
    assert left_in(kernels_dir) == []


def resolve_in_child(_number):
    return resolve("6.12").image.read_text()


def test_processes_that_want_the_same_kernel_share_one_fetch(archive, kernels_dir):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(resolve_in_child, range(3)) == [f"image of {OLD}"] * 3
    assert left_in(kernels_dir) == [OLD]


def test_a_full_disk_is_said_before_the_download(archive, monkeypatch, kernels_dir):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(FetchError, match=r"needs up to .* are free; free some space"):
        resolve("6.12")
    assert left_in(kernels_dir) == []


def test_all_means_every_kernel_once(archive):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.add_split_kernel(SPLIT, "7.3.4-1")
    archive.publish()
    assert [kernel.series for kernel in resolve_many("all")] == ["6.12", "7.3"]
    assert [kernel.series for kernel in resolve_many(["7.3", "all", OLD])] == ["7.3", "6.12"]


def test_one_failing_kernel_does_not_stop_the_others(archive):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    with pytest.raises(PinVanishedError, match=r"7\.3"):
        resolve_many("all")
    record = inventory()[0].record
    assert record is not None
    assert record.release == OLD


def test_a_refused_kernel_says_why_and_all_leaves_it_out(archive, tmp_path):
    from bpfunit.kernels import RefusedKernelError

    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    path = tmp_path / "kernels.toml"
    path.write_text(path.read_text() + 'refused = "its modules are gone"\n')
    with pytest.raises(RefusedKernelError, match=r"resolve kernel 7\.3: its modules are gone"):
        resolve("7.3")
    assert [kernel.series for kernel in resolve_many("all")] == ["6.12"]


def test_updating_pins_shows_and_writes_what_moved_and_keeps_the_rest(archive, tmp_path):
    archive.add_kernel(NEW, "6.12.10-1")
    archive.add_split_kernel(SPLIT, "7.3.4-1")
    archive.publish()
    path = tmp_path / "kernels.toml"
    before = path.read_text()
    (change,) = update_pins(write=False)
    assert path.read_text() == before
    assert update_pins() == [change]
    assert (change.series, change.old_release, change.new_release) == ("6.12", OLD, NEW)
    assert (change.old_version, change.new_version) == ("6.12.5-1", "6.12.10-1")
    assert path.read_text() == before.replace(OLD, NEW).replace("6.12.5-1", "6.12.10-1")
    assert update_pins() == []


def test_updating_pins_leaves_a_series_that_is_gone(archive, tmp_path):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    before = (tmp_path / "kernels.toml").read_text()
    (change,) = update_pins()
    assert (change.series, change.new_release) == ("7.3", "")
    assert (tmp_path / "kernels.toml").read_text() == before


def test_removing_frees_what_listing_counted(archive, kernels_dir):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    resolve("6.12")
    record = inventory()[0].record
    made = [kernels_dir.parent / area / f"{OLD}-abc" for area in ("modules", "boot", "snapshots")]
    for path in made:
        path.mkdir(parents=True)
    freed = remove("6.12")
    assert record is not None
    assert freed >= record.size > 0
    assert inventory()[0].record is None
    assert not any(path.exists() for path in made)
    with pytest.raises(UnknownKernelError, match=r"from the cache: no '6\.12'; there is: \(none\)"):
        remove("6.12")


def test_the_hosts_package_state_is_not_touched(archive):
    watched = ["/var/lib/apt/lists", "/var/cache/apt", "/var/lib/dpkg", "/etc/apt"]
    paths = [Path(path) for path in watched if Path(path).exists()]
    before = [path.stat().st_mtime_ns for path in paths]
    archive.add_kernel(OLD, "6.12.5-1")
    archive.publish()
    resolve("6.12")
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_the_command_prints_what_is_there_and_fails_with_one_line(archive):
    archive.add_kernel(OLD, "6.12.5-1")
    archive.add_split_kernel(SPLIT, "7.3.4-1")
    archive.publish()
    command = [sys.executable, "-m", "bpfunit.kernels"]
    fetched = subprocess.run([*command, "fetch", "all"], capture_output=True, text=True)
    assert fetched.returncode == 0
    assert fetched.stdout.splitlines() == [str(resolve(s).image) for s in ("6.12", "7.3")]
    refused = subprocess.run([*command, "build", "7.3"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.splitlines()[-1].startswith(f"bpfunit: build module for {SPLIT}: ")
