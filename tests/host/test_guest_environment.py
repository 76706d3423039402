"""Which variables and directories of the host reach a guest; the rest is refused or said."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from bpfunit.guest.environment import asked_for, passed_on, require_visible, withheld
from bpfunit.guest.errors import GuestError

pytestmark = pytest.mark.host
pytest_plugins = ["pytester"]

HOST = {
    "MYPROJECT_OBJ": "x",
    "LD_LIBRARY_PATH": "/opt/libbpf",
    "PATH": "/bin",
    "SSH_AUTH_SOCK": "/tmp/ssh",
    "MAKEFLAGS": "-j",
    "IFS": ":",
    "BASH_FUNC_x%%": "() { :; }",
    "PYTEST_CURRENT_TEST": "test_a",
}


def test_a_projects_own_variables_reach_the_guest():
    assert passed_on(HOST) == {
        "MYPROJECT_OBJ": "x",
        "LD_LIBRARY_PATH": "/opt/libbpf",
        "PATH": "/bin",
    }


def test_what_a_test_would_miss_is_named_and_what_shells_keep_is_not():
    assert withheld(HOST) == ["MAKEFLAGS", "SSH_AUTH_SOCK"]
    assert withheld(HOST, ["SSH_AUTH_SOCK"]) == ["MAKEFLAGS"]


def test_a_withheld_variable_is_passed_when_asked_for():
    found = asked_for(["SSH_AUTH_SOCK", "A=b=c", "EMPTY="], HOST)
    assert found == {"SSH_AUTH_SOCK": "/tmp/ssh", "A": "b=c", "EMPTY": ""}


@pytest.mark.parametrize("request_", ["NOT_SET_ANYWHERE", "1A=b", "=b", "A B=c"])
def test_a_variable_that_cannot_be_passed_is_refused(request_: str):
    with pytest.raises(GuestError, match=r"NAME|is not set"):
        asked_for([request_], HOST)


def test_a_directory_under_the_guests_own_file_systems_is_refused():
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as directory,
        pytest.raises(GuestError, match="below /dev, where every guest has a file system of its"),
    ):
        require_visible("the project", Path(directory))


def test_a_project_in_shared_memory_is_refused_before_anything_boots(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        Path(directory, "test_a.py").write_text("def test_a(): pass")
        Path(directory, "pytest.ini").write_text("[pytest]")
        monkeypatch.chdir(directory)
        result = pytester.runpytest_subprocess("--kernel", "6.12", directory, timeout=60)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: show the * to a guest: /dev/shm/* lies below /dev,*"])


def test_a_variable_that_is_not_set_is_a_usage_error(pytester: pytest.Pytester):
    pytester.makepyfile("def test_a(): pass")
    result = pytester.runpytest_subprocess("--kernel=6.12", "--guest-env=NOT_SET", timeout=60)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: pass NOT_SET to guests: it is not set here; *"])
