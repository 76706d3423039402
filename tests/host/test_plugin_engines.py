"""The outcome of a run that an engine cannot produce, as people see it."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from bpfunit import engines
from bpfunit.kernels import Kernel
from bpfunit.plugin import engines as plugin_engines
from bpfunit.plugin.host import HostSide, Target

pytest_plugins = ["pytester"]

SUITE = """
import bpfunit
import pytest

def test_run():
    raise bpfunit.NotApplicableError("no real call leads here")

def test_other():
    pass

@pytest.fixture
def arranged():
    raise bpfunit.NotApplicableError("nor here")

def test_arranged(arranged):
    pass
"""


def test_run_that_the_engine_cannot_produce_is_neither_passed_nor_skipped(
    pytester: pytest.Pytester,
):
    pytester.makepyfile(SUITE)

    result = pytester.runpytest_subprocess("-v", timeout=120)

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*test_run NOT APPLICABLE*",
            "*test_other PASSED*",
            "*test_arranged NOT APPLICABLE*",
            "*= not applicable on this engine =*",
            "*test_run: no real call leads here",
            "*test_arranged: nor here",
            "*= 1 passed, 2 not applicable in *",
        ]
    )


def test_unknown_engine_is_a_usage_error(pytester: pytest.Pytester):
    result = pytester.runpytest_subprocess("--bpf-engine", "steam", timeout=120)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--bpf-engine: invalid choice: 'steam'*"])


def header(monkeypatch: pytest.MonkeyPatch, asked: str, engine: str | None = None) -> list[str]:
    """Return what a run on a kernel with headers and one without says at its start."""
    monkeypatch.delenv("BPFUNIT_ENGINE", raising=False)
    option = types.SimpleNamespace(kernel=[asked], bpf_engine=engine, guest_restarts=1)
    config = types.SimpleNamespace(option=option)
    image = Path("boot/vmlinuz")
    kernels = (
        Kernel("6.12", "6.12.1-amd64", image, None, Path("headers"), "trixie 6.12.1-1"),
        Kernel("6.17", "6.17.2-amd64", image, None, None, "trixie 6.17.2-1", "it stands in"),
    )
    targets = [Target(kernel.series, kernel, "popen", "") for kernel in kernels]
    return HostSide(config, targets, Path(), 1).pytest_report_header()  # type: ignore[arg-type]


def test_the_header_says_which_engine_serves_each_kernel(monkeypatch: pytest.MonkeyPatch):
    assert header(monkeypatch, "6.12 6.17") == [
        "bpfunit: kernel 6.12.1-amd64 (ids end in @6.12), engine testrun, trixie 6.12.1-1",
        "bpfunit: kernel 6.17.2-amd64 (ids end in @6.17), engine live (no headers to build the"
        " module with), trixie 6.17.2-1; it stands in",
    ]


def test_the_header_says_the_engine_that_was_asked_for(monkeypatch: pytest.MonkeyPatch):
    assert all("engine both, " in line for line in header(monkeypatch, "6.12 6.17", "both"))


def test_all_kernels_list_those_that_cannot_run_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    left_out = header(monkeypatch, "all")[2:]
    assert [line.split()[2].rpartition(".")[0] for line in left_out] == ["6.19", "7.0", "7.1"]
    assert all("left out, the archive has kept linux-binary" in line for line in left_out)


def test_former_name_of_an_engine_still_works_and_says_the_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "_said", set())
    with pytest.warns(DeprecationWarning, match="the engine connect is called live"):
        assert engines.current_name("connect") == "live"
    monkeypatch.setenv("BPFUNIT_ENGINE", "connect")
    assert plugin_engines.choose(None) == ("live", "")
