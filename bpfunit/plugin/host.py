"""The controller's half: guests for the chosen kernels, as xdist's workers."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bpfunit.errors import BpfunitError
from bpfunit.guest.spec import GuestSpec
from bpfunit.kernels import Kernel, module_for, resolve_many
from bpfunit.plugin.bench import HostBenchmarks
from bpfunit.plugin.guestside import HOST_ITEMS, LABEL_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Target:
    """One kernel of the run.

    Attributes:
        label: its name in test ids: the series, or the release where a series comes twice.
        kernel: the kernel.
        xspec: the execnet spec that starts a guest of it.
    """

    label: str
    kernel: Kernel
    xspec: str


def register(config: pytest.Config) -> None:
    """Turn the kernels asked for into workers of xdist.

    Raises:
        pytest.UsageError: a kernel or a guest that cannot be had, or options that do not go together.
    """
    option = config.option
    if option.usepdb:
        raise pytest.UsageError(
            "--pdb cannot reach into a guest; use --showlocals, or `bpfunit shell --kernel "
            f"{option.kernel[0]}` and run pytest --pdb there"
        )
    guests = option.guests or _number(option.numprocesses) or 1
    run = Path(tempfile.mkdtemp(prefix="bpfunit-"))
    config.add_cleanup(lambda: shutil.rmtree(run, ignore_errors=True))
    try:
        targets = make_targets(config, run)
    except BpfunitError as error:
        raise pytest.UsageError(str(error)) from error
    option.numprocesses = None
    option.tx = [target.xspec for target in targets for _ in range(guests)]
    option.dist = "load" if len(targets) == 1 else "each"
    config.pluginmanager.register(HostSide(targets), "bpfunit-host")
    if config.pluginmanager.hasplugin("benchmark"):
        config.pluginmanager.register(HostBenchmarks(), "bpfunit-host-benchmarks")


def _number(processes: Any) -> int:
    if isinstance(processes, str):  # auto, logical
        return os.cpu_count() or 1
    return int(processes or 0)


def make_targets(config: pytest.Config, run: Path) -> list[Target]:
    """Return the kernels of the run, each with its module built and its guest described.

    Raises:
        BpfunitError: a kernel, a module or a guest that cannot be had.
    """
    option = config.option
    asked: list[str] = [spec for value in option.kernel for spec in value.split()]
    kernels = resolve_many("all" if asked == ["all"] else asked)
    targets = []
    for number, (label, kernel) in enumerate(zip(labels(kernels), kernels, strict=True)):
        spec = GuestSpec(
            kernel=kernel,
            module=module_for(kernel) if kernel.headers is not None else None,
            cpus=option.guest_cpus,
            memory=option.guest_memory,
            accel=option.guest_accel,
            env={LABEL_VARIABLE: label},
            append=option.guest_append,
            qemu_args=tuple(option.guest_qemu_arg),
            cwd=config.invocation_params.dir,
            boot_timeout=option.guest_boot_timeout,
            silence_timeout=option.guest_timeout,
        )
        targets.append(Target(label, kernel, spec.prepare(run / str(number))))
    return targets


def labels(kernels: Sequence[Kernel]) -> list[str]:
    """Return a short name for each kernel: its series, or its release if the series comes twice."""
    series = [kernel.series for kernel in kernels]
    return [
        kernel.series if series.count(kernel.series) == 1 else kernel.release for kernel in kernels
    ]


class HostSide:
    """Hooks of the controller."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = targets
        self._host_items = 0

    def pytest_report_header(self) -> list[str]:
        """Say which kernels the tests run on."""
        return [
            f"bpfunit: kernel {target.kernel.release} (ids end in @{target.label}), "
            f"{target.kernel.source}" + (f"; {target.kernel.note}" if target.kernel.note else "")
            for target in self.targets
        ]

    def pytest_xdist_newgateway(self, gateway: Any) -> None:
        """Keep xdist from asking the worker about itself, which would wait for the boot."""
        gateway._cache_rinfo = gateway_info()

    def pytest_testnodedown(self, node: Any) -> None:
        """Take the counts that a guest leaves."""
        self._host_items = max(
            self._host_items, getattr(node, "workeroutput", {}).get(HOST_ITEMS, 0)
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say which tests did not run in the guests."""
        if self._host_items:
            terminalreporter.write_line(
                f"bpfunit: {self._host_items} tests marked host were left out in the guests; "
                "run them without --kernel"
            )


def gateway_info() -> Any:
    """Return what execnet's workers say of themselves; guests run this very interpreter."""
    import sys

    from execnet.gateway import RInfo

    return RInfo(
        {
            "executable": sys.executable,
            "version_info": tuple(sys.version_info)[:5],
            "platform": sys.platform,
            "cwd": str(Path.cwd()),
            "pid": 0,
        }
    )
