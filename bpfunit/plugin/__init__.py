"""The pytest plugin: runs the items in guests, and gives BPF tests their fixtures.

The modules it loads: ``options`` (command line, markers), ``host`` (the controller's half of a run
in guests), ``worker`` (the worker's half), and what tests use.
"""

from __future__ import annotations

import pytest

from bpfunit.guest import in_guest
from bpfunit.plugin import options

pytest_plugins = (
    "bpfunit.plugin.carry",
    "bpfunit.plugin.fixtures",
    "bpfunit.plugin.reuse",
    "bpfunit.plugin.needs",
    "bpfunit.plugin.types",
    "bpfunit.plugin.corpus",
    "bpfunit.plugin.coverage",
    "bpfunit.plugin.bench",
    "bpfunit.plugin.engines",
    "bpfunit.plugin.html",
    "bpfunit.plugin.matrix",
    "bpfunit.plugin.neighbours",
    "bpfunit.plugin.verdict",
)

pytest_addoption = options.pytest_addoption


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the half of the plugin that belongs to this process.

    Raises:
        pytest.UsageError: options that contradict each other, or guests that cannot be started.
    """
    options.register_markers(config)
    if hasattr(config, "workerinput"):
        from bpfunit.plugin.forks import Forks

        config.pluginmanager.register(Forks(), "bpfunit-forks")
    if in_guest():
        from bpfunit.plugin import worker

        worker.register(config)
    elif config.option.kernel and not config.option.collectonly:
        if not hasattr(config, "workerinput"):
            from bpfunit.plugin import host

            host.register(config)
    else:
        from bpfunit.plugin import nokernel

        config.pluginmanager.register(nokernel, "bpfunit-nokernel")
