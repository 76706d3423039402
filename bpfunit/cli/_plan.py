"""What a run would use on this machine, and why: the accelerator, and the engine of each kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bpfunit import kernels
from bpfunit._arch import native
from bpfunit.cli._checks import Finding, Status, install_command
from bpfunit.guest.accel import choose, probe_kvm
from bpfunit.guest.errors import GuestError
from bpfunit.kernels._foreign import known_emulator
from bpfunit.kernels.catalogue import Entry


@dataclass(frozen=True)
class KernelPlan:
    """What one kernel of the catalogue would run with.

    Attributes:
        series: as users type it: ``"6.12"``, ``"6.12/arm64"``.
        release: the exact release.
        engine: ``testrun``, ``live``, or "" when the kernel cannot be run.
        accelerator: ``kvm`` or ``tcg``; "" when the kernel cannot be run.
        why: the reason for the engine, or why the kernel cannot be run.
        fetched: whether it is in the cache.
    """

    series: str
    release: str
    engine: str
    accelerator: str
    why: str
    fetched: bool


@dataclass(frozen=True)
class Plan:
    """What a run would use.

    Attributes:
        accelerator: ``kvm`` or ``tcg``.
        why: the reason.
        kernels: one for each kernel of the catalogue.
    """

    accelerator: str
    why: str
    kernels: tuple[KernelPlan, ...]

    def finding(self) -> Finding:
        """Return the doctor's line about the accelerator and the kernels that it can run."""
        purpose = "how guests are executed"
        refused = [plan for plan in self.kernels if not plan.accelerator and plan.engine]
        if refused:
            status: Status = (
                "missing" if len(refused) == sum(bool(p.engine) for p in self.kernels) else "note"
            )
            series = ", ".join(plan.series for plan in refused)
            found = f"{self.accelerator}, not for {series}: {refused[0].why}"
            remedy = f"{install_command(native().qemu_package)}, version 10 or newer"
            return Finding("accelerator", status, found, purpose, remedy)
        if self.accelerator == "kvm":
            return Finding("accelerator", "ok", "kvm", purpose)
        remedy = (
            "nothing needs doing: software emulation works, about ten times slower; for KVM use a "
            "machine with vmx or svm, nested virtualisation, and /dev/kvm readable and writable"
        )
        found = f"software emulation (tcg): {self.why}"
        return Finding("accelerator", "note", found, purpose, remedy)

    def lines(self) -> list[str]:
        """Return the plan for people."""
        lines = [f"accelerator {self.accelerator}: {self.why}"]
        for plan in self.kernels:
            if plan.engine and plan.accelerator:
                state = "" if plan.fetched else ", to be fetched"
                lines.append(f"{plan.series:10} engine {plan.engine}: {plan.why}{state}")
            else:
                lines.append(f"{plan.series:10} cannot run: {plan.why}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for machines."""
        return {
            "accelerator": self.accelerator,
            "why": self.why,
            "kernels": [vars(plan) for plan in self.kernels],
        }


def make_plan() -> Plan:
    """Return what a run would use now."""
    kvm = probe_kvm()
    why = "/dev/kvm works" if kvm.usable else kvm.reason
    plans = tuple(
        _plan_kernel(status.entry, status.record is not None)
        for status in kernels.inventory()
        if status.entry
    )
    return Plan("kvm" if kvm.usable else "tcg", why, plans)


def _plan_kernel(entry: Entry, fetched: bool) -> KernelPlan:
    if entry.refused:
        return KernelPlan(entry.name, entry.release, "", "", entry.refused, fetched)
    engine = "testrun" if entry.headers else "live"
    why = (
        "the archive has headers, the module can be built"
        if entry.headers
        else "the archive has no headers to build the module with"
    )
    if entry.architecture != native():
        why += "" if known_emulator(entry.architecture) else "; its emulator is to be fetched, too"
        return KernelPlan(entry.name, entry.release, engine, "tcg", why, fetched)
    try:
        accelerator = choose("auto", entry.release)
    except GuestError as error:
        return KernelPlan(entry.name, entry.release, engine, "", str(error), fetched)
    return KernelPlan(entry.name, entry.release, engine, accelerator, why, fetched)
