"""Inputs that ``bpfunit.explore(corpus=…)`` found in a guest: files that travel on a test's report.

What a guest writes is gone with it; here they are written where the user looks.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import pytest

_ATTRIBUTE = "bpfunit_corpus"
_MODULE = "bpfunit.explorer.corpus"  # imported by tests that explore, and by no others


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Hang the files that were kept since the last report on this one."""
    report = yield
    module = sys.modules.get(_MODULE)
    if module is not None and (files := module.take_unsent()):
        setattr(report, _ATTRIBUTE, files)
    return report


def pytest_runtest_logreport(report: Any) -> None:
    """Write them, where they are not there already."""
    for directory, program, files in getattr(report, _ATTRIBUTE, ()):
        from bpfunit.explorer import corpus

        corpus.write(directory, program, files)
