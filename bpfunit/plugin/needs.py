"""The marker ``needs``: a test that only makes sense where the kernel has a feature.

An older kernel skips the test and says what it lacks. A kernel that should have the feature and
does not fails it: a skip that nobody expected hides a broken probe or a broken kernel. A BPF JIT is
no matter of age: without one, what needs it is not applicable. Neither is the architecture: what
runs a program of the host's is not applicable in guests of another one.
"""

from __future__ import annotations

import os
import re

import pytest

from bpfunit import features
from bpfunit.engines import NotApplicableHereError
from bpfunit.guest import in_guest
from bpfunit.plugin.worker import FOREIGN_VARIABLE

_FORM = 'needs(since="5.18", helper="bpf_get_retval")'


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "needs(since, helper=, kfunc=, map_type=, prog_type=, type=): the kernel must have this"
        " feature; one older than `since` skips the test, a newer one that lacks it fails it;"
        " needs(jit=True): not applicable on a kernel that interprets programs; needs(native=True):"
        " not applicable in a guest of another architecture than the host's",
    )


def _version(text: object) -> tuple[int, int, int]:
    found = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?", str(text))
    if found is None:
        raise pytest.UsageError(f"marker needs: since is {text!r}; expected the form {_FORM}")
    return int(found[1]), int(found[2]), int(found[3] or 0)


def verdict(mark: pytest.Mark) -> tuple[str, bool] | None:
    """Return why a marked test cannot run here and whether that is a failure; None when it can.

    Raises:
        pytest.UsageError: the marker's form is wrong.
    """
    if mark.args or "since" not in mark.kwargs:
        raise pytest.UsageError(f"marker needs: expected the form {_FORM}")
    asked = {name: value for name, value in mark.kwargs.items() if name != "since"}
    since = _version(mark.kwargs["since"])
    is_older = features.kernel_version() < since
    try:
        lacking = features.missing(**asked)
    except TypeError:
        raise pytest.UsageError(
            f"marker needs: no such feature among {', '.join(asked)}; expected the form {_FORM}"
        ) from None
    if not asked and is_older:
        return f"{features.kernel_release()} is older than {mark.kwargs['since']}", False
    if lacking is None:
        return None
    if is_older:
        return lacking, False
    return f"{lacking}, which kernels from {mark.kwargs['since']} on have", True


def require_jit() -> None:
    """Refuse what needs a BPF JIT.

    Raises:
        NotApplicableHereError: the kernel interprets programs.
    """
    if not features.has_jit():
        raise NotApplicableHereError(
            f"{features.kernel_release()} has no BPF JIT, so that it interprets programs"
        )


def require_native() -> None:
    """Refuse what runs programs or libraries that are compiled for the host.

    Raises:
        NotApplicableHereError: the guest is of another architecture.
    """
    if os.environ.get(FOREIGN_VARIABLE):
        raise NotApplicableHereError(
            f"this guest is of {os.uname().machine}, where nothing compiled for the host runs"
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test whose feature is not there."""
    if not in_guest():
        return
    for mark in item.iter_markers("needs"):
        if mark.kwargs == {"jit": True}:
            require_jit()
            continue
        if mark.kwargs == {"native": True}:
            require_native()
            continue
        if found := verdict(mark):
            reason, is_failure = found
            if is_failure:
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
