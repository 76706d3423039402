"""Guests of another architecture: what they put in the place of this machine's Python."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from bpfunit.guest import foreign
from bpfunit.kernels._foreign import _keep_usr_alone

pytestmark = pytest.mark.host

VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def test_the_place_of_this_interpreter_and_its_library_get_the_guests_own(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "lib"))
    (tmp_path / "lib/site-packages").mkdir(parents=True)
    assert foreign.commands().splitlines() == [
        f"/bin/busybox mount -o bind ./usr/bin/{VERSION} .{tmp_path}/bin/python",
        f"/bin/busybox mkdir -p ./usr/lib/{VERSION}/site-packages",
        f"/bin/busybox mount -o bind .{tmp_path}/lib/site-packages"
        f" ./usr/lib/{VERSION}/site-packages",
        f"/bin/busybox mount -o rbind ./usr/lib/{VERSION} .{tmp_path}/lib",
    ]


def test_debians_own_interpreter_is_where_the_guest_has_its_own(monkeypatch):
    monkeypatch.setattr(sys, "executable", f"/usr/bin/{VERSION}")
    monkeypatch.setattr(Path, "resolve", lambda self: self)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: f"/usr/lib/{VERSION}")
    assert foreign.commands() == ""


def test_a_root_keeps_all_below_usr(tmp_path):
    for path in ("bin/sh", "lib/ld.so", "lib/x/libc.so", "usr/lib/x/libz.so", "etc/passwd"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    _keep_usr_alone(tmp_path)
    found = subprocess.run(
        ["find", ".", "-type", "f"], cwd=tmp_path, capture_output=True, text=True
    )
    expected = "./usr/bin/sh ./usr/lib/ld.so ./usr/lib/x/libc.so ./usr/lib/x/libz.so"
    assert sorted(found.stdout.split()) == expected.split()
    assert (tmp_path / "lib/x/libc.so").read_text() == "lib/x/libc.so"
    assert (tmp_path / "bin").readlink() == Path("usr/bin")
