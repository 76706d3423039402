"""The controller's half: guests for the chosen kernels, as xdist's workers."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest
from execnet.gateway import RInfo

from bpfunit import _native
from bpfunit.errors import BpfunitError
from bpfunit.guest.environment import asked_for, require_visible, withheld
from bpfunit.guest.outcome import Death, ExitReport, read_exit_report
from bpfunit.guest.spec import GuestSpec, unusual_start
from bpfunit.kernels import Kernel, cross_libraries, load_catalogue, modules_for, resolve_many
from bpfunit.plugin.bench import HostBenchmarks
from bpfunit.plugin.engines import choose_for
from bpfunit.plugin.outcomes import collector_of
from bpfunit.plugin.scheduler import MatrixScheduling
from bpfunit.plugin.worker import (
    FOREIGN_VARIABLE,
    HOST_ITEMS,
    LABEL_VARIABLE,
    TEST_TIMEOUT_VARIABLE,
)
from bpfunit.plugin.workers import InternalError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence


@dataclass(frozen=True)
class Target:
    """One kernel of the run.

    Attributes:
        label: its name in test ids: the series, with the architecture where it is another than
            this machine's; or the release where one comes twice.
        kernel: the kernel.
        xspec: the execnet spec that starts a guest of it.
        start: what its user may want to know of how guests start; "" for nothing out of the way.
    """

    label: str
    kernel: Kernel
    xspec: str
    start: str


def register(config: pytest.Config) -> None:
    """Turn the kernels asked for into workers of xdist.

    Raises:
        pytest.UsageError: a kernel or a guest that cannot be had, or options that do not go
            together.
    """
    option = config.option
    if option.usepdb:
        raise pytest.UsageError(
            "--pdb cannot reach into a guest; use --showlocals, or `bpfunit shell --kernel "
            f"{option.kernel[0]}` and run pytest --pdb there"
        )
    _require_files(config)
    guests = option.guests or _number(option.numprocesses) or 1
    run = Path(tempfile.mkdtemp(prefix="bpfunit-"))
    config.add_cleanup(lambda: shutil.rmtree(run, ignore_errors=True))
    try:
        targets = make_targets(config, run, guests)
    except BpfunitError as error:
        raise pytest.UsageError(str(error)) from error
    option.numprocesses = None
    option.tx = [target.xspec for target in targets for _ in range(guests)]
    option.dist = "load"
    names = withheld(os.environ, own_variables(config))
    config.pluginmanager.register(HostSide(config, targets, run, guests, names), "bpfunit-host")
    if config.pluginmanager.hasplugin("benchmark"):
        config.pluginmanager.register(HostBenchmarks(), "bpfunit-host-benchmarks")


def _require_files(config: pytest.Config) -> None:
    """Refuse what is not there before a guest boots for it.

    Raises:
        pytest.UsageError: a file or directory of the command line does not exist.
    """
    if config.option.pyargs:  # names of packages, which the guests look for
        return
    names = [argument.partition("::")[0] for argument in config.args]
    if missing := [name for name in names if not (config.invocation_params.dir / name).exists()]:
        raise pytest.UsageError(f"file or directory not found: {', '.join(missing)}")


def _number(processes: Any) -> int:
    if isinstance(processes, str):  # auto, logical
        return os.cpu_count() or 1
    return int(processes or 0)


def make_targets(config: pytest.Config, run: Path, guests: int) -> list[Target]:
    """Return the kernels of the run, each with its module built and its guest described.

    Raises:
        BpfunitError: a kernel, a module or a guest that cannot be had.
    """
    option = config.option
    for what, path in needed_files(config):
        require_visible(what, path)
    variables = own_variables(config)
    asked: list[str] = [spec for value in option.kernel for spec in value.split()]
    kernels = resolve_many(asked)
    built = [kernel for kernel in kernels if kernel.headers is not None]
    modules = dict(zip(built, modules_for(built), strict=True))
    targets = []
    for number, (label, kernel) in enumerate(zip(labels(kernels), kernels, strict=True)):
        loops = cross_libraries(kernel, _native.LIBRARIES).get("loops")
        spec = GuestSpec(
            kernel=kernel,
            module=modules.get(kernel),
            cpus=option.guest_cpus,
            memory=option.guest_memory,
            accel=option.guest_accel,
            env={
                **variables,
                LABEL_VARIABLE: label,
                TEST_TIMEOUT_VARIABLE: str(option.guest_test_timeout),
                **({_native.PATH_VARIABLE: str(loops)} if loops else {}),
                **({FOREIGN_VARIABLE: kernel.architecture.debian} if kernel.foreign else {}),
            },
            append=option.guest_append,
            qemu_args=tuple(option.guest_qemu_arg),
            cwd=config.invocation_params.dir,
            boot_timeout=option.guest_boot_timeout,
            silence_timeout=option.guest_timeout,
            slots=slots(option.guest_cpus * guests, option.guest_memory * guests),
            run=run,
        )
        directory = run / str(number)
        xspec = spec.prepare(directory)
        targets.append(Target(label, kernel, xspec, unusual_start(directory)))
    return targets


def own_variables(config: pytest.Config) -> dict[str, str]:
    """Return the variables that the command line and the configuration ask for.

    Raises:
        GuestError: one of them cannot be passed.
    """
    requests = [*config.getini("guest_env"), *config.option.guest_env]
    return asked_for(requests, os.environ)


def needed_files(config: pytest.Config) -> Iterator[tuple[str, Path]]:
    """Yield the files of the host that the run needs in guests, each with what it is."""
    yield "the project", config.rootpath
    directory = config.invocation_params.dir
    for argument in config.args:
        yield "the tests", directory / argument.partition("::")[0]
    if config.option.bpf_object:
        yield "the object (--bpf-object)", directory / config.option.bpf_object


def slots(cpus: int, memory: int) -> int:
    """Return how many kernels may be up at once on this machine, at least one.

    Args:
        cpus: processors that the guests of one kernel take.
        memory: MiB that they take.
    """
    cores = len(os.sched_getaffinity(0))
    free = psutil.virtual_memory().available // (1 << 20)
    return int(max(1, min(cores // cpus, free * 4 // 5 // memory)))


def labels(kernels: Sequence[Kernel]) -> list[str]:
    """Return a short name for each kernel: its series, or its release if the series comes twice."""
    names = [kernel.name for kernel in kernels]
    return [kernel.name if names.count(kernel.name) == 1 else kernel.release for kernel in kernels]


class HostSide:
    """Hooks of the controller.

    Args:
        config: pytest's.
        targets: the kernels of the run.
        run: the directory below which guests keep their logs.
        guests: how many guests each kernel has.
        withheld: variables that are set here and not in guests.
    """

    def __init__(
        self,
        config: pytest.Config,
        targets: Sequence[Target],
        run: Path,
        guests: int,
        withheld: Sequence[str] = (),
    ) -> None:
        self.targets = targets
        self.deaths: list[dict[str, str]] = []
        self._config = config
        self._run = run
        self._guests = guests
        self._withheld = withheld
        self._host_items = 0
        self._restarts = config.option.guest_restarts
        self._died: Counter[str] = Counter()
        self._exit_reports: dict[Any, ExitReport] = {}
        self._scheduler: MatrixScheduling | None = None

    def label_of_gateway(self, gateway: Any) -> str:
        """Return the kernel of a gateway."""
        spec = gateway.spec.python
        return next(target.label for target in self.targets if target.xspec.endswith(spec))

    def _target_of(self, node: Any) -> Target:
        spec = node.gateway.spec.python
        return next(target for target in self.targets if target.xspec.endswith(spec))

    def _label_of(self, node: Any) -> str:
        return self._target_of(node).label

    def pytest_report_header(self) -> list[str]:
        """Say which kernels the tests run on and by which engine, and which of them cannot run."""
        option = self._config.option
        lines = [
            f"bpfunit: kernel {target.kernel.release} (ids end in @{target.label}), "
            f"{choose_for(target.kernel, option.bpf_engine)}, {target.kernel.source}"
            + "".join(f"; {note}" for note in _notes(target) if note)
            for target in self.targets
        ]
        if self._withheld:
            names = " ".join(self._withheld)
            lines.append(f"bpfunit: not set in guests: {names} (--guest-env NAME passes one on)")
        if "all" in " ".join(option.kernel).split():
            lines += [
                f"bpfunit: kernel {entry.release} left out, {entry.refused}"
                for entry in load_catalogue().entries
                if entry.refused
            ]
        return lines

    def pytest_xdist_newgateway(self, gateway: Any) -> None:
        """Keep xdist from asking the worker about itself, which would wait for the boot."""
        gateway._cache_rinfo = gateway_info()

    @pytest.hookimpl(tryfirst=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> MatrixScheduling:
        """Give every kernel all tests, shared by its guests, and decide which guests to replace."""
        labels = [target.label for target in self.targets]
        self._scheduler = MatrixScheduling(config, log, labels, self._guests, self._label_of)
        # xdist 3 replaces every node that dies, whatever it died of, and has no hook to refuse.
        session = config.pluginmanager.getplugin("dsession")
        replace = session._clone_node
        session._clone_node = lambda node: replace(node) if self._is_replaced(node) else None
        return self._scheduler

    def _is_replaced(self, node: Any) -> bool:
        assert self._scheduler is not None
        label = self._label_of(node)
        if self._died[label] > self._restarts:
            self._scheduler.abandon(label)
        return self._scheduler.has_work_for(label)

    @pytest.hookimpl(tryfirst=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take the counts that a guest leaves, or find out what it died of."""
        label = self._label_of(node)
        if error is None:
            self._host_items = max(self._host_items, node.workeroutput.get(HOST_ITEMS, 0))
            # Else its guest would stay to the end of the run, and keep its slot from the others.
            node.gateway.exit()
            return
        directory = (
            self._run / node.gateway.spec.python.rpartition("/guest.json")[0].rpartition("/")[2]
        )
        exit_report = read_exit_report(directory / str(node.gateway._io.popen.pid))
        if isinstance(error, InternalError):  # the guest itself is well
            exit_report = ExitReport(Death.WORKER, f"internal error: {error.summary}", error)
        self._died[label] += 1
        self._exit_reports[node] = exit_report
        self.deaths.append(
            {
                "kernel": self._target_of(node).kernel.release,
                "death": exit_report.death.value,
                "detail": exit_report.detail,
                "test": "",
                "console": exit_report.last_words,
            }
        )

    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """Say on the report of the test that ran what its guest died of."""
        node = report.node
        exit_report = self._exit_reports.get(node)
        if exit_report is None:
            return
        self.deaths[-1]["test"] = crashitem
        report.bpfunit_death = exit_report.death.name  # type: ignore[attr-defined]
        release = self._target_of(node).kernel.release
        report.longrepr = f"{exit_report} (kernel {release}, while this test ran)"
        report.sections.append(("Last words of the guest", exit_report.last_words))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take one phase of one test."""
        _show_id_as_it_is(report)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, Any, Any]:
        """Report tests that never ran, which must not look as if they had passed."""
        result = yield
        if self._scheduler is None or session.shouldstop or session.shouldfail:
            return result
        for target in self.targets:
            if self._scheduler.collection_of(target.label) is None and self._died[target.label]:
                self._report_never_run(f"collection@{target.label}", target)
        outcomes = collector_of(self._config)
        targets = {target.kernel.release: target for target in self.targets}
        for outcome in outcomes.missing():
            target = targets[outcome.kernel]
            if self._scheduler.collection_of(target.label) is not None:
                last = outcomes.last_report(outcome)
                self._report_never_run(f"{outcome.test}@{target.label}", target, last)
        return result

    def _report_never_run(
        self, nodeid: str, target: Target, began: pytest.TestReport | None = None
    ) -> None:
        release = target.kernel.release
        last = next((d for d in reversed(self.deaths) if d["kernel"] == release), None)
        why = "never came to its end: " if began else f"{what_never_ran(nodeid)}: "
        if last is None:
            why += f"the guests of kernel {release} ended without it"
        else:
            why += (
                f"kernel {release} is given up after {self._died[target.label]} deaths of its "
                f"guests, the last of {last['death']}: {last['detail']}"
            )
        report = pytest.TestReport(
            nodeid,
            (nodeid.partition("::")[0], None, nodeid.partition("::")[2]),
            {},
            "failed",
            why,
            "setup",
        )
        report.bpfunit_death = "NEVER_RAN"  # type: ignore[attr-defined]
        if began:  # files of reports go by test and worker
            report.node = began.node  # type: ignore[attr-defined]
        if last is not None and nodeid.startswith("collection@"):
            report.sections.append(("Last words of the guest", last["console"]))
        self._config.hook.pytest_runtest_logreport(report=report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the deaths, and which tests did not run in the guests."""
        for death in self.deaths:
            where = f" in {death['test']}" if death["test"] else ""
            terminalreporter.write_line(
                f"guest died: {death['kernel']}{where}: {death['death']}: {death['detail']}",
                red=True,
            )
        if self._host_items:
            terminalreporter.write_line(
                f"bpfunit: {self._host_items} tests marked host were left out in the guests; "
                "run them without --kernel"
            )


def _notes(target: Target) -> tuple[str, ...]:
    interprets = "it has no BPF JIT and interprets programs" if target.kernel.interprets else ""
    return target.kernel.note, target.start, interprets


def what_never_ran(nodeid: str) -> str:
    """Return the words for a test that never ran, or for a kernel that collected none."""
    return "no test was collected" if nodeid.startswith("collection@") else "never ran"


def gateway_info() -> Any:
    """Return what execnet's workers say of themselves; guests run this very interpreter."""
    return RInfo(
        {
            "executable": sys.executable,
            "version_info": tuple(sys.version_info)[:5],
            "platform": sys.platform,
            "cwd": str(Path.cwd()),
            "pid": 0,
        }
    )


def _show_id_as_it_is(report: pytest.TestReport) -> None:
    """Keep pytest (9.1 and later) from taking the kernel behind ``[…]`` for parameters.

    It parses ids into names and parameters, and its summary would end in ``[dns]@7.3]``.
    """
    if hasattr(report, "_id"):
        path, _, rest = report.nodeid.partition("::")
        report._id = type(report._id)(path=path, names=tuple(rest.split("::")))
