"""The marker ``needs``: what skips, what fails, what is a mistake."""

from __future__ import annotations

from typing import Any

import pytest

from bpfunit import features
from bpfunit.engines import NotApplicableHereError
from bpfunit.plugin import needs


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel 6.1 that has the helper bpf_get_retval and no other."""
    monkeypatch.setattr(features, "kernel_version", lambda: (6, 1, 0))
    monkeypatch.setattr(features, "kernel_release", lambda: "6.1.0-test")
    monkeypatch.setattr(features, "has_helper", lambda name, _type: name == "bpf_get_retval")


def verdict(*args: Any, **kwargs: Any) -> tuple[str, bool] | None:
    return needs.verdict(getattr(pytest.mark.needs(*args, **kwargs), "mark"))  # noqa: B009


def test_feature_that_is_there_lets_the_test_run() -> None:
    assert verdict(since="5.18", helper="bpf_get_retval") is None
    assert verdict(since="6.1") is None


def test_older_kernel_skips_with_the_reason() -> None:
    reason, is_failure = verdict(since="6.2", helper="bpf_cgrp_storage_get") or ("", True)
    assert reason == "6.1.0-test has no helper bpf_cgrp_storage_get for cgroup_sock_addr"
    assert not is_failure
    assert verdict(since="6.2") == ("6.1.0-test is older than 6.2", False)


def test_newer_kernel_that_lacks_the_feature_fails() -> None:
    reason, is_failure = verdict(since="5.10", helper="bpf_cgrp_storage_get") or ("", False)
    assert "which kernels from 5.10 on have" in reason
    assert is_failure


def test_feature_that_came_early_by_backport_is_used() -> None:
    assert verdict(since="6.5", helper="bpf_get_retval") is None


@pytest.mark.parametrize(
    "wrong", [{}, {"helper": "x"}, {"since": "six"}, {"since": "6.1", "helpers": "x"}]
)
def test_wrong_form_shows_the_right_one(wrong: dict[str, str]) -> None:
    with pytest.raises(pytest.UsageError, match=r'expected the form needs\(since="5.18", helper='):
        verdict(**wrong)


def test_what_needs_a_jit_is_not_applicable_where_programs_are_interpreted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "has_jit", lambda: True)
    needs.require_jit()
    monkeypatch.setattr(features, "has_jit", lambda: False)
    with pytest.raises(NotApplicableHereError, match=r"6\.1\.0-test has no BPF JIT"):
        needs.require_jit()


def test_what_is_compiled_for_the_host_is_not_applicable_on_another_architecture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BPFUNIT_FOREIGN", raising=False)
    needs.require_native()
    monkeypatch.setenv("BPFUNIT_FOREIGN", "arm64")
    with pytest.raises(NotApplicableHereError, match="nothing compiled for the host runs"):
        needs.require_native()
