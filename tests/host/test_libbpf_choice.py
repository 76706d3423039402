"""Which libbpf is loaded, and how a wrong choice is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bpfunit._sys import libbpf
from bpfunit.guest.errors import GuestError
from bpfunit.guest.spec import GuestSpec
from bpfunit.kernels.kernel import Foreign

pytestmark = pytest.mark.host


def doctor(**environment: str) -> str:
    """Return what ``bpfunit doctor`` says of libbpf, with these variables set."""
    done = subprocess.run(
        [sys.executable, "-m", "bpfunit.cli", "doctor", "--json"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search(r'"name": "libbpf",\s*"status": "(.*?)",\s*"found": "(.*?)"', done.stdout)
    assert found, done.stdout + done.stderr
    return f"{found[1]}: {found[2]}"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The system's libbpf under another path."""
    target = tmp_path / "libbpf.so.1"
    target.write_bytes(libbpf.path().resolve().read_bytes())
    return target


def test_doctor_names_the_version_and_the_file_of_the_systems_libbpf() -> None:
    found = doctor()
    assert re.match(r"ok: v?1\.\d+", found)
    assert str(libbpf.path()) in found


def test_doctor_names_the_file_that_was_chosen(copy: Path) -> None:
    found = doctor(BPFUNIT_LIBBPF=str(copy))
    assert found.startswith("ok: ")
    assert f"{copy}, chosen by BPFUNIT_LIBBPF, in guests too" in found


def test_a_library_on_the_loaders_path_is_told_and_used_in_guests(copy: Path) -> None:
    found = doctor(LD_LIBRARY_PATH=f"/nowhere:{copy.parent}")
    assert f"{copy}, chosen by LD_LIBRARY_PATH, in guests too" in found


def test_a_chosen_file_that_is_no_libbpf_is_an_error_that_says_so(tmp_path: Path) -> None:
    wrong = tmp_path / "libbpf.so.1"
    wrong.write_text("no library")
    found = doctor(BPFUNIT_LIBBPF=str(wrong))
    assert found.startswith(f"missing: load libbpf {wrong}: ")
    assert "name another in BPFUNIT_LIBBPF" in found


def guest_variables(foreign: Foreign | None = None) -> dict[str, str]:
    kernel: Any = SimpleNamespace(configuration=None, foreign=foreign)
    return GuestSpec(kernel)._variables("tcg")


def test_guests_use_the_library_that_the_loaders_path_leads_to(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{copy.parent}")
    assert guest_variables()["BPFUNIT_LIBBPF"] == str(copy)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    assert "BPFUNIT_LIBBPF" not in guest_variables()


def test_guests_of_another_architecture_are_given_no_library_of_this_one(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LD_LIBRARY_PATH", "LD_PRELOAD", "BPFUNIT_NATIVE", "BPFUNIT_LIBBPF"):
        monkeypatch.setenv(name, str(copy.parent))
    monkeypatch.setenv("PASSED_ON", "1")
    variables = guest_variables(Foreign(Path("/emulator"), Path("/root")))
    assert variables["PASSED_ON"] == "1"
    assert str(copy.parent) not in variables.values()


def test_a_library_that_guests_cannot_see_is_refused_before_they_boot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        monkeypatch.setenv("BPFUNIT_LIBBPF", file.name)
        with pytest.raises(GuestError, match="the chosen libbpf"):
            guest_variables()
