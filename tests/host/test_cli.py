"""The command line: help, exit codes, values, init, the lists."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bpfunit.cli import app
from bpfunit.cli._common import human_size
from bpfunit.cli._objects import is_bpf_object
from bpfunit.cli._values import (
    ValueSyntaxError,
    parse_map_entry,
    parse_map_type,
    parse_value,
)
from bpfunit.cli.init import InitError
from bpfunit.guest.errors import GuestError
from bpfunit.kernels import PinChange, UnknownKernelError, load_catalogue

pytestmark = pytest.mark.host

SOURCE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "GPL";
SEC("cgroup/connect4") int dial(struct bpf_sock_addr *ctx) { return 1; }
SEC("cgroup/connect6") int dial6(struct bpf_sock_addr *ctx) { return 1; }
SEC("xdp") int filter(struct xdp_md *ctx) { return XDP_PASS; }
SEC("perf_event") int other(void *ctx) { return 0; }
"""


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a project with one object in it."""
    (tmp_path / "build").mkdir()
    source = tmp_path / "prog.bpf.c"
    source.write_text(SOURCE)
    include = ["-idirafter", "/usr/include/x86_64-linux-gnu"]
    target = tmp_path / "build" / "prog.bpf.o"
    command: list[str | Path] = ["clang", "-target", "bpf", "-O2", "-g", *include]
    subprocess.run([*command, "-c", source, "-o", target], check=True, timeout=60)
    return tmp_path


@pytest.mark.parametrize(
    "command", [[], ["doctor"], ["run"], ["init"], ["shell"], ["kernels"], ["kernels", "update"]]
)
def test_every_command_has_help(command: list[str]) -> None:
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_the_help_states_the_exit_codes_and_where_to_start() -> None:
    output = " ".join(invoke("--help").output.split())
    assert "Exit codes: 0 done, 1 the answer is no" in output
    assert "bpfunit doctor" in output


def test_completion_knows_the_commands() -> None:
    environment = {
        "_BPFUNIT_COMPLETE": "complete_bash",
        "COMP_WORDS": "bpfunit k",
        "COMP_CWORD": "1",
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="bpfunit")
    assert result.output.split() == ["kernels"]


def test_a_wrong_option_is_a_usage_error() -> None:
    assert invoke("doctor", "--jsno").exit_code == 2
    assert invoke("run", "no-such.o", "prog").exit_code == 2


def test_a_run_of_an_object_that_guests_cannot_see_is_refused_before_the_boot(
    project: Path,
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        hidden = shutil.copy(project / "build/prog.bpf.o", directory)
        with pytest.raises(GuestError, match=r"show the object to a guest: /dev/shm/.* lies below"):
            CliRunner().invoke(app, ["run", hidden, "dial"], catch_exceptions=False)
        seen = str(project / "build/prog.bpf.o")
        with pytest.raises(GuestError, match="show a file with types to a guest"):
            CliRunner().invoke(
                app, ["run", seen, "dial", "--types", hidden], catch_exceptions=False
            )


@pytest.mark.parametrize("command", [["shell"], ["run", "build/prog.bpf.o", "dial"]])
@pytest.mark.parametrize(
    ("asked", "said"), [("NOT_SET", "it is not set here"), ("1=2", "expected NAME or NAME=VALUE")]
)
def test_a_variable_that_no_guest_can_have_is_a_usage_error(
    project: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], asked: str, said: str
) -> None:
    monkeypatch.chdir(project)
    name, *arguments = command
    ending = ["--", "true"] if name == "shell" else []
    result = invoke(name, "--guest-env", asked, *arguments, *ending)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_a_map_entry_that_cannot_be_read_says_the_accepted_form(project: Path) -> None:
    result = invoke("run", str(project / "build/prog.bpf.o"), "dial", "--map", "services=7")
    assert result.exit_code == 2
    assert "expected NAME:KEY=VALUE" in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-1", -1),
        ("0x1f", 31),
        ("10.96.0.1", "10.96.0.1"),
        ('{"addr": "10.0.0.1"}', {"addr": "10.0.0.1"}),
        ("[1, 2]", [1, 2]),
        ("true", True),
    ],
)
def test_values_are_numbers_addresses_or_json(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_broken_json_is_told_with_its_column() -> None:
    with pytest.raises(ValueSyntaxError, match="column 2"):
        parse_value("{addr: 1}")


def test_map_entries_and_types_are_taken_apart() -> None:
    assert parse_map_entry("m:fd00::1=7") == ("m", "fd00::1", 7)
    assert parse_map_type("m=key_t, value_t") == ("m", ["key_t", "value_t"])
    with pytest.raises(ValueSyntaxError, match="NAME=KEY_TYPE,VALUE_TYPE"):
        parse_map_type("m=key_t")


def test_sizes_are_written_as_people_read_them() -> None:
    sizes = [0, 1023, 1024, 5 << 20, 3 << 30, 4 << 40]
    assert [human_size(size) for size in sizes] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "4096.0 GiB",
    ]


def test_init_writes_a_test_for_each_program(project: Path) -> None:
    result = invoke("init", "--directory", str(project))
    assert result.exit_code == 0
    module = ast.parse((project / "tests/test_prog.py").read_text())
    names = [node.name for node in module.body if isinstance(node, ast.FunctionDef)]
    assert names == [
        "obj",
        "test_dial_with_empty_maps",
        "test_dial6_with_empty_maps",
        "test_filter_with_an_empty_packet",
        "test_other_is_accepted_by_the_verifier",
    ]
    text = (project / "tests/test_prog.py").read_text()
    assert '"192.0.2.1:80"' in text
    assert '"[2001:db8::1]:80"' in text


def test_what_init_writes_passes_the_linter(project: Path) -> None:
    invoke("init", "--directory", str(project))
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run([*ruff, "check", "--isolated", "tests"], cwd=project, check=True)
    style = ["format", "--isolated", "--check", "--line-length=100"]
    subprocess.run([*ruff, *style, "tests"], cwd=project, check=True)


def make(project: Path, *arguments: str) -> str:
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}  # these tests may run under make themselves
    return subprocess.run(
        ["make", "-f", "bpfunit.mk", *arguments],
        cwd=project,
        env={name: value for name, value in os.environ.items() if name not in outer},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_the_make_target_of_init_runs_pytest_on_every_kernel(project: Path) -> None:
    invoke("init", "--directory", str(project), "--kernel", "5.10")
    shown = make(project, "-n", "vmtest", "KERNELS=5.10 7.3")
    assert shown.split() == ["pytest", "--kernel", "5.10", "--kernel", "7.3", "tests"]


def test_a_project_without_makefile_gets_a_rule_that_builds_for_bpf(project: Path) -> None:
    invoke("init", "--directory", str(project))
    assert "make -f bpfunit.mk build/prog.bpf.o" in (
        project / ".github/workflows/bpfunit.yml"
    ).read_text(encoding="utf-8")
    target = project / "build/prog.bpf.o"
    target.unlink()
    make(project, target.relative_to(project).as_posix())
    assert is_bpf_object(target)


def test_a_project_with_a_makefile_keeps_its_own_rules(project: Path) -> None:
    (project / "Makefile").write_text("include bpfunit.mk\n")
    invoke("init", "--directory", str(project))
    assert "clang" not in (project / "bpfunit.mk").read_text(encoding="utf-8")
    assert "run: make build/prog.bpf.o" in (project / ".github/workflows/bpfunit.yml").read_text(
        encoding="utf-8"
    )


def test_init_overwrites_nothing_and_then_writes_nothing(project: Path) -> None:
    (project / "bpfunit.mk").write_text("mine")
    result = invoke("init", "--directory", str(project))
    assert isinstance(result.exception, InitError)
    assert "bpfunit.mk already there; nothing was written" in str(result.exception)
    assert (project / "bpfunit.mk").read_text() == "mine"
    assert not (project / "tests").exists()


def test_init_without_an_object_says_how_to_build_one(tmp_path: Path) -> None:
    result = invoke("init", "--directory", str(tmp_path))
    assert re.search(r"none; build yours first \(clang -target bpf", str(result.exception))


def test_init_with_two_objects_asks_which(project: Path) -> None:
    shutil.copy(project / "build/prog.bpf.o", project / "build/more.bpf.o")
    result = invoke("init", "--directory", str(project))
    assert "build/more.bpf.o, build/prog.bpf.o; say which: --object FILE" in str(result.exception)


def test_init_takes_no_other_file_for_an_object(project: Path) -> None:
    arguments = ("init", "--directory", str(project), "--object", str(project / "prog.bpf.c"))
    assert "not an ELF object for BPF" in str(invoke(*arguments).exception)


def test_kernels_list_has_all_of_the_catalogue() -> None:
    found = {row["series"]: row for row in json.loads(invoke("kernels", "list", "--json").output)}
    assert {entry.series for entry in load_catalogue().entries} <= set(found)
    assert found["6.12"]["engine"] == "testrun"
    assert found["6.17"]["engine"] == "live"
    assert found["6.17"]["remark"].startswith("no headers")
    assert found["7.0"]["engine"] == "none"
    assert found["7.0"]["remark"].startswith("cannot run: the archive has kept linux-binary")


def test_kernels_list_counts_all_that_the_cache_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BPFUNIT_CACHE", str(tmp_path))
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots/one").write_bytes(os.urandom(5 << 20))
    output = invoke("kernels", "list").output
    assert "0 B of kernels; 5.0 MiB with what was made for them" in output


def test_an_unknown_kernel_lists_what_there_is() -> None:
    result = invoke("kernels", "fetch", "4.4")
    assert isinstance(result.exception, UnknownKernelError)
    assert "6.12" in str(result.exception)


def test_update_tells_by_its_exit_code_that_pins_have_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = []
    changes = [PinChange("6.12", "6.12.1-amd64", "6.12.2-amd64", "6.12.1-1", "6.12.2-1")]

    def update_pins(*, write: bool) -> list[PinChange]:
        written.append(write)
        return changes

    monkeypatch.setattr("bpfunit.cli.kernels.kernels.update_pins", update_pins)
    result = invoke("kernels", "update", "--dry-run")
    assert (result.exit_code, written) == (1, [False])
    assert "6.12.1-amd64 → 6.12.2-amd64" in result.output
    assert invoke("kernels", "update").exit_code == 0
    changes.clear()
    assert "all pins are the newest" in invoke("kernels", "update", "--dry-run").output
