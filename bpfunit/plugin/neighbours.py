"""Plugins that projects bring along: those that must be told of guests, or cannot work in them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from bpfunit.guest import in_guest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, Any, Any]:
    """Let pytest-cov know in time that tests run elsewhere.

    It decides by the command line whether it measures this process or collects from workers, before
    ``--kernel`` has become xdist's own options.
    """
    known = early_config.known_args_namespace
    if getattr(known, "kernel", None) and not known.collectonly:
        known.dist = "load"
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot work in a guest, and keep others from reaching out of it.

    Raises:
        pytest.UsageError: an option that does not go together with guests.
    """
    option = config.option
    if option.kernel and getattr(option, "forked", False):
        raise pytest.UsageError(
            "--forked and --kernel do not go together: a test that dies costs its guest, which is "
            "replaced, and pytest-forked would fork the worker that holds the guest's channel; "
            "leave --forked out"
        )
    reruns: Any = config.pluginmanager.get_plugin("rerunfailures")
    if in_guest() and reruns is not None:
        # It would connect to a socket of the controller's to count runs that a crash ended. A
        # guest has no network; runs that failed are counted without.
        reruns.HAS_PYTEST_HANDLECRASHITEM = False
